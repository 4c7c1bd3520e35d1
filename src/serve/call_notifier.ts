/**
 * Calls: eventfds that the front-end sent, written to through io_uring. They are hostile as everything else: full, of
 * the kind that waits, or no eventfds at all. Nothing waits for them here, and nothing piles up.
 *
 * @module
 */

import { OP } from "../host/io_uring_layout.ts";
import { close, fstat, isNonBlocking, RWF_NOWAIT } from "../host/libc.ts";
import { addressOf } from "../host/mapping.ts";
import type { UringEngine } from "../storage/uring_engine.ts";
import type { Notifier } from "../transport/vhost_user/seams.ts";

/** What is written to an eventfd: the number 1, at an address that the kernel can read at any time. */
const ONE = new BigUint64Array([1n]);

/** Writes to one eventfd that may be waiting at a time: a front-end could let them wait for ever. */
const MOST_WAITING = 64;

/**
 * Refuses a descriptor that is surely no eventfd, and closes it. A file that is always ready to be read would keep
 * the thread busy as a kick descriptor. (Other things without a name than eventfds only disappoint their sender.)
 *
 * @throws RangeError
 */
export function checkEventFd(fd: number): void {
  if (fstat(fd).kind === "anonymous") return;
  close(fd);
  throw new RangeError("an eventfd is needed, and something else came");
}

/** All calls of a thread. */
export class CallNotifiers {
  readonly #engine: UringEngine;
  /** For results that nobody wants to know. */
  readonly #quiet: number;
  readonly #owner: number;
  readonly #waiting = new Map<number, () => void>();
  #nextToken = 0;

  constructor(engine: UringEngine) {
    this.#engine = engine;
    this.#quiet = engine.register(() => {});
    this.#owner = engine.register((token) => this.#waiting.get(token)?.());
  }

  /** Takes a descriptor over. */
  take(fd: number): Notifier {
    checkEventFd(fd);
    return isNonBlocking(fd) ? this.#quick(fd) : this.#patient(fd);
  }

  /** A full counter tells the front-end just as much. */
  #quick(fd: number): Notifier {
    const engine = this.#engine;
    const { ring } = engine;
    const address = addressOf(ONE.buffer);
    const owner = this.#quiet;
    // The front-end could make it one that waits later on. A kernel that can leave out results knows this flag as well.
    const flags = ring.silent === 0 ? 0 : RWF_NOWAIT;
    return {
      signal: () => {
        while (!ring.prepare(owner, 0, OP.WRITE, fd, address, 8, 0, flags, 0, ring.silent)) engine.makeRoom();
        // Now: it takes a driver that sleeps longer to wake up than us to carry out the next request.
        ring.submit();
      },
      close: () => {
        // What the kernel did not take at once.
        ring.submit();
        close(fd);
      },
    };
  }

  /**
   * For one that waits when it is full: the kernel does so in our place. Most are written at once all the same, and a
   * call must not wait for the result of the last one to be looked at: the driver would sleep meanwhile.
   */
  #patient(fd: number): Notifier {
    const engine = this.#engine;
    const { ring } = engine;
    const owner = this.#owner;
    const token = this.#nextToken++;
    let pending = 0;
    // Another call came when no more could wait.
    let again = false;
    const submit = () => {
      pending++;
      again = false;
      engine.submitAny(owner, token, OP.WRITE, fd, addressOf(ONE.buffer), 8, 0);
      ring.submit();
    };
    this.#waiting.set(token, () => {
      pending--;
      if (again) submit();
    });
    return {
      signal: () => {
        if (pending < MOST_WAITING) submit();
        else again = true;
      },
      close: () => {
        this.#waiting.delete(token);
        ring.submit();
        if (pending > 0) {
          while (!ring.prepareCancel(this.#quiet, 0, owner, token)) engine.makeRoom();
          ring.submit();
        }
        close(fd);
      },
    };
  }
}
