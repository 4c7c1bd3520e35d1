/**
 * The command that changes the size of a served disk.
 *
 * @module
 */

import type { BlkDevice } from "../blk/device.ts";
import type { Image } from "../image/image.ts";
import { ControlRefusal } from "./control_socket.ts";

const SECTOR_BYTES = 512;

/**
 * Changes the size as a request says: `size`, or `by`. The guest is told.
 *
 * @param others changes it for the other threads that serve the image: before the guest hears of it
 * @returns the size, in bytes, that the disk has now
 * @throws ControlRefusal, BlockError
 */
export async function resizeServed(
  request: Readonly<Record<string, unknown>>,
  device: BlkDevice,
  image: Image,
  others: (sizeBytes: number) => Promise<void> = () => Promise.resolve(),
): Promise<number> {
  const { size, by, shrink = false } = request;
  const wanted = by === undefined ? size : typeof by === "number" ? image.sizeBytes + by : by;
  if (typeof wanted !== "number" || !Number.isSafeInteger(wanted) || (by !== undefined && size !== undefined)) {
    throw new ControlRefusal("resize needs a size in bytes: 'size', or 'by'");
  }
  if (wanted <= 0) throw new ControlRefusal("New image size must be positive");
  // As qemu-img does: a disk is made of sectors.
  const after = Math.ceil(wanted / SECTOR_BYTES) * SECTOR_BYTES;
  if (image.readOnly) throw new ControlRefusal("the image is served for reading only");
  if (after < image.sizeBytes && shrink !== true) {
    throw new ControlRefusal(
      "Use the --shrink option to perform a shrink operation.",
      "what is behind the new end is lost; the guest must have let go of it before",
    );
  }
  if (after !== image.sizeBytes) {
    await others(after);
    await device.resize(after);
  }
  if (!image.readOnly) await image.flush();
  return image.sizeBytes;
}
