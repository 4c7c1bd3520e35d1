/**
 * What a served device did, in numbers that the thread writes while others read them: an array in shared memory, without
 * locks. Each number is one aligned word, so nobody sees half of one; two that belong together may be a request apart.
 *
 * @module
 */

import type { ObservedRequest, RequestObserver } from "../blk/observers.ts";
import type { BlkRequestKind } from "../blk/request.ts";
import { VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP } from "../blk/blk_layout.ts";
import { Histogram, HISTOGRAM_NUMBERS } from "../trace/histogram.ts";

/** Kinds of requests, in the order that they are shown in. */
export const KINDS: readonly BlkRequestKind[] = [
  "read",
  "write",
  "flush",
  "discard",
  "writeZeroes",
  "secureErase",
  "getId",
  "getLifetime",
  "unknown",
];

/** How a request may end. */
export const RESULTS = ["ok", "ioerr", "unsupp"] as const;

/** Single numbers, by name. */
const SINGLES = [
  /** Requests that were started and have not ended. */
  "inFlight",
  /** Requests that were started, and the sum of how many were in flight with each, itself included. */
  "started",
  "depthSum",
  "batches",
  /** Requests that were taken from the rings once more, since the back-end before had not ended them. */
  "replayed",
  "published",
  "calls",
  "callsSuppressed",
  "kicks",
  "tableHits",
  "tableMisses",
  "sizeBytes",
  "frontEnds",
  "connected",
] as const;

/** Name of a number. */
export type Single = typeof SINGLES[number];

const BYTES = RESULTS.length;
const LATENCY = BYTES + 1;
const KIND_NUMBERS = LATENCY + HISTOGRAM_NUMBERS;
const IN_FLIGHT = SINGLES.indexOf("inFlight");
const STARTED = SINGLES.indexOf("started");
const DEPTH_SUM = SINGLES.indexOf("depthSum");

/** Memory for all of it, in bytes. */
const FIGURES_BYTES = 8 * (SINGLES.length + KINDS.length * KIND_NUMBERS);

/** The numbers of one kind of request. */
export interface KindFigures {
  readonly kind: BlkRequestKind;
  /** Requests that ended, by result. */
  readonly results: Readonly<Record<typeof RESULTS[number], number>>;
  /** Bytes of data, of reads and writes that succeeded. */
  readonly bytes: number;
  /** From when a request was taken from the ring to when its status was written, in nanoseconds. */
  readonly latency: Histogram;
}

/** The numbers of a device. */
export class Figures implements RequestObserver {
  /** What to give to another thread. */
  readonly memory: SharedArrayBuffer;
  readonly #singles: Float64Array;
  readonly #kinds: Readonly<Record<BlkRequestKind, { numbers: Float64Array; latency: Histogram }>>;

  /** Sees what is in `memory`; makes new ones at zero without it. */
  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(FIGURES_BYTES)) {
    this.memory = memory;
    this.#singles = new Float64Array(memory, 0, SINGLES.length);
    this.#kinds = Object.fromEntries(KINDS.map((kind, i) => {
      const numbers = new Float64Array(memory, 8 * (SINGLES.length + i * KIND_NUMBERS), KIND_NUMBERS);
      return [kind, { numbers, latency: new Histogram(numbers.subarray(LATENCY)) }];
    })) as Record<BlkRequestKind, { numbers: Float64Array; latency: Histogram }>;
  }

  /**
   * The numbers of several threads together, as they are now: of the disk and of front-ends, those of the first, which
   * alone has to do with them. The depth stays the mean of what each thread had in flight.
   */
  static total(first: Figures, others: readonly Figures[]): Figures {
    const total = new Figures();
    for (const figures of [first, ...others]) {
      figures.#singles.forEach((number, i) => total.#singles[i] += number);
      for (const kind of KINDS) {
        const [from, to] = [figures.#kinds[kind], total.#kinds[kind]];
        for (let i = 0; i < LATENCY; i++) to.numbers[i] += from.numbers[i];
        to.latency.addAll(from.latency);
      }
    }
    for (const name of ["sizeBytes", "frontEnds", "connected"] as const) total.set({ [name]: first.get(name) });
    return total;
  }

  started(request: ObservedRequest): void {
    const singles = this.#singles;
    request.startedAt = performance.now();
    singles[STARTED]++;
    singles[DEPTH_SUM] += ++singles[IN_FLIGHT];
  }

  ended(request: ObservedRequest): void {
    const { kind, status, violation } = request;
    const { numbers, latency } = this.#kinds[kind];
    this.#singles[IN_FLIGHT]--;
    latency.add((performance.now() - request.startedAt) * 1e6);
    if (status === VIRTIO_BLK_S_OK && violation === null) {
      numbers[0]++;
      if (kind === "read") numbers[BYTES] += request.output.byteLength;
      else if (kind === "write") numbers[BYTES] += request.input.byteLength;
    } else numbers[status === VIRTIO_BLK_S_UNSUPP ? 2 : 1]++;
  }

  /** One of the single numbers. */
  get(name: Single): number {
    return this.#singles[SINGLES.indexOf(name)];
  }

  /** Changes single numbers. */
  set(values: Partial<Record<Single, number>>): void {
    for (const [name, value] of Object.entries(values)) this.#singles[SINGLES.indexOf(name as Single)] = value;
  }

  /** The kinds of requests that there were, or all kinds. */
  kinds(all = false): KindFigures[] {
    return KINDS.map((kind): KindFigures => {
      const { numbers, latency } = this.#kinds[kind];
      const [ok, ioerr, unsupp] = numbers;
      return { kind, results: { ok, ioerr, unsupp }, bytes: numbers[BYTES], latency };
    }).filter(({ latency }) => all || latency.count > 0);
  }
}
