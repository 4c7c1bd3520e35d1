/**
 * What the messages do that share memory: the guest's, the log's and the area for buffers in flight.
 *
 * @module
 */

import { DirtyLog } from "./dirty_log.ts";
import { checkInflight, InflightArea } from "./inflight_area.ts";
import { inflightAreaBytes, roomyQueueSize } from "./inflight_layout.ts";
import type { Message, Outcome } from "./messages.ts";
import { messageOf } from "./memory_table.ts";
import { vhostUserViolation } from "./rules.ts";
import { after } from "./seams.ts";
import type { Session } from "./session.ts";
import {
  encodeInflight,
  encodeU64,
  type InflightDescription,
  readRegion,
  readU64,
  REGION_BYTES,
} from "./vhost_user_layout.ts";

/** "Multiple Memory regions description": how many regions follow. */
export function regionCount(view: DataView): number {
  return view.getUint32(0, true);
}

export function setMemTable(session: Session, { view, fds }: Message): Outcome | Promise<Outcome> {
  const descriptions = Array.from({ length: regionCount(view) }, (_, i) => readRegion(view, 8 + i * REGION_BYTES));
  const prepared = session.table.prepare(descriptions, fds);
  if ("rule" in prepared) return prepared;
  // The rings that run lie in the old memory, and requests in flight point to it.
  return after(session.withRingsAtRest(prepared.commit), () => null);
}

/** "Single memory region description": 64 bits of padding come first. */
export function addMemReg(session: Session, { view, fds }: Message): Outcome {
  return session.table.add(readRegion(view, 8), fds);
}

export function remMemReg(session: Session, { view }: Message): Outcome | Promise<Outcome> {
  const description = readRegion(view, 8);
  if (!session.table.has(description)) {
    const found = `no region of ${description.sizeBytes} bytes at guest address ${description.guestAddress} is there`;
    return vhostUserViolation("memory-unknown", found);
  }
  return after(session.withRingsAtRest(() => session.table.remove(description)), () => null);
}

export function setLogBase(session: Session, { view, fds }: Message): Outcome {
  const sizeBytes = readU64(view, 0);
  const offset = readU64(view, 8);
  if (sizeBytes === 0 || !Number.isSafeInteger(offset + sizeBytes)) {
    return vhostUserViolation("log-map", `the log has ${sizeBytes} bytes at offset ${offset}`);
  }
  let log: DirtyLog;
  try {
    log = new DirtyLog(session.host.map(fds.at(0), offset, sizeBytes));
  } catch (error) {
    return vhostUserViolation("log-map", messageOf(error));
  }
  if (!log.covers(session.table.guestEnd) || !session.rings.every((ring) => ring.loggedWithin(log))) {
    log.close();
    return vhostUserViolation("log-range", `the log has ${sizeBytes} bytes, memory ends at ${session.table.guestEnd}`);
  }
  const old = session.log;
  session.log = log;
  session.updateRecords();
  old?.close();
  return { payload: encodeU64(0) };
}

export function setLogFd(session: Session, { fds }: Message): Outcome {
  try {
    const notifier = session.host.notifier(fds.take(0));
    session.logNotifier?.close();
    session.logNotifier = notifier;
  } catch (error) {
    return vhostUserViolation("host", messageOf(error));
  }
  session.updateRecords();
  return null;
}

function readInflight(view: DataView): InflightDescription {
  return {
    mmapSizeBytes: readU64(view, 0),
    mmapOffset: readU64(view, 8),
    queues: view.getUint16(16, true),
    queueSize: view.getUint16(18, true),
  };
}

export function getInflightFd(session: Session, { view, bytes }: Message): Outcome {
  const { queues, queueSize } = readInflight(view);
  const refused = checkInflight({ mmapSizeBytes: 0, mmapOffset: 0, queues, queueSize }, session.rings.length);
  if (refused !== null) return refused;
  const mmapSizeBytes = inflightAreaBytes(queues, roomyQueueSize(queueSize));
  // The reply has the size of the request, padded or not: QEMU insists on it.
  const payload = new Uint8Array(bytes.byteLength);
  payload.set(encodeInflight({ mmapSizeBytes, mmapOffset: 0, queues, queueSize }));
  try {
    return { payload, fds: [session.host.createShared("vblk-inflight", mmapSizeBytes)] };
  } catch (error) {
    return vhostUserViolation("host", messageOf(error));
  }
}

export function setInflightFd(session: Session, { view, fds }: Message): Outcome {
  const description = readInflight(view);
  const refused = checkInflight(description, session.rings.length);
  if (refused !== null) return refused;
  const area = InflightArea.map(session.host, fds.at(0), description);
  if ("rule" in area) return area;
  session.inflight?.close();
  session.inflight = area;
  if (session.configWrite !== null) {
    area.noteConfigWrite(session.configWrite);
    return null;
  }
  // A back-end that is gone wrote it down: the front-end does not say it again.
  const noted = area.configWrite;
  if (noted !== null && session.device.configWritable(noted.offset, noted.bytes.byteLength)) {
    session.configWrite = noted;
    session.repeatConfigWrite();
  }
  return null;
}
