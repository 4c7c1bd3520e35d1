/**
 * Finding zeros in large buffers.
 *
 * @module
 */

/** Whether a range of a buffer is zeros. Faster when its start is a multiple of 4 in its ArrayBuffer. */
export function isZeros(bytes: Uint8Array, from: number, to: number): boolean {
  const start = bytes.byteOffset + from;
  let at = from;
  if (start % 4 === 0 && to - from >= 32) {
    const words = (to - from) >>> 5 << 3;
    if (!areZeroWords(new Int32Array(bytes.buffer, start, words), 0, words)) return false;
    at += words * 4;
  }
  for (; at < to; at++) {
    if (bytes[at] !== 0) return false;
  }
  return true;
}

/** Whether words from `from` to `to` are zeros; their count is a multiple of 8. */
export function areZeroWords(words: Int32Array, from: number, to: number): boolean {
  // Eight at a time: one comparison for each 32 bytes.
  for (let i = from; i < to; i += 8) {
    const some = words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] | words[i + 6] |
      words[i + 7];
    if (some !== 0) return false;
  }
  return true;
}

const BLOCK_BYTES = 4096;

/** Index of the first byte that is not zero; -1 when there is none. */
export function firstNonZero(bytes: Uint8Array): number {
  for (let at = 0; at < bytes.byteLength; at += BLOCK_BYTES) {
    const end = Math.min(at + BLOCK_BYTES, bytes.byteLength);
    if (isZeros(bytes, at, end)) continue;
    for (let i = at; i < end; i++) {
      if (bytes[i] !== 0) return i;
    }
  }
  return -1;
}
