/**
 * Who may change a file when: many at once who write to different places, or one alone who changes its size, or who
 * writes part of a block that can only be written as a whole.
 *
 * @module
 */

/** A lock for many writers or one. The one is let in before writers who came later. */
export class WriteGate {
  #writers = 0;
  #isAlone = false;
  /** Those who wait to be alone. */
  readonly #alone: (() => void)[] = [];
  /** Writers who wait until nobody is, or wants to be, alone. */
  #waiting: (() => void)[] = [];

  /** How many are inside. */
  get inside(): number {
    return this.#writers + (this.#isAlone ? 1 : 0);
  }

  /** Whether a writer need not wait. */
  get isOpen(): boolean {
    return !this.#isAlone && this.#alone.length === 0;
  }

  /** Lets a writer in if it need not wait. */
  tryEnter(): boolean {
    if (!this.isOpen) return false;
    this.#writers++;
    return true;
  }

  /** Lets a writer in when it may. */
  async enter(): Promise<void> {
    while (!this.tryEnter()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Ends what `tryEnter` or `enter` began. */
  leave(): void {
    this.#writers--;
    this.#next();
  }

  /** Runs an action when nobody is inside, and lets nobody in meanwhile. */
  async alone<T>(action: () => Promise<T> | T): Promise<T> {
    if (this.inside > 0) {
      // Whoever is last out hands it over: it is never free in between.
      await new Promise<void>((resolve) => this.#alone.push(resolve));
    } else {
      this.#isAlone = true;
    }
    try {
      return await action();
    } finally {
      this.#isAlone = false;
      this.#next();
    }
  }

  #next(): void {
    if (this.inside > 0) return;
    const next = this.#alone.shift();
    if (next !== undefined) {
      this.#isAlone = true;
      return next();
    }
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
