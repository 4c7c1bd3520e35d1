/**
 * A vhost-user socket: front-ends come, one after the other, and their bytes and descriptors go to the back-end.
 *
 * @module
 */

import { DescriptorList } from "../host/socket_message.ts";
import type { UnixConnection } from "../host/unix_connection.ts";
import type { VhostUserBackEnd } from "../transport/vhost_user/back_end.ts";
import type { EndReason, VhostUserConnection } from "../transport/vhost_user/connection.ts";
import type { Listener } from "./handed_over.ts";
import type { UringHost } from "./uring_host.ts";
import type { Watch, Watches } from "./watches.ts";

/** A front-end that does not take its replies for so long is given up. */
const SEND_TIMEOUT_MS = 1000;

/** A front-end that sends without end must not keep the thread from requests. A right one never sends so much at once. */
const READS_PER_TURN = 256;

/** Whom a server tells. */
export interface ServerEvents {
  connected(): void;
  /** Nothing of the connection is left. */
  ended(reason: EndReason): void;
  /** A bug of ours; nobody else would hear of it in a thread that never returns to its event loop. */
  crashed(error: unknown): void;
}

/** The socket. */
export class VhostUserServer {
  readonly #listener: Listener;
  readonly #backEnd: VhostUserBackEnd;
  readonly #host: UringHost;
  readonly #watches: Watches;
  readonly #events: ServerEvents;
  readonly #watch: Watch;
  #socket: UnixConnection | null = null;
  #stopping = false;

  /** Takes the listener over. */
  constructor(
    listener: Listener,
    backEnd: VhostUserBackEnd,
    host: UringHost,
    watches: Watches,
    events: ServerEvents,
  ) {
    this.#listener = listener;
    this.#backEnd = backEnd;
    this.#host = host;
    this.#watches = watches;
    this.#events = events;
    this.#watch = watches.add(listener.descriptor, () => this.#accept());
  }

  /** Whether a message is being carried out that waits for something. */
  get busy(): boolean {
    const connection = this.#backEnd.connection;
    return connection !== null && (connection.endReason !== null || connection.wantedBytes === 0);
  }

  /** Takes no new front-end, and lets go of the one there is, when what is in flight has ended. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const connection = this.#backEnd.connection;
    // What is in flight goes back to the driver; what is still in the rings is for the next back-end.
    await this.#backEnd.drain();
    connection?.stop();
    await connection?.closed;
    this.#watch.close();
    this.#listener.close();
  }

  /** Lets go of the front-end without a word, after a bug of ours: nobody must wait for ever. */
  abandon(): void {
    this.#stopping = true;
    this.#socket?.close();
    this.#listener.close();
  }

  #accept(): void {
    // The next one waits in the socket's queue.
    if (this.#stopping || this.#backEnd.connection !== null) return;
    const socket = this.#listener.accept(0);
    if (socket === null) return;
    this.#socket = socket;
    const connection = this.#backEnd.open((message, fds) => this.#send(socket, connection, message, fds));
    const read = () => this.#read(socket, connection) || watch.again();
    const watch = this.#watches.add(socket.descriptor, read);
    connection.onReady = read;
    this.#events.connected();
    const end = (reason: EndReason) => {
      watch.close();
      socket.close();
      this.#events.ended(reason);
      this.#accept();
    };
    connection.closed.then(end, (error) => this.#events.crashed(error));
    read();
  }

  /** Reads what is there, but not without end; returns whether that was all. */
  #read(socket: UnixConnection, connection: VhostUserConnection): boolean {
    using descriptors = new DescriptorList();
    for (let left = READS_PER_TURN; connection.wantedBytes > 0; left--) {
      if (left === 0) return false;
      const bytes = new Uint8Array(connection.wantedBytes);
      let count: number;
      try {
        count = socket.receiveSome(bytes, descriptors);
      } catch {
        // Too many descriptors, or a socket that is gone: what came is closed.
        count = 0;
      }
      if (count < 0) break;
      if (count === 0) {
        connection.disconnected();
        break;
      }
      const fds: number[] = [];
      for (let fd = descriptors.take(); fd !== null; fd = descriptors.take()) fds.push(fd);
      connection.receive(bytes.subarray(0, count), fds);
    }
    return true;
  }

  #send(
    socket: UnixConnection,
    connection: VhostUserConnection,
    message: Uint8Array,
    fds: readonly number[],
  ): void {
    try {
      // Calls that were made before this reply must not come after it.
      this.#host.flushNotifiers();
      socket.send(new Uint8Array(message), fds, SEND_TIMEOUT_MS);
    } catch {
      connection.disconnected();
    } finally {
      for (const fd of fds) this.#host.closeFd(fd);
    }
  }
}
