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

/** A write to an eventfd that may have to wait. */
interface WaitingCall {
  pending: boolean;
  /** Another call came meanwhile. */
  again: boolean;
}

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

  /** Submitted with whatever else there is. A full counter tells the front-end just as much. */
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
      },
      close: () => {
        ring.submit();
        close(fd);
      },
    };
  }

  /**
   * For one that waits when it is full: the kernel does so in our place. Never more than one write at a time: a
   * front-end that lets it wait for ever must not make the kernel keep ever more of them.
   */
  #patient(fd: number): Notifier {
    const engine = this.#engine;
    const { ring } = engine;
    const owner = this.#owner;
    const token = this.#nextToken++;
    const call: WaitingCall = { pending: false, again: false };
    const submit = () => {
      call.pending = true;
      call.again = false;
      engine.submitAny(owner, token, OP.WRITE, fd, addressOf(ONE.buffer), 8, 0);
    };
    this.#waiting.set(token, () => {
      call.pending = false;
      if (call.again) submit();
    });
    return {
      signal: () => {
        if (call.pending) call.again = true;
        else submit();
      },
      close: () => {
        this.#waiting.delete(token);
        ring.submit();
        if (call.pending) {
          while (!ring.prepareCancel(this.#quiet, 0, owner, token)) engine.makeRoom();
          ring.submit();
        }
        close(fd);
      },
    };
  }
}
