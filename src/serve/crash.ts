/**
 * Bugs of ours that show in a promise nobody waits for: the thread ends with the first of them, since who is told that
 * something goes on must not wait for what will never come.
 *
 * @module
 */

/** The end of a thread by a bug. */
export class Crash {
  #happened = false;
  #reject!: (error: unknown) => void;
  readonly #promise: Promise<never>;

  constructor() {
    this.#promise = new Promise((_, reject) => this.#reject = reject);
    // Somebody may ask later, or never.
    this.#promise.catch(() => {});
  }

  /** Whether there was one. */
  get happened(): boolean {
    return this.#happened;
  }

  /** Hears of one. */
  readonly note = (error: unknown): void => {
    this.#happened = true;
    this.#reject(error);
  };

  /**
   * Ends as a promise does, unless there is a bug first.
   *
   * @throws what was noted first
   */
  async unless<T>(promise: Promise<T> | null): Promise<T | null> {
    return await (this.#happened ? this.#promise : Promise.race([this.#promise, promise]));
  }
}
