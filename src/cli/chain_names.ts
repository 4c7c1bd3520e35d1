/**
 * Finds an image of a chain by a name.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { backingOf } from "../image/map_chain.ts";
import { resolveName } from "../image/qcow2/file_names.ts";
import { BlockError } from "../storage/block_error.ts";

/**
 * How many images are before the one that a name means: a name as it is recorded in the image before it, or a path,
 * relative to the folder of the image before it; `null` when the chain has none.
 */
export function depthOf(image: Image, name: string): number | null {
  let above = image;
  for (let depth = 1;; depth++) {
    const behind = backingOf(above);
    if (behind === null) return null;
    const recorded = (above as { header?: { backingName: string | null } }).header?.backingName;
    if (recorded === name || behind.name === name || isSameFile(behind.name, pathFrom(above.name, name))) return depth;
    above = behind;
  }
}

function pathFrom(imagePath: string, name: string): string | null {
  try {
    return resolveName(imagePath, name.replace(/^file:/, ""), "backing file");
  } catch (error) {
    if (error instanceof BlockError) return null;
    throw error;
  }
}

function isSameFile(path: string, other: string | null): boolean {
  if (other === null) return false;
  try {
    return Deno.realPathSync(path) === Deno.realPathSync(other);
  } catch {
    // What does not exist, or must not be looked at, is not that image.
    return false;
  }
}
