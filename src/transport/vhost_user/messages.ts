/**
 * The messages of a front-end: one row for each, with what it brings, when it is allowed, how it is answered, and what
 * it does. Checking and answering are the same for all rows and are done in `dispatch.ts`; the numbers are in
 * `vhost_user_layout.ts`.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import * as Memory from "./handle_memory.ts";
import * as Setup from "./handle_setup.ts";
import * as Vrings from "./handle_vrings.ts";
import { MAX_MEMORY_SLOTS } from "./memory_table.ts";
import type { MessageFds } from "./seams.ts";
import { OFFERED_PROTOCOL_FEATURES, type Session } from "./session.ts";
import {
  CONFIG_HEADER_BYTES,
  CONFIG_MAX_BYTES,
  INFLIGHT_BYTES,
  INFLIGHT_PADDED_BYTES,
  MAX_REGIONS_PER_MESSAGE,
  type ProtocolFeature,
  REGION_BYTES,
  type RequestName,
} from "./vhost_user_layout.ts";

/** A message whose payload and descriptors have the right sizes. */
export interface Message {
  /** The payload. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly fds: MessageFds;
}

/** How a message went: done, answered, or refused. */
export type Outcome = null | Reply | Violation;

/** A reply of the message's own. */
export interface Reply {
  readonly payload: Uint8Array;
  /** Descriptors that go with it; whoever sends them closes them. */
  readonly fds?: readonly number[];
}

/** A payload: its name in the text and the sizes that it can have, in bytes. */
export interface PayloadRule {
  readonly name: string;
  accepts(view: DataView): boolean;
}

/** A row. */
export interface MessageRow {
  readonly payload: PayloadRule;
  /** How many descriptors come with it: least and most. */
  readonly fds: (view: DataView) => readonly [least: number, most: number];
  /** The protocol feature that must have been negotiated. */
  readonly feature?: ProtocolFeature;
  /** Why it means nothing now; `null` when it does. */
  readonly when?: (session: Session) => string | null;
  /** Whether it has a reply of its own; if not, it is acknowledged when the front-end asks for that. */
  readonly replies?: boolean;
  readonly run: (session: Session, message: Message) => Outcome | Promise<Outcome>;
}

function sized(name: string, ...sizes: number[]): PayloadRule {
  return { name, accepts: ({ byteLength }) => sizes.includes(byteLength) };
}

const NONE = sized("none", 0);
const U64 = sized("a single 64-bit integer", 8);
const VRING_STATE = sized("a vring state description", 8);
const VRING_INDEX = sized("vring descriptor indices", 8);
const VRING_ADDRESS = sized("a vring address description", 40);
const REGION = sized("a single memory region description", 8 + REGION_BYTES);
const LOG = sized("a log description", 16);
const INFLIGHT = sized("an inflight description", INFLIGHT_BYTES, INFLIGHT_PADDED_BYTES);
const CONFIG: PayloadRule = {
  name: "virtio device config space",
  // Whether the bytes are as many as the size field says is for the message to answer.
  accepts: ({ byteLength }) =>
    byteLength >= CONFIG_HEADER_BYTES && byteLength <= CONFIG_HEADER_BYTES + CONFIG_MAX_BYTES,
};
const REGIONS: PayloadRule = {
  name: "multiple memory regions description",
  accepts: (view) => {
    if (view.byteLength < 8) return false;
    const count = Memory.regionCount(view);
    if (count < 1 || count > MAX_REGIONS_PER_MESSAGE) return false;
    // The text has eight regions in every message; QEMU sends those that there are.
    return [count, MAX_REGIONS_PER_MESSAGE].some((regions) => view.byteLength === 8 + regions * REGION_BYTES);
  },
};

const noFd = () => [0, 0] as const;
const oneFd = () => [1, 1] as const;
const vringFd = (view: DataView) => {
  const count = Vrings.vringFds(view);
  return [count, count] as const;
};

/** Most descriptors that any message brings. */
export const MAX_FDS_PER_MESSAGE = MAX_REGIONS_PER_MESSAGE;

const atRest = (session: Session) => session.anyRunning ? "rings are running" : null;
const featuresSet = (session: Session) => session.features === null ? "SET_FEATURES did not come" : null;
const extended = (session: Session) => session.extended ? null : "VHOST_USER_F_PROTOCOL_FEATURES is not negotiated";

/** What vblk does. */
export const MESSAGES: Readonly<Partial<Record<RequestName, MessageRow>>> = {
  GET_FEATURES: {
    payload: NONE,
    fds: noFd,
    replies: true,
    run: (session) => Setup.replyU64(session.offered),
  },
  SET_FEATURES: { payload: U64, fds: noFd, run: Setup.setFeatures },
  GET_PROTOCOL_FEATURES: {
    payload: NONE,
    fds: noFd,
    replies: true,
    run: () => Setup.replyU64(OFFERED_PROTOCOL_FEATURES),
  },
  SET_PROTOCOL_FEATURES: { payload: U64, fds: noFd, when: atRest, run: Setup.setProtocolFeatures },
  // A connection has one front-end, which owns the session whether it says so or not.
  SET_OWNER: { payload: NONE, fds: noFd, run: () => null },
  // Deprecated; to be ignored, or to disable all rings.
  RESET_OWNER: {
    payload: NONE,
    fds: noFd,
    run: (session) => {
      for (const ring of session.rings) ring.setEnabled(false);
      return null;
    },
  },
  SET_MEM_TABLE: {
    payload: REGIONS,
    fds: (view) => [Memory.regionCount(view), Memory.regionCount(view)],
    run: Memory.setMemTable,
  },
  SET_LOG_BASE: { payload: LOG, fds: oneFd, feature: "LOG_SHMFD", replies: true, run: Memory.setLogBase },
  SET_LOG_FD: { payload: NONE, fds: oneFd, run: Memory.setLogFd },
  SET_VRING_NUM: { payload: VRING_STATE, fds: noFd, run: Vrings.setVringNum },
  SET_VRING_ADDR: { payload: VRING_ADDRESS, fds: noFd, when: featuresSet, run: Vrings.setVringAddr },
  SET_VRING_BASE: { payload: VRING_INDEX, fds: noFd, run: Vrings.setVringBase },
  GET_VRING_BASE: { payload: VRING_STATE, fds: noFd, replies: true, run: Vrings.getVringBase },
  SET_VRING_KICK: { payload: U64, fds: vringFd, when: featuresSet, run: Vrings.setVringKick },
  SET_VRING_CALL: { payload: U64, fds: vringFd, run: Vrings.setVringCall },
  SET_VRING_ERR: { payload: U64, fds: vringFd, run: Vrings.setVringErr },
  // "Only when MQ is set in queried protocol features": it is.
  GET_QUEUE_NUM: {
    payload: NONE,
    fds: noFd,
    replies: true,
    run: (session) => Setup.replyU64(session.rings.length),
  },
  SET_VRING_ENABLE: { payload: VRING_STATE, fds: noFd, when: extended, run: Vrings.setVringEnable },
  SET_BACKEND_REQ_FD: { payload: NONE, fds: oneFd, feature: "BACKEND_REQ", run: Setup.setBackendReqFd },
  GET_CONFIG: { payload: CONFIG, fds: noFd, feature: "CONFIG", replies: true, run: Setup.getConfig },
  SET_CONFIG: { payload: CONFIG, fds: noFd, feature: "CONFIG", run: Setup.setConfig },
  GET_INFLIGHT_FD: {
    payload: INFLIGHT,
    fds: noFd,
    feature: "INFLIGHT_SHMFD",
    replies: true,
    run: Memory.getInflightFd,
  },
  SET_INFLIGHT_FD: {
    payload: INFLIGHT,
    fds: oneFd,
    feature: "INFLIGHT_SHMFD",
    when: atRest,
    run: Memory.setInflightFd,
  },
  RESET_DEVICE: { payload: NONE, fds: noFd, feature: "RESET_DEVICE", run: Setup.resetDevice },
  GET_MAX_MEM_SLOTS: {
    payload: NONE,
    fds: noFd,
    feature: "CONFIGURE_MEM_SLOTS",
    replies: true,
    run: () => Setup.replyU64(MAX_MEMORY_SLOTS),
  },
  ADD_MEM_REG: { payload: REGION, fds: oneFd, feature: "CONFIGURE_MEM_SLOTS", run: Memory.addMemReg },
  REM_MEM_REG: {
    payload: REGION,
    // A descriptor should not come; if one does, it is closed unused.
    fds: () => [0, 1],
    feature: "CONFIGURE_MEM_SLOTS",
    run: Memory.remMemReg,
  },
  SET_STATUS: { payload: U64, fds: noFd, feature: "STATUS", run: Setup.setStatus },
  GET_STATUS: {
    payload: NONE,
    fds: noFd,
    feature: "STATUS",
    replies: true,
    run: (session) => Setup.replyU64(session.status),
  },
};

/** Messages that belong to what vblk does not offer, and to what. */
export const REFUSED: Readonly<Partial<Record<RequestName, string>>> = {
  SEND_RARP: "RARP",
  NET_SET_MTU: "MTU",
  IOTLB_MSG: "VIRTIO_F_ACCESS_PLATFORM",
  SET_VRING_ENDIAN: "CROSS_ENDIAN",
  CREATE_CRYPTO_SESSION: "CRYPTO_SESSION",
  CLOSE_CRYPTO_SESSION: "CRYPTO_SESSION",
  POSTCOPY_ADVISE: "PAGEFAULT",
  POSTCOPY_LISTEN: "PAGEFAULT",
  POSTCOPY_END: "PAGEFAULT",
  GPU_SET_SOCKET: "vhost-user-gpu",
  VRING_KICK: "INBAND_NOTIFICATIONS",
  GET_SHARED_OBJECT: "SHARED_OBJECT",
  SET_DEVICE_STATE_FD: "DEVICE_STATE",
  CHECK_DEVICE_STATE: "DEVICE_STATE",
};
