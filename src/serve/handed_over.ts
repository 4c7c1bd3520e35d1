/**
 * Connections that one thread of this process makes and another one serves: for the other they come as from a socket
 * that it listens at. Descriptors are the process's, so that their numbers are all that has to be told.
 *
 * @module
 */

import { DescriptorList } from "../host/socket_message.ts";
import { UnixConnection } from "../host/unix_connection.ts";

/** Somewhere that connections come from. */
export interface Listener {
  /** There is something to read when there is a connection. */
  readonly descriptor: number;
  /** The next connection, or `null` when there is none after a time: 0 does not wait. */
  accept(timeoutMs: 0): UnixConnection | null;
  /** Ends it. */
  close(): void;
}

const NUMBER_BYTES = 4;

/** Makes connections, and hands one end of each over. */
export class HandOver {
  readonly #socket: UnixConnection;
  /** For the other thread: the descriptor that `HandedOver` takes. */
  readonly otherEnd: number;

  /** One for another thread, which takes `otherEnd` over. */
  constructor() {
    const [here, there] = UnixConnection.pair();
    this.#socket = here;
    this.otherEnd = there.descriptor;
  }

  /** A connection whose other end the other thread gets. */
  connect(): UnixConnection {
    const [here, there] = UnixConnection.pair();
    try {
      // So few of them are never more than the socket has room for.
      this.#socket.send(new Uint8Array(Int32Array.of(there.descriptor).buffer), [], 0);
    } catch {
      // The other thread has ended, and is about to say why: this connection ends before it began.
      there.close();
    }
    return here;
  }

  /** Tells the other thread that there will be no more. */
  close(): void {
    this.#socket.close();
  }
}

/** The other thread's end. */
export class HandedOver implements Listener {
  readonly descriptor: number;
  readonly #socket: UnixConnection;
  readonly #onEnd: () => void;
  #ended = false;
  #closed = false;

  /**
   * Takes a descriptor over.
   *
   * @param onEnd called by `accept`, once, when there will be no more
   */
  constructor(descriptor: number, onEnd: () => void = () => {}) {
    this.descriptor = descriptor;
    this.#socket = new UnixConnection(descriptor);
    this.#onEnd = onEnd;
  }

  accept(_timeoutMs: 0): UnixConnection | null {
    if (this.#ended) return null;
    const next = this.#next();
    if (next !== "end") return next;
    this.#ended = true;
    this.#onEnd();
    return null;
  }

  /** Ends it; what was handed over and not taken is closed: its other end must not wait for ever. */
  close(): void {
    if (this.#closed) return;
    this.#closed = this.#ended = true;
    // Nothing more may come behind what is looked at now.
    this.#socket.endReceiving();
    try {
      for (let left; (left = this.#next()) instanceof UnixConnection;) left.close();
    } finally {
      this.#socket.close();
    }
  }

  #next(): UnixConnection | "end" | null {
    using descriptors = new DescriptorList();
    const bytes = new Uint8Array(NUMBER_BYTES);
    // A number is sent as a whole, and so few bytes are never cut.
    const count = this.#socket.receiveSome(bytes, descriptors);
    if (count === 0) return "end";
    return count === NUMBER_BYTES ? new UnixConnection(new Int32Array(bytes.buffer)[0]) : null;
  }
}
