/**
 * Keeps work to so many bytes a second.
 *
 * @module
 */

/** Time that has passed, and a way to let it pass. */
export interface Clock {
  now(): number;
  sleep(milliseconds: number): Promise<void>;
}

const CLOCK: Clock = {
  now: () => performance.now(),
  sleep: (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds)),
};

/** A budget that grows with time. */
export class RateLimit {
  readonly #bytesPerMs: number;
  readonly #clock: Clock;
  readonly #startedAt: number;
  #spent = 0;

  constructor(bytesPerSecond: number, clock: Clock = CLOCK) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#clock = clock;
    this.#startedAt = clock.now();
  }

  /** Ends when as much time has passed as everything that was spent takes. */
  async spend(bytes: number): Promise<void> {
    this.#spent += bytes;
    const wait = this.#startedAt + this.#spent / this.#bytesPerMs - this.#clock.now();
    if (wait > 0) await this.#clock.sleep(wait);
  }
}
