/**
 * Copies the persistent bitmaps of one image into another: `vblk convert --bitmaps`.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { PersistentBitmaps } from "../image/qcow2/bitmaps.ts";
import type { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import { BlockError } from "../storage/block_error.ts";
import { ImageCommandError } from "./qemu_img.ts";

/**
 * Reads which bitmaps there are, before anything is written.
 *
 * @param skipBroken whether those that were not closed are left out
 * @throws ImageCommandError when they can't be copied
 */
export async function sourceBitmaps(sources: readonly Image[], skipBroken: boolean): Promise<PersistentBitmaps> {
  if (sources.length > 1) throw new ImageCommandError("Copying bitmaps only possible with single source");
  const [source] = sources;
  if (!hasBitmaps(source)) throw new ImageCommandError("Source lacks bitmap support");
  const bitmaps = await PersistentBitmaps.open(source.storage, source.header);
  const broken = skipBroken ? undefined : bitmaps.slots.findLast(({ bitmap }) => bitmap === null);
  if (broken === undefined) return bitmaps;
  throw new ImageCommandError(`Cannot copy inconsistent bitmap '${broken.entry.name}'`, {
    hint: "try --skip-broken-bitmaps, or use 'vblk bitmap --remove' to delete it",
  });
}

/** @throws ImageCommandError when an image can't have bitmaps */
export function checkTakesBitmaps(target: Image): void {
  if (!hasBitmaps(target)) throw new ImageCommandError(`Format driver '${target.format}' does not support bitmaps`);
}

/**
 * Copies bitmaps that can be used, and says of each other one that it is left out.
 *
 * @throws ImageCommandError
 */
export async function copyBitmaps(
  source: PersistentBitmaps,
  target: Image,
  warn: (line: string) => void,
): Promise<void> {
  if (!hasBitmaps(target)) return;
  await target.editBitmaps(async (bitmaps) => {
    // From the last one on, as in QEMU.
    for (const { entry: { name }, bitmap } of source.slots.toReversed()) {
      if (bitmap === null) {
        warn(`warning: Skipping inconsistent bitmap '${name}'`);
        continue;
      }
      const added = await doing(
        `Failed to create bitmap ${name}`,
        () => bitmaps.add(name, 2 ** bitmap.granularityBits, bitmap.enabled),
      );
      try {
        await doing(`Failed to populate bitmap ${name}`, () => bitmaps.merge(added.name, bitmap));
      } catch (error) {
        bitmaps.remove(name);
        throw error;
      }
    }
  });
}

function hasBitmaps(image: Image): image is Qcow2Image {
  return "editBitmaps" in image && (image as Qcow2Image).header.version >= 3;
}

async function doing<T>(what: string, action: () => T | Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new ImageCommandError(`${what}: ${error.reason}`, { hint: error.hint, cause: error });
  }
}
