/**
 * Reads and writes of guest data that have been told a place and are not done with it.
 *
 * @module
 */

/** Counts them, so that a place is not given to somebody else too early. */
export class InFlight {
  /** Of this generation and of the one before. */
  readonly #counts = [0, 0];
  #generation = 0;
  #wake: (() => void) | null = null;

  /** Counts an operation until it ends. What ends at once need not be counted. */
  track<T>(operation: Promise<T>): Promise<T> {
    const generation = this.#generation;
    this.#counts[generation]++;
    return operation.finally(() => {
      if (--this.#counts[generation] === 0 && generation !== this.#generation) this.#wake?.();
    });
  }

  /** Ends when all operations that are counted now have ended. Not to be called again before that. */
  async settle(): Promise<void> {
    const generation = this.#generation;
    this.#generation = 1 - generation;
    if (this.#counts[generation] === 0) return;
    await new Promise<void>((resolve) => this.#wake = resolve);
    this.#wake = null;
  }
}
