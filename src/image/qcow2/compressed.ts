/**
 * Compressed clusters: raw deflate, or zstd (QEMU's docs/interop/qcow2, "Additional fields" and "Compressed Clusters
 * Descriptor").
 *
 * The length of the compressed data is known in sectors only, so what follows in the last of them, often the next
 * cluster, must not disturb. Nothing beyond one cluster is ever produced, whatever the data would grow to.
 *
 * @module
 */

import zlib from "node:zlib";

/** Turns the compressed data of a cluster into the cluster; `null` when they are broken. */
export type Decompressor = (data: Uint8Array<ArrayBuffer>, clusterBytes: number) => Uint8Array | null;

/** The decompressor for a compression type; `null` where this Deno has none (zstd needs a newer one than 2.4). */
export function decompressorFor(compression: "zlib" | "zstd"): Decompressor | null {
  if (compression === "zlib") return inflate;
  return typeof zlib.zstdDecompressSync === "function" ? unzstd : null;
}

function inflate(data: Uint8Array<ArrayBuffer>, clusterBytes: number): Uint8Array | null {
  try {
    const cluster = zlib.inflateRawSync(data, {
      maxOutputLength: clusterBytes,
      chunkSize: clusterBytes,
      // As in QEMU, a cluster is complete when its bytes are, even if the mark at the end is not there.
      finishFlush: zlib.constants.Z_SYNC_FLUSH,
    });
    return cluster.byteLength === clusterBytes ? cluster : null;
  } catch {
    return null;
  }
}

function unzstd(data: Uint8Array<ArrayBuffer>, clusterBytes: number): Uint8Array | null {
  const parts: Uint8Array[] = [];
  let left = clusterBytes;
  for (let at = 0; left > 0;) {
    const frame = zstdFrameLength(data, at);
    if (frame === null) return null;
    if (!frame.skippable) {
      const part = unzstdFrame(data.subarray(at, at + frame.lengthBytes), left);
      if (part === null) return null;
      parts.push(part);
      left -= part.byteLength;
    }
    at += frame.lengthBytes;
  }
  return parts.length === 1 ? parts[0] : concatenate(parts, clusterBytes);
}

function unzstdFrame(frame: Uint8Array<ArrayBuffer>, most: number): Uint8Array | null {
  try {
    const part = zlib.zstdDecompressSync(frame, { maxOutputLength: most, chunkSize: Math.max(64, most) });
    return part.byteLength <= most ? part : null;
  } catch {
    return null;
  }
}

function concatenate(parts: readonly Uint8Array[], lengthBytes: number): Uint8Array {
  const whole = new Uint8Array(lengthBytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.byteLength;
  }
  return whole;
}

const ZSTD_MAGIC = 0xfd2fb528;
/** Sizes of the fields that the two flags in a frame's descriptor stand for (RFC 8878 §3.1.1.1.1). */
const DICTIONARY_ID_BYTES = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES = [0, 2, 4, 8];

/**
 * Where the zstd frame that starts at `from` ends (RFC 8878 §3.1). The library takes whole frames only, and what
 * follows this one is not ours.
 *
 * @returns `null` when there is no whole frame
 */
export function zstdFrameLength(data: Uint8Array, from: number): { lengthBytes: number; skippable: boolean } | null {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const end = data.byteLength;
  if (end - from < 8) return null;
  const magic = view.getUint32(from, true);
  if ((magic & 0xfffffff0) >>> 0 === 0x184d2a50) {
    const lengthBytes = 8 + view.getUint32(from + 4, true);
    return lengthBytes <= end - from ? { lengthBytes, skippable: true } : null;
  }
  if (magic !== ZSTD_MAGIC) return null;
  const descriptor = data[from + 4];
  const singleSegment = (descriptor & 0x20) !== 0;
  const contentSize = singleSegment && descriptor >> 6 === 0 ? 1 : CONTENT_SIZE_BYTES[descriptor >> 6];
  let at = from + 5 + (singleSegment ? 0 : 1) + DICTIONARY_ID_BYTES[descriptor & 3] + contentSize;
  for (let last = false; !last;) {
    if (end - at < 3) return null;
    const header = data[at] | data[at + 1] << 8 | data[at + 2] << 16;
    last = (header & 1) !== 0;
    const type = (header >> 1) & 3;
    // One byte that is repeated; any other block has as many bytes as it says.
    at += 3 + (type === 1 ? 1 : header >> 3);
  }
  if ((descriptor & 4) !== 0) at += 4;
  return at <= end ? { lengthBytes: at - from, skippable: false } : null;
}
