/**
 * What the messages do that negotiate, read and write the configuration space, and reset.
 *
 * @module
 */

import { featureNames } from "../../virtio/features.ts";
import { checkOffered } from "../../virtio/negotiation.ts";
import { VIRTIO_CONFIG_S_NEEDS_RESET } from "../../virtio/status_layout.ts";
import type { Violation } from "../../virtio/violation.ts";
import type { Message, Outcome } from "./messages.ts";
import { messageOf } from "./memory_table.ts";
import { vhostUserViolation } from "./rules.ts";
import { after } from "./seams.ts";
import { ADDED_FEATURE_NAMES, OFFERED_PROTOCOL_FEATURES, type Session } from "./session.ts";
import {
  CONFIG_FLAG_MIGRATION,
  CONFIG_HEADER_BYTES,
  CONFIG_MAX_BYTES,
  type ConfigAccess,
  encodeU64,
  PROTOCOL_F,
} from "./vhost_user_layout.ts";

const PROTOCOL_FEATURE_NAMES = Object.fromEntries(Object.entries(PROTOCOL_F).map(([name, bit]) => [bit, name]));

/** A reply of one 64-bit integer. */
export function replyU64(value: bigint | number): Outcome {
  return { payload: encodeU64(value) };
}

export function setFeatures(session: Session, { view }: Message): Outcome {
  const features = view.getBigUint64(0, true);
  const names = { ...session.device.featureNames, ...ADDED_FEATURE_NAMES };
  // Not VERSION_1: the legacy interface is the front-end's, registers and all, and a driver that uses it (OVMF's on
  // QEMU's transitional device) differs here in nothing: its rings come with an address for each part, and in our byte
  // order, since one that is not would be told with SET_VRING_ENDIAN, which needs a feature that is not on offer.
  const refused = checkOffered(session.offered, features, names);
  if (refused !== null) return refused;
  if (session.anyRunning && session.changesDevice(features)) {
    return vhostUserViolation("state", "the device's features change while rings are running");
  }
  session.accept(features);
  // "Ring states": a front-end that knows no protocol features has no message to enable a ring.
  if (session.extended) return null;
  return session.rings.reduce<Violation | null>((first, ring) => first ?? ring.setEnabled(true), null);
}

export function setProtocolFeatures(session: Session, { view }: Message): Outcome {
  const features = view.getBigUint64(0, true);
  const surplus = features & ~OFFERED_PROTOCOL_FEATURES;
  if (surplus !== 0n) {
    const found = `the front-end accepted ${featureNames(surplus, PROTOCOL_FEATURE_NAMES).join(", ")}`;
    return vhostUserViolation("protocol-feature-not-offered", found);
  }
  session.protocolFeatures = features;
  return null;
}

export function setBackendReqFd(session: Session, { fds }: Message): Outcome {
  try {
    session.setChannel(session.host.backendChannel(fds.take(0)));
    return null;
  } catch (error) {
    return vhostUserViolation("host", messageOf(error));
  }
}

function readAccess({ view, bytes }: Message): ConfigAccess {
  return {
    offset: view.getUint32(0, true),
    sizeBytes: view.getUint32(4, true),
    flags: view.getUint32(8, true),
    bytes: bytes.subarray(CONFIG_HEADER_BYTES),
  };
}

function checkRange({ offset, sizeBytes, bytes }: ConfigAccess): Violation | null {
  if (sizeBytes === bytes.byteLength && sizeBytes >= 1 && offset + sizeBytes <= CONFIG_MAX_BYTES) return null;
  const found = `${sizeBytes} bytes at offset ${offset}, with ${bytes.byteLength} bytes of payload`;
  return vhostUserViolation("config-range", found);
}

/** A range that is refused is answered with no payload at all, as the message says. */
export function getConfig(session: Session, message: Message): Outcome {
  const access = readAccess(message);
  const refused = checkRange(access);
  if (refused !== null) {
    session.refused(refused);
    return { payload: new Uint8Array(0) };
  }
  const payload = message.bytes.slice();
  session.device.readConfig(access.offset, payload.subarray(CONFIG_HEADER_BYTES));
  return { payload };
}

export function setConfig(session: Session, message: Message): Outcome {
  const access = readAccess(message);
  const refused = checkRange(access);
  if (refused !== null) return refused;
  const { offset, bytes, flags } = access;
  const { device } = session;
  if (device.configWritable(offset, bytes.byteLength)) {
    session.configWrite = { offset, bytes: bytes.slice() };
    session.inflight?.noteConfigWrite(session.configWrite);
    session.repeatConfigWrite();
    return null;
  }
  if ((flags & CONFIG_FLAG_MIGRATION) === 0) {
    return vhostUserViolation("config-read-only", `${bytes.byteLength} bytes at offset ${offset} were written`);
  }
  // The other end of a migration sends all it has; the device takes what can be written.
  if (session.deviceFeatures !== null) device.writeConfig(offset, bytes);
  return null;
}

export function resetDevice(session: Session): Outcome | Promise<Outcome> {
  return after(session.resetDevice(true), () => {
    for (const ring of session.rings) ring.forgetSetup();
    return null;
  });
}

export function setStatus(session: Session, { view }: Message): Outcome | Promise<Outcome> {
  const status = view.getBigUint64(0, true);
  if (status > 0xffn) return vhostUserViolation("status", `the status is set to ${status}`);
  // QEMU 7.2 says so to stop a virtual machine too, and asks with GET_VRING_BASE only afterwards where the rings stand: all
  // that was taken is carried out before, and the places are kept.
  if (status === 0n) return after(session.stopRings(), () => after(session.resetDevice(true), () => null));
  // DEVICE_NEEDS_RESET is the device's to set (VIRTIO 1.4 §2.1.2).
  session.status = (Number(status) & ~VIRTIO_CONFIG_S_NEEDS_RESET) | (session.status & VIRTIO_CONFIG_S_NEEDS_RESET);
  return null;
}
