/**
 * Repeatable randomness for tests: everything follows from a seed of 32 bits, and the seed is in the message when a
 * test fails.
 *
 * @module
 */

/** A small generator (mulberry32): 2^32 states, good enough to pick shapes and sizes. */
export class Random {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed >>> 0;
    this.#state = this.seed;
  }

  /** A whole number from 0 to 2^32 - 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** A whole number from 0 to `limit` - 1; `limit` is at most 2^32. */
  below(limit: number): number {
    return Math.floor(this.next() / 0x1_0000_0000 * limit);
  }

  /** A whole number from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  /** `true` once in `n` times. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  /** One of the items. */
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }

  /** Fills `target` with random bytes. */
  fill(target: Uint8Array): Uint8Array {
    for (let i = 0; i < target.byteLength; i++) target[i] = this.next();
    return target;
  }

  /** Random bytes. */
  bytes(lengthBytes: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(lengthBytes);
    this.fill(bytes);
    return bytes;
  }

  /** Puts the items into a random order, in place. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [items[i], items[j]] = [items[j], items[i]];
    }
    return items;
  }
}

/**
 * Runs `body` with a generator for each seed from `first` on. When it fails, the seed is put in front of the message,
 * so that `forSeeds(1, seed, body)` repeats the failure alone.
 */
export function forSeeds(count: number, first: number, body: (random: Random) => void): void {
  for (let seed = first; seed < first + count; seed++) {
    try {
      body(new Random(seed));
    } catch (error) {
      throw withSeed(error, seed);
    }
  }
}

/** `forSeeds` for a body that waits. */
export async function forSeedsAsync(
  count: number,
  first: number,
  body: (random: Random) => Promise<void>,
): Promise<void> {
  for (let seed = first; seed < first + count; seed++) {
    try {
      await body(new Random(seed));
    } catch (error) {
      throw withSeed(error, seed);
    }
  }
}

function withSeed(error: unknown, seed: number): Error {
  const message = error instanceof Error ? error.message : String(error);
  return new Error(`with seed ${seed}: ${message}`, { cause: error });
}
