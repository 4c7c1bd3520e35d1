/**
 * A batch of clusters on its way to a compressor and back, as it goes between threads.
 *
 * @module
 */

import type { Compressor } from "./compressor.ts";

/** Clusters to compress. */
export interface CompressBatch {
  /** The clusters, one after the other. */
  readonly clusters: ArrayBuffer;
  readonly clusterBytes: number;
  /** Positions of those that are wanted, counted in clusters. */
  readonly wanted: readonly number[];
}

/** What became of them. */
export interface CompressedBatch {
  /** What was given, to be used again. */
  readonly clusters: ArrayBuffer;
  /** Compressed data, one after the other. */
  readonly data: ArrayBuffer;
  /** For each that was wanted the length of its data in bytes; 0 when they would not be smaller. */
  readonly lengths: readonly number[];
}

/** Compresses a batch. */
export function compressBatch(
  { clusters, clusterBytes, wanted }: CompressBatch,
  compress: Compressor,
): CompressedBatch {
  const results = wanted.map((index) => compress(new Uint8Array(clusters, index * clusterBytes, clusterBytes)));
  const lengths = results.map((result) => result?.byteLength ?? 0);
  const data = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
  let at = 0;
  for (const result of results) {
    if (result === null) continue;
    data.set(result, at);
    at += result.byteLength;
  }
  return { clusters, data: data.buffer, lengths };
}
