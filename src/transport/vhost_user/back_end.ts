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
import type { Completion, VhostUserHost } from "./seams.ts";
import { after } from "./seams.ts";
import { Session, type SessionObservers } from "./session.ts";

/** A device behind a vhost-user socket. */
export class VhostUserBackEnd {
  readonly #device: Device;
  readonly #host: VhostUserHost;
  readonly #observers: SessionObservers;
  #session: Session | null = null;
  #connection: VhostUserConnection | null = null;

  /** Takes the device over: nobody else may drive it. */
  constructor(device: Device, host: VhostUserHost, observers: SessionObservers = {}) {
    this.#device = device;
    this.#host = host;
    this.#observers = observers;
    device.connect({
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
    const connection = new VhostUserConnection(session, send);
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
    return done;
  }
}
