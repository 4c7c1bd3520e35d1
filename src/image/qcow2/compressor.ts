/**
 * Compressing a cluster: raw deflate with the window that the format allows, or one zstd frame (QEMU's
 * docs/interop/qcow2, "Compressed Clusters Descriptor"), at the levels that QEMU uses.
 *
 * @module
 */

import zlib from "node:zlib";

/** Turns a cluster into its compressed data; `null` when they would not be smaller: then it is stored as it is. */
export type Compressor = (cluster: Uint8Array) => Uint8Array<ArrayBuffer> | null;

/** The compressor for a compression type; `null` where this Deno has none (zstd needs a newer one than 2.4). */
export function compressorFor(compression: "zlib" | "zstd"): Compressor | null {
  if (compression === "zlib") return deflate;
  return typeof zlib.zstdCompressSync === "function" ? zstd : null;
}

/** A reader may keep no more than 4096 bytes of what it has read: 2 to the power of 12. */
const WINDOW_BITS = 12;
/** As much memory as there is for finding matches, as in QEMU. */
const MEM_LEVEL = 9;

function deflate(cluster: Uint8Array): Uint8Array<ArrayBuffer> | null {
  const data = zlib.deflateRawSync(cluster, {
    windowBits: WINDOW_BITS,
    memLevel: MEM_LEVEL,
    chunkSize: Math.max(64, cluster.byteLength),
  });
  return data.byteLength < cluster.byteLength ? data as Uint8Array<ArrayBuffer> : null;
}

function zstd(cluster: Uint8Array): Uint8Array<ArrayBuffer> | null {
  // With the size known beforehand the library takes smaller tables, and less time.
  const options = { pledgedSrcSize: cluster.byteLength, chunkSize: Math.max(64, cluster.byteLength) };
  const data = zlib.zstdCompressSync(cluster, options);
  return data.byteLength < cluster.byteLength ? data as Uint8Array<ArrayBuffer> : null;
}
