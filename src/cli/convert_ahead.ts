/**
 * Whether threads that read ahead are worth it for `vblk convert`, and these threads.
 *
 * @module
 */

import { BlockError, type Image } from "../image/image.ts";
import type { ReaderPool } from "../image/reader_pool.ts";

/** Less than this is read before a thread could start. */
const THREADS_FROM_BYTES = 16 << 20;
/** How much of the disk is looked at for compressed clusters. */
const LOOK_BYTES = 256 << 20;

/**
 * Starts threads for a source with compressed clusters. Others are read faster than they can be written.
 *
 * @param given what the user called the image
 */
export async function readAhead(source: Image, given: string): Promise<ReaderPool | null> {
  // Options may have chosen other files than those that the path alone leads to.
  if (given !== source.name || source.sizeBytes < THREADS_FROM_BYTES) return null;
  // A name that is not a path's could be a disk that only this thread has.
  if (!isFile(source.name)) return null;
  const threads = await isCompressed(source) ? navigator.hardwareConcurrency : 1;
  const { ReaderPool } = await import("../image/reader_pool.ts");
  return await ReaderPool.start(source.name, source.format, threads);
}

async function isCompressed(source: Image): Promise<boolean> {
  try {
    const extents = await source.map(0, Math.min(LOOK_BYTES, source.sizeBytes));
    return extents.some(({ kind }) => kind === "compressed");
  } catch (error) {
    // The copy will come to it, and say it.
    if (error instanceof BlockError) return false;
    throw error;
  }
}

function isFile(name: string): boolean {
  try {
    return Deno.statSync(name).isFile;
  } catch {
    return false;
  }
}
