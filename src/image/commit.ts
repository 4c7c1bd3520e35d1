/**
 * Writes what an image has into one that is behind it.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Image } from "./image.ts";
import { backingOf, type ChainExtent, mapChain } from "./map_chain.ts";
import { RateLimit } from "./rate_limit.ts";

/** How to commit. */
export interface CommitOptions {
  /** Which of the images behind is written to, counted from 1; it was opened for writing. */
  readonly depth: number;
  /** Told how far it has come; both in bytes. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Most bytes to write in a second. */
  readonly bytesPerSecond?: number;
}

const CHUNK_BYTES = 2 << 20;

/** The image so many images behind another one; `null` when the chain is shorter. */
export function imageBehind(image: Image, depth: number): Image | null {
  let found: Image | null = image;
  for (let i = 0; i < depth && found !== null; i++) found = backingOf(found);
  return found;
}

/**
 * Copies everything that the images before the base have, zeros too, into the base, which grows where it is shorter than
 * the image. Afterwards that is on stable storage, and the image may be emptied: the disk holds the same all the time.
 *
 * @throws BlockError
 */
export async function commitImage(image: Image, options: CommitOptions): Promise<void> {
  const { depth, onProgress, bytesPerSecond } = options;
  const base = imageBehind(image, depth)!;
  const rate = bytesPerSecond === undefined ? null : new RateLimit(bytesPerSecond);
  const total = image.sizeBytes;
  if (base.sizeBytes < total) await base.resize(total);
  for await (const window of mapChain(image, 0, total, { layers: depth })) {
    for (const extent of window) {
      const { guestOffset, lengthBytes, zero } = extent;
      const end = guestOffset + lengthBytes;
      if (isAboveBase(extent, depth)) {
        if (zero) await base.writeZeroes(guestOffset, lengthBytes, true);
        else await copy(image, base, guestOffset, end, rate);
      }
      onProgress?.(end, total);
    }
  }
  await base.flush();
}

/** Whether an image before the base decides what is read, if only by its end: what is behind that reads as zeros. */
function isAboveBase({ present, pastBacking, depth: at }: ChainExtent, depth: number): boolean {
  return present || (pastBacking && at + 1 < depth);
}

async function copy(image: Image, base: Image, from: number, to: number, rate: RateLimit | null): Promise<void> {
  const bytes = new Uint8Array(Math.min(CHUNK_BYTES, to - from));
  for (let at = from; at < to;) {
    const part = bytes.subarray(0, Math.min(CHUNK_BYTES - at % CHUNK_BYTES, to - at, bytes.byteLength));
    await image.read(at, SegmentList.over(part));
    await base.write(at, SegmentList.over(part));
    at += part.byteLength;
    if (rate !== null) await rate.spend(part.byteLength);
  }
}
