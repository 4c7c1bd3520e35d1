/**
 * The back-end side of vhost-user for a device: one session after the other.
 *
 * No socket and no event loop: whoever has them feeds a connection bytes and descriptors, and calls what `VhostUserHost`
 * asks for.
 *
 * @module
 */

import type { Device } from "../../virtio/device.ts";
import { type Send, VhostUserConnection } from "./connection.ts";
import { type MessageHandler, SessionHandler } from "./message_handler.ts";
import { type Peer, PeerHandler } from "./peer.ts";
import { after, type Completion, type VhostUserHost } from "./seams.ts";
import { Session, type SessionObservers } from "./session.ts";
import { Splitter } from "./splitter.ts";

/** The back-ends, in threads of their own, that have some of the rings of one that has the front-end's socket. */
export interface OtherBackEnds {
  /** Has each of them start a session. */
  connect(): readonly Peer[];
  /** As `VhostUserBackEnd.drain`, for all of them. */
  drain(): Promise<void>;
}

/** A device behind a vhost-user socket. */
export class VhostUserBackEnd {
  readonly #device: Device;
  readonly #host: VhostUserHost;
  readonly #observers: SessionObservers;
  readonly #others: OtherBackEnds | "first" | null;
  #session: Session | null = null;
  #connection: VhostUserConnection | null = null;

  /**
   * Takes the device over: nobody else may drive it.
   *
   * @param others those who have some of its rings; `"first"` when this is one of them, and the front-end is another's;
   * `null` when it has all rings
   */
  constructor(
    device: Device,
    host: VhostUserHost,
    observers: SessionObservers = {},
    others: OtherBackEnds | "first" | null = null,
  ) {
    this.#others = others;
    this.#device = device;
    this.#host = host;
    this.#observers = observers;
    device.connect({
      besideDriver: true,
      usedBuffer: (queue) => this.#session?.rings[queue].call(),
      configChanged: () => this.#session?.configChanged(),
      needsReset: (violation) => this.#session?.needsReset(violation),
    });
  }

  /** The connection that is being served, or is ending; `null` when the next may come. */
  get connection(): VhostUserConnection | null {
    return this.#connection;
  }

  /**
   * Starts to serve a front-end that has connected.
   *
   * @param send sends a message to it; takes the descriptors over
   * @throws RangeError while another is served
   */
  open(send: Send): VhostUserConnection {
    if (this.#connection !== null) throw new RangeError("another front-end is connected");
    const session = new Session(this.#device, this.#host, this.#observers);
    const handler = this.#handlerOf(session);
    const connection = new VhostUserConnection(handler, send);
    if (handler instanceof Splitter) handler.onLost = () => connection.stop();
    this.#session = session;
    this.#connection = connection;
    const gone = () => {
      this.#session = null;
      this.#connection = null;
    };
    connection.closed.then(gone, gone);
    return connection;
  }

  /**
   * Returns everything that is in flight to the driver and starts nothing more, for good: before the process ends.
   * What is left in the rings is for the next back-end.
   */
  drain(): Completion {
    let done: Completion = undefined;
    for (let index = 0; index < this.#device.queueSizes(this.#device.features).length; index++) {
      const paused = this.#device.pauseQueue(index);
      done = after(done, () => paused);
    }
    const others = this.#others;
    if (others === null || others === "first") return done;
    const drained = others.drain();
    return after(done, () => drained);
  }

  #handlerOf(session: Session): MessageHandler {
    if (this.#others === null) return new SessionHandler(session);
    if (this.#others === "first") return new PeerHandler(session);
    return new Splitter(session, this.#others.connect());
  }
}
