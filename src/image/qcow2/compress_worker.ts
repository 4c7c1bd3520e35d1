/**
 * Compresses batches on a thread of its own: the first message names the compression, each further one is a batch.
 *
 * @module
 */

import { type CompressBatch, compressBatch } from "./compress_batch.ts";
import { type Compressor, compressorFor } from "./compressor.ts";

/** The part of a worker's global scope that is used. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<"zlib" | "zstd" | CompressBatch>) => void) | null;
  postMessage(message: unknown, transfer?: Transferable[]): void;
}

const scope = globalThis as unknown as WorkerScope;
let compress: Compressor | null = null;

scope.onmessage = ({ data: message }) => {
  if (typeof message === "string") {
    compress = compressorFor(message);
    scope.postMessage("ready");
    return;
  }
  const result = compressBatch(message, compress!);
  scope.postMessage(result, [result.clusters, result.data]);
};
