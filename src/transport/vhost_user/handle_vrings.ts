/**
 * What the messages do that set up, start and stop rings.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import type { Message, Outcome } from "./messages.ts";
import { messageOf } from "./memory_table.ts";
import { vhostUserViolation } from "./rules.ts";
import { after, type Notifier } from "./seams.ts";
import type { Session } from "./session.ts";
import { encodeVringState, readU64, VRING_INDEX_MASK, VRING_NOFD, type VringAddress } from "./vhost_user_layout.ts";
import type { Vring } from "./vring.ts";

/** The largest ring there can be (VIRTIO 1.4 §2.7). The front-end chooses; the device's own size is only a wish. */
const VRING_MAX_SIZE = 32768;

/** The ring that a "vring state description" or "vring address description" names. */
export function ringOf(session: Session, index: number): Vring | Violation {
  const ring = session.rings[index];
  return ring ?? vhostUserViolation("queue-unknown", `ring ${index} of ${session.rings.length} was named`);
}

/** The same, for a ring that must not be running. */
function stoppedRing(session: Session, index: number, what: string): Vring | Violation {
  const ring = ringOf(session, index);
  if ("rule" in ring || !ring.running) return ring;
  return vhostUserViolation("state", `the ${what} of running ring ${index} changes`);
}

export function setVringNum(session: Session, { view }: Message): Outcome {
  const ring = stoppedRing(session, view.getUint32(0, true), "size");
  if ("rule" in ring) return ring;
  const size = view.getUint32(4, true);
  if (size < 1 || size > VRING_MAX_SIZE) return vhostUserViolation("payload-value", `a ring has ${size} descriptors`);
  ring.size = size;
  return null;
}

export function setVringBase(session: Session, { view }: Message): Outcome {
  const ring = stoppedRing(session, view.getUint32(0, true), "base");
  if ("rule" in ring) return ring;
  ring.base = view.getUint32(4, true);
  return null;
}

export function getVringBase(session: Session, { view }: Message): Outcome | Promise<Outcome> {
  const index = view.getUint32(0, true);
  const ring = ringOf(session, index);
  if ("rule" in ring) return ring;
  // "By default, the back-end must complete all inflight I/O requests for the specified vring before stopping it."
  return after(ring.stop(), () => ({ payload: encodeVringState(index, ring.base) }));
}

export function setVringAddr(session: Session, { view }: Message): Outcome {
  const address: VringAddress = {
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descriptor: readU64(view, 8),
    used: readU64(view, 16),
    available: readU64(view, 24),
    log: readU64(view, 32),
  };
  const ring = ringOf(session, address.index);
  return "rule" in ring ? ring : ring.setAddress(address);
}

export function setVringEnable(session: Session, { view }: Message): Outcome {
  const ring = ringOf(session, view.getUint32(0, true));
  if ("rule" in ring) return ring;
  const enable = view.getUint32(4, true);
  if (enable > 1) return vhostUserViolation("payload-value", `a ring is enabled with ${enable}`);
  return ring.setEnabled(enable === 1);
}

/** How many descriptors come with SET_VRING_KICK, _CALL and _ERR: one, unless the invalid FD flag is set. */
export function vringFds(view: DataView): number {
  return view.getUint32(0, true) & VRING_NOFD ? 0 : 1;
}

/** The ring and the descriptor of SET_VRING_KICK, _CALL and _ERR. */
function ringAndFd(session: Session, { view, fds }: Message): { ring: Vring; fd: number | null } | Violation {
  const value = view.getBigUint64(0, true);
  if (value > BigInt(VRING_INDEX_MASK | VRING_NOFD)) {
    return vhostUserViolation("payload-value", `bits are set that have no meaning: 0x${value.toString(16)}`);
  }
  const ring = ringOf(session, Number(value) & VRING_INDEX_MASK);
  if ("rule" in ring) return ring;
  return { ring, fd: fds.count === 0 ? null : fds.take(0) };
}

export function setVringKick(session: Session, message: Message): Outcome {
  const found = ringAndFd(session, message);
  return "rule" in found ? found : found.ring.setKick(found.fd);
}

/** SET_VRING_CALL and SET_VRING_ERR. */
function setNotifier(
  session: Session,
  message: Message,
  set: (ring: Vring, notifier: Notifier | null) => void,
): Outcome {
  const found = ringAndFd(session, message);
  if ("rule" in found) return found;
  try {
    set(found.ring, found.fd === null ? null : session.host.notifier(found.fd));
    return null;
  } catch (error) {
    return vhostUserViolation("host", messageOf(error));
  }
}

export function setVringCall(session: Session, message: Message): Outcome {
  return setNotifier(session, message, (ring, notifier) => ring.setCall(notifier));
}

export function setVringErr(session: Session, message: Message): Outcome {
  return setNotifier(session, message, (ring, notifier) => ring.setErr(notifier));
}
