/**
 * What vhost-user asks of the machine, on Linux: mappings, eventfds and sockets, with one io_uring for the waiting and
 * for the calls.
 *
 * @module
 */

import { EventFd } from "../host/event_fd.ts";
import { OP } from "../host/io_uring_layout.ts";
import { close, memfdCreate } from "../host/libc.ts";
import { addressOf, Mapping } from "../host/mapping.ts";
import { UnixConnection } from "../host/unix_connection.ts";
import type { UringEngine } from "../storage/uring_engine.ts";
import type { BackendChannel, Closable, MappedBytes, Notifier, VhostUserHost } from "../transport/vhost_user/seams.ts";
import type { Watches } from "./watches.ts";

/** What is written to an eventfd: the number 1, at an address that the kernel can read at any time. */
const ONE = new BigUint64Array([1n]);

/** The machine, as far as one thread's io_uring goes. */
export class UringHost implements VhostUserHost {
  readonly #engine: UringEngine;
  readonly #watches: Watches;
  /** For results that nobody wants to know. */
  readonly #owner: number;
  /** Rings without a kick descriptor, to be looked at again and again. */
  readonly #polled = new Set<() => void>();

  constructor(engine: UringEngine, watches: Watches) {
    this.#engine = engine;
    this.#watches = watches;
    this.#owner = engine.register(() => {});
  }

  /** Whether there are rings that have to be polled. */
  get polls(): boolean {
    return this.#polled.size > 0;
  }

  /** Looks at the rings that have to be polled. */
  pollRings(): void {
    for (const onKick of this.#polled) onKick();
  }

  /** Makes the calls that are waiting for the next submission. */
  flushNotifiers(): void {
    this.#engine.ring.submit();
  }

  closeFd(fd: number): void {
    close(fd);
  }

  map(fd: number, offset: number, sizeBytes: number): MappedBytes {
    return Mapping.ofFile(fd, { offset, lengthBytes: sizeBytes });
  }

  createShared(name: string, sizeBytes: number): number {
    return memfdCreate(name, sizeBytes);
  }

  notifier(fd: number): Notifier {
    const engine = this.#engine;
    const owner = this.#owner;
    const address = addressOf(ONE.buffer);
    return {
      // Submitted with whatever else there is; a front-end that lets the counter fill up holds up nobody but itself.
      signal: () => {
        const { ring } = engine;
        while (!ring.prepare(owner, 0, OP.WRITE, fd, address, 8, 0, 0, 0, ring.silent)) engine.makeRoom();
      },
      close: () => {
        engine.ring.submit();
        close(fd);
      },
    };
  }

  watchKicks(fd: number | null, onKick: () => void): Closable {
    if (fd === null) {
      this.#polled.add(onKick);
      return { close: () => this.#polled.delete(onKick) };
    }
    const kicks = new EventFd(fd);
    // Each kick wakes the watch, whatever the counter is; to empty it every time would take two system calls. It is
    // emptied in the end: the front-end may take a kick that is left in it for a new one.
    const watch = this.#watches.add(fd, onKick);
    return {
      close: () => {
        watch.close();
        kicks.drain();
        kicks.close();
      },
    };
  }

  backendChannel(fd: number): BackendChannel {
    const connection = new UnixConnection(fd);
    return {
      send: (message) => {
        try {
          connection.send(new Uint8Array(message), [], 0);
        } catch {
          // A front-end that does not listen learns of the change when it asks.
        }
      },
      close: () => connection.close(),
    };
  }
}
