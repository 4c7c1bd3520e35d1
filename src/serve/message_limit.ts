/**
 * Keeps a guest from filling the host's log: a driver that does something wrong in every request would have a line for
 * each.
 *
 * @module
 */

import type { Tell } from "./observers.ts";

/** So many messages are told at once; then as many more in each further window of time. */
const MOST_IN_WINDOW = 20;
const WINDOW_MS = 10_000;

/** Passes messages on, but not too many. */
export class MessageLimit {
  readonly #tell: Tell;
  readonly #now: () => number;
  #windowEnd = -Infinity;
  #told = 0;
  #leftOut = 0;

  constructor(tell: Tell, now: () => number = () => performance.now()) {
    this.#tell = tell;
    this.#now = now;
  }

  /** Tells something, or counts it. */
  say(text: string, hint?: string): void {
    const now = this.#now();
    if (now >= this.#windowEnd) {
      this.tellOmitted();
      this.#windowEnd = now + WINDOW_MS;
      this.#told = 0;
    }
    if (this.#told++ < MOST_IN_WINDOW) this.#tell(text, hint);
    else this.#leftOut++;
  }

  /** Says how many were left out. */
  tellOmitted(): void {
    const count = this.#leftOut;
    this.#leftOut = 0;
    if (count > 0) this.#tell(`note: ${count} more message${count === 1 ? " was" : "s were"} left out`);
  }
}
