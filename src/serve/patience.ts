/**
 * How long a thread looks for something to do before it sleeps.
 *
 * @module
 */

/** The clock is looked at only now and then: that costs as much as a look at a ring. */
const LOOKS_BETWEEN_CLOCKS = 16;
/** What it begins with when it pays again. */
const SHORT_PATIENCE_MS = 0.004;

/**
 * How long to look for something to do before sleeping. As QEMU's: longer when a little more would have found what woke
 * us, shorter and in the end not at all when it would not.
 */
export class Patience {
  readonly #mostMs: number;
  #nowMs: number;
  #since = performance.now();
  #looks = 0;

  constructor(mostMs: number) {
    this.#mostMs = mostMs;
    this.#nowMs = mostMs;
  }

  /** Whether to look once more. */
  get isLeft(): boolean {
    if (this.#nowMs === 0) return false;
    if (++this.#looks % LOOKS_BETWEEN_CLOCKS !== 0) return true;
    return performance.now() - this.#since < this.#nowMs;
  }

  /** There was something: the time begins again. */
  found(): void {
    if (this.#nowMs > 0) this.#since = performance.now();
  }

  /** Sleeps, and learns from how long it was. */
  sleep(action: () => void): void {
    if (this.#mostMs === 0) return action();
    const before = performance.now();
    action();
    this.#since = performance.now();
    const inVainMs = this.#since - before + this.#nowMs;
    // Halved, not given up at once: a load with a gap in it would have to begin again, with sleeps, at the shortest.
    if (inVainMs > this.#mostMs) this.#nowMs = this.#nowMs < 2 * SHORT_PATIENCE_MS ? 0 : this.#nowMs / 2;
    else this.#nowMs = Math.min(this.#mostMs, Math.max(SHORT_PATIENCE_MS, 2 * this.#nowMs));
  }
}
