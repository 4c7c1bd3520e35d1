/**
 * How the main thread reaches a thread that never returns to Deno's event loop: a word in shared memory, and an eventfd
 * that the thread watches.
 *
 * @module
 */

import { EventFd } from "../host/event_fd.ts";

/** What the main thread may want: bits of the word. */
export const WISH = { stop: 1, statistics: 2 } as const;

/** What a thread is given: it can be sent. */
export interface ControlEnd {
  readonly memory: SharedArrayBuffer;
  readonly descriptor: number;
}

/** The main thread's end. */
export class Control {
  readonly #word: Int32Array;
  readonly #event: EventFd;

  constructor() {
    this.#word = new Int32Array(new SharedArrayBuffer(4));
    this.#event = EventFd.create();
  }

  /** For the thread. */
  get end(): ControlEnd {
    return { memory: this.#word.buffer as SharedArrayBuffer, descriptor: this.#event.descriptor };
  }

  /** Asks for something. */
  ask(wish: number): void {
    Atomics.or(this.#word, 0, wish);
    this.#event.signal();
  }
}

/** The thread's end. */
export class ControlReader {
  readonly #word: Int32Array;
  readonly #event: EventFd;

  constructor({ memory, descriptor }: ControlEnd) {
    this.#word = new Int32Array(memory);
    this.#event = new EventFd(descriptor);
  }

  /** What to watch. */
  get descriptor(): number {
    return this.#event.descriptor;
  }

  /** What is wanted, each wish once. */
  take(): number {
    this.#event.drain();
    return Atomics.exchange(this.#word, 0, 0);
  }
}
