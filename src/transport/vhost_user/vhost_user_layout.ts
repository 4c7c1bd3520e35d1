/**
 * Numbers and byte layouts of vhost-user (QEMU 10.2, docs/interop/vhost-user), shared by both sides. All fields are in
 * the machine's byte order, which is little-endian wherever vblk runs this.
 *
 * @module
 */

import { checkedU64 } from "../../memory/guest_memory.ts";

/** "Header": u32 request, u32 flags, u32 size of the payload. */
export const HEADER_BYTES = 12;
/** Lower two bits of the flags. */
export const VHOST_USER_VERSION = 1;
export const VERSION_MASK = 3;
export const FLAG_REPLY = 1 << 2;
export const FLAG_NEED_REPLY = 1 << 3;

/** "Communication": the bit in GET_FEATURES that says that there are protocol features. */
export const VHOST_USER_F_PROTOCOL_FEATURES = 30;
/** "Migration": dirty pages are logged. */
export const VHOST_F_LOG_ALL = 26;
/** "Migration": in the flags of SET_VRING_ADDR, the used ring is logged. */
export const VHOST_VRING_F_LOG = 0;
/** "Migration": size of a page of the log, in bytes. */
export const VHOST_LOG_PAGE = 0x1000;

/** "Protocol features", as bit numbers. */
export const PROTOCOL_F = {
  MQ: 0,
  LOG_SHMFD: 1,
  RARP: 2,
  REPLY_ACK: 3,
  MTU: 4,
  BACKEND_REQ: 5,
  CROSS_ENDIAN: 6,
  CRYPTO_SESSION: 7,
  PAGEFAULT: 8,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  HOST_NOTIFIER: 11,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  INBAND_NOTIFICATIONS: 14,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
  XEN_MMAP: 17,
  SHARED_OBJECT: 18,
  DEVICE_STATE: 19,
  GET_VRING_BASE_INFLIGHT: 20,
} as const;

/** Name of a protocol feature. */
export type ProtocolFeature = keyof typeof PROTOCOL_F;

/** "Front-end message types": the number of each request. */
export const REQUEST = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GPU_SET_SOCKET: 33,
  RESET_DEVICE: 34,
  VRING_KICK: 35,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
} as const;

/** Name of a request. */
export type RequestName = keyof typeof REQUEST;

/** "Back-end message types": the one that vblk sends. */
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2;

/** "Multiple Memory regions description": most regions in one message, and so most file descriptors. */
export const MAX_REGIONS_PER_MESSAGE = 8;
/** "Memory region description": u64 guest address, u64 size, u64 user address, u64 mmap offset. */
export const REGION_BYTES = 32;
/** "Virtio device config space": u32 offset, u32 size, u32 flags, and as many bytes as `size` says. */
export const CONFIG_HEADER_BYTES = 12;
/** VHOST_USER_MAX_CONFIG_SIZE of every implementation. */
export const CONFIG_MAX_BYTES = 256;
/** The payload of no message that vblk takes is longer. */
export const PAYLOAD_MAX_BYTES = Math.max(
  8 + MAX_REGIONS_PER_MESSAGE * REGION_BYTES,
  CONFIG_HEADER_BYTES + CONFIG_MAX_BYTES,
);

/** "Virtio device config space": the flag of a write that a live migration makes. */
export const CONFIG_FLAG_MIGRATION = 1;

/** SET_VRING_KICK, _CALL and _ERR: bits of the payload. */
export const VRING_INDEX_MASK = 0xff;
export const VRING_NOFD = 1 << 8;

/** "A vring state description". */
export interface VringState {
  readonly index: number;
  readonly num: number;
}

/** "A vring address description". Addresses are numbers; `Infinity` for 2^53 and more. */
export interface VringAddress {
  readonly index: number;
  readonly flags: number;
  /** User addresses. */
  readonly descriptor: number;
  readonly used: number;
  readonly available: number;
  /** Guest address at which writes to the used ring are logged. */
  readonly log: number;
}

/** "Memory region description". Numbers; `Infinity` for 2^53 and more. */
export interface RegionDescription {
  readonly guestAddress: number;
  readonly sizeBytes: number;
  readonly userAddress: number;
  readonly mmapOffset: number;
}

/** "Log description". */
export interface LogDescription {
  readonly sizeBytes: number;
  readonly offset: number;
}

/** "Virtio device config space". */
export interface ConfigAccess {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly flags: number;
  readonly bytes: Uint8Array;
}

/** "Inflight description". */
export interface InflightDescription {
  readonly mmapSizeBytes: number;
  readonly mmapOffset: number;
  readonly queues: number;
  readonly queueSize: number;
}

/** A 64-bit field as a number; `Infinity` for 2^53 and more. */
export function readU64(view: DataView, at: number): number {
  return checkedU64(view.getUint32(at, true), view.getUint32(at + 4, true));
}

/** Writes a number below 2^53 as a 64-bit field. */
export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
}

/** Reads "Memory region description" at `at`. */
export function readRegion(view: DataView, at: number): RegionDescription {
  return {
    guestAddress: readU64(view, at),
    sizeBytes: readU64(view, at + 8),
    userAddress: readU64(view, at + 16),
    mmapOffset: readU64(view, at + 24),
  };
}

/** A whole message: header and payload. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES + payload.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, request, true);
  view.setUint32(4, VHOST_USER_VERSION | flags, true);
  view.setUint32(8, payload.byteLength, true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

/** "A single 64-bit integer". */
export function encodeU64(value: bigint | number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

/** "A vring state description", and the two descriptions of ring indexes, which look the same. */
export function encodeVringState(index: number, num: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, index, true);
  view.setUint32(4, num, true);
  return bytes;
}

/** "Inflight description". */
export function encodeInflight(inflight: InflightDescription): Uint8Array {
  const bytes = new Uint8Array(INFLIGHT_BYTES);
  const view = new DataView(bytes.buffer);
  writeU64(view, 0, inflight.mmapSizeBytes);
  writeU64(view, 8, inflight.mmapOffset);
  view.setUint16(16, inflight.queues, true);
  view.setUint16(18, inflight.queueSize, true);
  return bytes;
}

/**
 * Size of "Inflight description": 20 bytes of fields. C compilers pad the struct to 24 when it is not packed, and QEMU
 * sends it so; either is taken.
 */
export const INFLIGHT_BYTES = 20;
export const INFLIGHT_PADDED_BYTES = 24;
