/**
 * What vhost-user asks of the machine, on Linux: mappings, eventfds and sockets, with one io_uring for the waiting and
 * for the calls.
 *
 * @module
 */

import { EventFd } from "../host/event_fd.ts";
import { close, duplicate, memfdCreate } from "../host/libc.ts";
import { Mapping } from "../host/mapping.ts";
import { UnixConnection } from "../host/unix_connection.ts";
import type { UringEngine } from "../storage/uring_engine.ts";
import type { BackendChannel, Closable, MappedBytes, Notifier, VhostUserHost } from "../transport/vhost_user/seams.ts";
import { CallNotifiers, checkEventFd } from "./call_notifier.ts";
import type { Watches } from "./watches.ts";

/** The machine, as far as one thread's io_uring goes. */
export class UringHost implements VhostUserHost {
  readonly #engine: UringEngine;
  readonly #watches: Watches;
  readonly #calls: CallNotifiers;
  /** Rings without a kick descriptor, to be looked at again and again. */
  readonly #polled = new Set<() => void>();
  /** Kicks that came, as far as they were seen: several may have become one. */
  kickCount = 0;

  constructor(engine: UringEngine, watches: Watches) {
    this.#engine = engine;
    this.#watches = watches;
    this.#calls = new CallNotifiers(engine);
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

  duplicateFd(fd: number): number {
    return duplicate(fd);
  }

  map(fd: number, offset: number, sizeBytes: number): MappedBytes {
    return Mapping.ofFile(fd, { offset, lengthBytes: sizeBytes });
  }

  createShared(name: string, sizeBytes: number): number {
    return memfdCreate(name, sizeBytes);
  }

  notifier(fd: number): Notifier {
    return this.#calls.take(fd);
  }

  watchKicks(fd: number | null, onKick: () => void): Closable {
    if (fd === null) {
      this.#polled.add(onKick);
      return { close: () => this.#polled.delete(onKick) };
    }
    checkEventFd(fd);
    const kicks = new EventFd(fd);
    // Each kick wakes the watch, whatever the counter is; to empty it every time would take two system calls. It is
    // emptied in the end: the front-end may take a kick that is left in it for a new one.
    const watch = this.#watches.add(fd, () => {
      this.kickCount++;
      onKick();
    });
    return {
      close: () => {
        watch.close();
        try {
          kicks.drain();
        } catch {
          // It was no eventfd after all.
        }
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
