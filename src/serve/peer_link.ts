/**
 * A session with the back-end of another thread, over a socket: one message at a time, each with its answer.
 *
 * @module
 */

import { DescriptorList } from "../host/socket_message.ts";
import type { UnixConnection } from "../host/unix_connection.ts";
import type { RawMessage } from "../transport/vhost_user/dispatch.ts";
import { type Peer, type PeerAnswer, SETTLED_REQUEST } from "../transport/vhost_user/peer.ts";
import {
  encodeMessage,
  HEADER_BYTES,
  PAYLOAD_MAX_BYTES,
  VHOST_USER_VERSION,
} from "../transport/vhost_user/vhost_user_layout.ts";
import type { Watch, Watches } from "./watches.ts";

/** The other thread reads one message while the next is not asked for: there always is room. */
const SEND_TIMEOUT_MS = 1000;

/** What is asked after each message. */
const SETTLED = encodeMessage(SETTLED_REQUEST, 0, new Uint8Array(0));

/** The first thread's end. */
export class PeerLink implements Peer {
  readonly #socket: UnixConnection;
  readonly #watch: Watch;
  /** What came of a message that is not at its end. */
  #pending: Uint8Array = new Uint8Array(0);
  #reply: Uint8Array | null = null;
  #answer: ((answer: PeerAnswer | null) => void) | null = null;
  #closed: (() => void) | null = null;
  #gone = false;

  /** Takes a connection to the other thread over. */
  constructor(socket: UnixConnection, watches: Watches) {
    this.#socket = socket;
    this.#watch = watches.add(socket.descriptor, () => this.#read());
  }

  /** Whether something was asked, the end included, and has not come back. */
  get waiting(): boolean {
    return this.#answer !== null || this.#closed !== null;
  }

  ask(raw: RawMessage | null): Promise<PeerAnswer | null> {
    if (this.#gone) return Promise.resolve(null);
    const message = raw === null
      ? new Uint8Array(0)
      : encodeMessage(raw.request, raw.flags & ~VHOST_USER_VERSION, raw.payload);
    const fds = raw?.fds.all.filter((fd) => fd !== null) ?? [];
    const both = new Uint8Array(message.byteLength + SETTLED.byteLength);
    both.set(message);
    both.set(SETTLED, message.byteLength);
    try {
      this.#socket.send(both, fds, SEND_TIMEOUT_MS);
    } catch {
      // It has ended the session and is about to close its end, or hears now that it has to.
      this.#socket.endSending();
    }
    return new Promise((resolve) => this.#answer = resolve);
  }

  close(): Promise<void> {
    if (this.#gone) return Promise.resolve();
    // It reads to the end, and closes its own when nothing of the session is left.
    this.#socket.endSending();
    return new Promise((resolve) => this.#closed = resolve);
  }

  #read(): void {
    using descriptors = new DescriptorList();
    while (!this.#gone) {
      const bytes = new Uint8Array(HEADER_BYTES + PAYLOAD_MAX_BYTES);
      let count: number;
      try {
        count = this.#socket.receiveSome(bytes, descriptors);
      } catch {
        // It went while it had something to read.
        count = 0;
      }
      if (count < 0) return;
      if (count === 0) return this.#end();
      this.#pending = Uint8Array.of(...this.#pending, ...bytes.subarray(0, count));
      this.#takeMessages();
    }
  }

  #takeMessages(): void {
    while (this.#pending.byteLength >= HEADER_BYTES) {
      const view = new DataView(this.#pending.buffer);
      const end = HEADER_BYTES + view.getUint32(8, true);
      if (this.#pending.byteLength < end) return;
      const message = this.#pending.slice(0, end);
      this.#pending = this.#pending.slice(end);
      if (view.getUint32(0, true) !== SETTLED_REQUEST) {
        this.#reply = message;
        continue;
      }
      const answer = this.#answer;
      const reply = this.#reply;
      this.#answer = this.#reply = null;
      answer?.({ reply, running: message[HEADER_BYTES] === 1 });
    }
  }

  #end(): void {
    this.#gone = true;
    this.#watch.close();
    this.#socket.close();
    const answer = this.#answer;
    const closed = this.#closed;
    this.#answer = this.#closed = null;
    answer?.(null);
    closed?.();
  }
}
