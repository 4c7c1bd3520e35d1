/**
 * Several back-ends that look like one: each has some of the rings, in a thread of its own, and shares nothing with the
 * others but the disk and the front-end's memory.
 *
 * The first of them has the front-end's socket, and this in front of its session. Messages about a ring go to the one who
 * has it. What concerns all is carried out here first, and passed on only when it was not refused: so a wrong message
 * changes nothing anywhere, and is reported once. The next message is not looked at before all have answered.
 *
 * All see the same messages about what they share, so they agree on it; about whether rings are running the first one
 * is told. Should one fail where the others did not (the machine may have no memory left for it), then what the
 * front-end could be told would be true of some of them only: what can be taken back is, or the session ends.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import { type Answer, dispatch, NOTHING, type RawMessage } from "./dispatch.ts";
import { messageOf } from "./memory_table.ts";
import type { MessageHandler } from "./message_handler.ts";
import type { Peer, PeerAnswer } from "./peer.ts";
import { vhostUserViolation } from "./rules.ts";
import { after, type Completion, MessageFds, type VhostUserHost } from "./seams.ts";
import type { Session } from "./session.ts";
import {
  encodeMessage,
  encodeU64,
  FLAG_REPLY,
  HEADER_BYTES,
  REQUEST,
  type RequestName,
  VHOST_USER_VERSION,
  VRING_INDEX_MASK,
} from "./vhost_user_layout.ts";

/**
 * Messages whose first word is the number of a ring, with the bits that are; all of it otherwise. One that is shorter,
 * or names no ring that there is, is refused by whoever gets it.
 */
const OF_A_RING: ReadonlyMap<number, number> = new Map([
  ...(["SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_ENABLE"] as const)
    .map((name) => [REQUEST[name], 0xffff_ffff] as const),
  ...(["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] as const)
    .map((name) => [REQUEST[name], VRING_INDEX_MASK] as const),
]);

/**
 * Messages for all. What is only asked is asked of the first, which knows as much as any; and it has the socket for
 * requests of the back-end, so that the front-end hears of a change once.
 */
const FOR_ALL: ReadonlySet<number> = new Set(
  ([
    "SET_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_CONFIG",
    "SET_INFLIGHT_FD",
    "RESET_DEVICE",
    "SET_STATUS",
    "GET_STATUS",
  ] satisfies RequestName[]).map((name) => REQUEST[name]),
);

/**
 * Those of them that mean nothing, or mean less, while rings are running. A ring may have been started by a kick since its
 * back-end was last asked, so it is asked again. (Should a kick come just then, it ends as where one has failed alone.)
 */
const AT_REST: ReadonlySet<number> = new Set(
  (["SET_FEATURES", "SET_PROTOCOL_FEATURES", "SET_INFLIGHT_FD"] satisfies RequestName[]).map((name) => REQUEST[name]),
);

/** The message handler of the first back-end. */
export class Splitter implements MessageHandler {
  readonly #session: Session;
  readonly #peers: readonly Peer[];
  /** By peer: whether any of its rings is running, as far as is known. */
  readonly #running: boolean[];
  /** Called when the session can't go on, and the front-end has to be let go. */
  onLost: () => void = () => {};

  /** @param peers the others, of whom nobody else asks anything: ring `i` is that of back-end `i` modulo their number */
  constructor(session: Session, peers: readonly Peer[]) {
    this.#session = session;
    this.#peers = peers;
    this.#running = peers.map(() => false);
  }

  get host(): VhostUserHost {
    return this.#session.host;
  }

  handle(raw: RawMessage): Answer | Promise<Answer> {
    const owner = this.#ownerOf(raw);
    if (owner > 0) return this.#pass(owner - 1, raw);
    return FOR_ALL.has(raw.request) ? this.#all(raw) : dispatch(this.#session, raw);
  }

  refused(violation: Violation): void {
    this.#session.refused(violation);
  }

  close(): Completion {
    // They end theirs while this one does.
    const closing = this.#peers.map((peer) => peer.close());
    let closed = this.#session.close();
    for (const one of closing) closed = after(closed, () => one);
    return closed;
  }

  /** Which back-end a message is for alone; 0, the first, for all that belong to no ring. */
  #ownerOf({ request, payload }: RawMessage): number {
    const mask = OF_A_RING.get(request);
    if (mask === undefined || payload.byteLength < 4) return 0;
    const ring = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true) & mask;
    return (ring >>> 0) % (this.#peers.length + 1);
  }

  async #pass(index: number, raw: RawMessage): Promise<Answer> {
    const answer = await this.#ask(index, raw);
    if (answer === null) return this.#lose();
    return { message: answer.reply, fds: [], fatal: null, refused: isRefusal(answer) };
  }

  async #all(raw: RawMessage): Promise<Answer> {
    let copies: MessageFds;
    try {
      // What the session takes over may be closed by the time that it is passed on.
      copies = raw.fds.duplicate(this.host);
    } catch (error) {
      this.refused(vhostUserViolation("host", messageOf(error)));
      return this.#lose();
    }
    try {
      if (AT_REST.has(raw.request)) {
        const asked = await Promise.all(this.#peers.map((_, i) => this.#ask(i, null)));
        if (asked.includes(null)) return this.#lose();
      }
      const features = this.#session.features;
      const first = await dispatch(this.#session, raw);
      // SET_FEATURES may start rings; when one can't be, it is answered so, and the features go all the same: for all.
      const isTaken = !first.refused || (first.fatal === null && this.#session.features !== features);
      if (!isTaken) return first;
      const answers = await Promise.all(this.#peers.map((_, i) => this.#ask(i, { ...raw, fds: copies })));
      if (answers.some((answer) => answer === null)) return this.#lose();
      const refusal = (answers as PeerAnswer[]).find(isRefusal);
      if (refusal !== undefined && raw.request === REQUEST.SET_FEATURES) return { ...first, message: refusal.reply };
      if (refusal !== undefined) return await this.#takeBack(raw, answers as PeerAnswer[], refusal);
      if (raw.request !== REQUEST.GET_STATUS) return first;
      // Whoever broke which ring: the device needs a reset.
      const replies = [first.message, ...(answers as PeerAnswer[]).map(({ reply }) => reply)];
      const status = replies.reduce((bits, reply) => reply === null ? bits : bits | u64In(reply), 0n);
      return { ...first, message: encodeMessage(raw.request, FLAG_REPLY, encodeU64(status)) };
    } finally {
      copies.close(this.host);
    }
  }

  /** Some have refused what the first has done. A region that was added is removed again; nothing else has a way back. */
  async #takeBack(raw: RawMessage, answers: readonly PeerAnswer[], refusal: PeerAnswer): Promise<Answer> {
    if (raw.request !== REQUEST.ADD_MEM_REG) return this.#lose();
    const removal = {
      request: REQUEST.REM_MEM_REG,
      flags: VHOST_USER_VERSION,
      payload: raw.payload,
      fds: new MessageFds([]),
    };
    const removed = [
      dispatch(this.#session, removal),
      ...answers.map((answer, i) => isRefusal(answer) ? NOTHING : this.#ask(i, removal)),
    ];
    for (const one of await Promise.all(removed)) {
      if (one === null || "fatal" in one && one.refused) return this.#lose();
    }
    return { message: refusal.reply, fds: [], fatal: null, refused: true };
  }

  async #ask(index: number, raw: RawMessage | null): Promise<PeerAnswer | null> {
    const answer = await this.#peers[index].ask(raw);
    this.#running[index] = answer?.running ?? false;
    this.#session.setOthersRunning(this.#running.includes(true));
    return answer;
  }

  /** Who ended its session has said why. */
  #lose(): Answer {
    this.onLost();
    return NOTHING;
  }
}

/** Whether a message was acknowledged with anything but 0. What has a reply of its own is refused by ending the session. */
function isRefusal({ reply }: PeerAnswer): boolean {
  if (reply === null || reply.byteLength !== HEADER_BYTES + 8) return false;
  const request = new DataView(reply.buffer, reply.byteOffset).getUint32(0, true);
  return !HAVE_REPLIES.has(request) && u64In(reply) !== 0n;
}

/** Messages that get here and have a reply of their own, eight bytes long. */
const HAVE_REPLIES: ReadonlySet<number> = new Set([REQUEST.GET_VRING_BASE, REQUEST.GET_STATUS]);

function u64In(message: Uint8Array): bigint {
  return new DataView(message.buffer, message.byteOffset).getBigUint64(HEADER_BYTES, true);
}
