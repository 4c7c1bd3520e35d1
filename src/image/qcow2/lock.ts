/**
 * One at a time, in the order of asking.
 *
 * @module
 */

/** A lock for asynchronous actions. */
export class Lock {
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  /** Whether somebody has the lock, or waits for it. */
  get busy(): boolean {
    return this.#waiting > 0;
  }

  /** Runs `action` when everybody who asked before is done; ends, or fails, as it does. */
  run<T>(action: () => Promise<T>): Promise<T> {
    this.#waiting++;
    const result = this.#last.then(action).finally(() => this.#waiting--);
    // Whoever comes next does not care how this one ended; the caller does.
    this.#last = result.catch(() => {});
    return result;
  }
}
