/**
 * A histogram of durations with bounded error and bounded memory: 16 linear steps in each power of two, so a value is
 * known to within 6.25 %.
 *
 * @module
 */

const STEPS = 16;
const POWERS = 40;

/** Counts values from 0 to 2^40. */
export class Histogram {
  readonly #counts = new Float64Array((POWERS + 1) * STEPS);
  #count = 0;
  #sum = 0;
  #max = 0;

  /** Counts a value. */
  add(value: number): void {
    const whole = Math.max(0, Math.min(2 ** POWERS - 1, Math.floor(value)));
    this.#counts[bucketOf(whole)]++;
    this.#count++;
    this.#sum += value;
    if (value > this.#max) this.#max = value;
  }

  /** How many values were counted. */
  get count(): number {
    return this.#count;
  }

  /** Their mean; 0 when there are none. */
  get mean(): number {
    return this.#count === 0 ? 0 : this.#sum / this.#count;
  }

  /** The largest. */
  get max(): number {
    return this.#max;
  }

  /** The value that `share` (0 to 1) of all values do not exceed, to within the width of a step. */
  percentile(share: number): number {
    const wanted = Math.max(1, Math.ceil(share * this.#count));
    let seen = 0;
    for (let bucket = 0; bucket < this.#counts.length; bucket++) {
      seen += this.#counts[bucket];
      if (seen >= wanted) return Math.min(this.#max, upperEdge(bucket));
    }
    return this.#max;
  }
}

function bucketOf(value: number): number {
  if (value < STEPS) return value;
  const power = Math.floor(Math.log2(value));
  return (power - 3) * STEPS + Math.floor(value / 2 ** (power - 4)) - STEPS;
}

function upperEdge(bucket: number): number {
  if (bucket < STEPS) return bucket;
  const power = Math.floor(bucket / STEPS) + 3;
  return (bucket % STEPS + STEPS + 1) * 2 ** (power - 4) - 1;
}
