/**
 * The numbers of a served device as one plain object: what `--stats` prints and the control socket answers.
 *
 * @module
 */

import { Figures } from "./figures.ts";

/** Numbers of one kind of request; all of them since the start. */
export interface ServedKind {
  /** Name of the request type, as in `writeZeroes`. */
  readonly kind: string;
  /** Requests that ended. */
  readonly requests: number;
  /** Those of them whose status was not S_OK. */
  readonly failed: number;
  /** Bytes of data, of reads and writes. */
  readonly bytes: number;
  /** From the ring to the status, in microseconds. */
  readonly latency: { readonly mean: number; readonly p50: number; readonly p99: number; readonly max: number };
}

/** All numbers, since the start. */
export interface ServedReport {
  /** One for each kind of request that there was; none when they are not counted one by one. */
  readonly kinds: readonly ServedKind[];
  /** Requests that ended, of all kinds. */
  readonly requests: number;
  /** Bytes of data, of reads and writes. */
  readonly bytes: number;
  readonly inFlight: number;
  /** How many were in flight as one started, on average, itself included. */
  readonly meanDepth: number;
  readonly buffers: number;
  /** Requests that a process before this one had in flight as it ended, and that were carried out again. */
  readonly replayed: number;
  readonly batches: number;
  readonly meanBatch: number;
  /** Notifications by the driver, and of the driver. */
  readonly kicks: number;
  readonly calls: number;
  readonly callsSuppressed: number;
  /** Parts of qcow2 tables that were in memory when they were needed, and that were not. */
  readonly tableHits: number;
  readonly tableMisses: number;
  readonly sizeBytes: number;
  readonly frontEnds: number;
  readonly connected: boolean;
  /** Of each thread, the first one first; left out when there is only one. */
  readonly threads?: readonly ThreadReport[];
}

/** What one of several threads did. */
export interface ThreadReport {
  readonly buffers: number;
  readonly kicks: number;
  readonly calls: number;
}

/** The numbers of several threads, together and one by one. */
export function threadsReport(first: Figures, others: readonly Figures[]): ServedReport {
  if (others.length === 0) return servedReport(first);
  const threads = [first, ...others].map((figures): ThreadReport => ({
    buffers: figures.get("published"),
    kicks: figures.get("kicks"),
    calls: figures.get("calls"),
  }));
  return { ...servedReport(Figures.total(first, others)), threads };
}

/** The numbers so far. */
export function servedReport(figures: Figures): ServedReport {
  const kinds = figures.kinds().map(({ kind, results, bytes, latency }): ServedKind => {
    const us = (nanoseconds: number) => nanoseconds / 1000;
    return {
      kind,
      requests: latency.count,
      failed: results.ioerr + results.unsupp,
      bytes,
      latency: {
        mean: us(latency.mean),
        p50: us(latency.percentile(0.5)),
        p99: us(latency.percentile(0.99)),
        max: us(latency.max),
      },
    };
  });
  const share = (sum: number, count: number) => count === 0 ? 0 : sum / count;
  const get = figures.get.bind(figures);
  return {
    kinds,
    requests: kinds.reduce((sum, { requests }) => sum + requests, 0),
    bytes: kinds.reduce((sum, { bytes }) => sum + bytes, 0),
    inFlight: get("inFlight"),
    meanDepth: share(get("depthSum"), get("started")),
    buffers: get("published"),
    replayed: get("replayed"),
    batches: get("batches"),
    meanBatch: share(get("published"), get("batches")),
    kicks: get("kicks"),
    calls: get("calls"),
    callsSuppressed: get("callsSuppressed"),
    tableHits: get("tableHits"),
    tableMisses: get("tableMisses"),
    sizeBytes: get("sizeBytes"),
    frontEnds: get("frontEnds"),
    connected: get("connected") === 1,
  };
}
