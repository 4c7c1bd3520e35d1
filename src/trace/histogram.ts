/**
 * A histogram of durations with bounded error and bounded memory: 16 linear steps in each power of two, so a value is
 * known to within 6.25 %.
 *
 * @module
 */

const STEPS = 16;
const POWERS = 40;
const COUNT = 0;
const SUM = 1;
const MAX = 2;
const BUCKETS = 3;

/** How many numbers a histogram is. */
export const HISTOGRAM_NUMBERS: number = BUCKETS + (POWERS + 1) * STEPS;

/** Counts values from 0 to 2^40. */
export class Histogram {
  readonly #numbers: Float64Array;

  /** Counts in an array of `HISTOGRAM_NUMBERS`, which others may look at meanwhile; in one of its own by default. */
  constructor(numbers: Float64Array = new Float64Array(HISTOGRAM_NUMBERS)) {
    this.#numbers = numbers;
  }

  /** Counts a value. */
  add(value: number): void {
    const numbers = this.#numbers;
    const whole = Math.max(0, Math.min(2 ** POWERS - 1, Math.floor(value)));
    numbers[BUCKETS + bucketOf(whole)]++;
    numbers[COUNT]++;
    numbers[SUM] += value;
    if (value > numbers[MAX]) numbers[MAX] = value;
  }

  /** Counts what another one has counted too. */
  addAll(other: Histogram): void {
    const numbers = this.#numbers;
    const others = other.#numbers;
    const max = Math.max(numbers[MAX], others[MAX]);
    for (let i = 0; i < numbers.length; i++) numbers[i] += others[i];
    numbers[MAX] = max;
  }

  /** How many values were counted. */
  get count(): number {
    return this.#numbers[COUNT];
  }

  /** All of them together. */
  get sum(): number {
    return this.#numbers[SUM];
  }

  /** Their mean; 0 when there are none. */
  get mean(): number {
    return this.count === 0 ? 0 : this.sum / this.count;
  }

  /** The largest. */
  get max(): number {
    return this.#numbers[MAX];
  }

  /** The value that `share` (0 to 1) of all values do not exceed, to within the width of a step. */
  percentile(share: number): number {
    const wanted = Math.max(1, Math.ceil(share * this.count));
    let seen = 0;
    for (let bucket = 0; bucket < this.#numbers.length - BUCKETS; bucket++) {
      seen += this.#numbers[BUCKETS + bucket];
      if (seen >= wanted) return Math.min(this.max, upperEdge(bucket));
    }
    return this.max;
  }

  /** How many values are below a power of two from 16 on. */
  countBelow(limit: number): number {
    const end = limit >= 2 ** POWERS ? this.#numbers.length - BUCKETS : bucketOf(limit);
    let seen = 0;
    for (let bucket = 0; bucket < end; bucket++) seen += this.#numbers[BUCKETS + bucket];
    return seen;
  }
}

function bucketOf(value: number): number {
  if (value < STEPS) return value;
  const power = value < 2 ** 31 ? 31 - Math.clz32(value) : Math.floor(Math.log2(value));
  return (power - 3) * STEPS + Math.floor(value / 2 ** (power - 4)) - STEPS;
}

function upperEdge(bucket: number): number {
  if (bucket < STEPS) return bucket;
  const power = Math.floor(bucket / STEPS) + 3;
  return (bucket % STEPS + STEPS + 1) * 2 ** (power - 4) - 1;
}
