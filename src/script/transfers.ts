/**
 * Reads and writes of any offset and length as a guest's block layer makes them of requests for whole sectors.
 *
 * @module
 */

import { SECTOR_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES } from "../blk/blk_layout.ts";
import type { Guest, TransferOptions } from "../guest/guest.ts";
import { GuestIoError } from "../guest/guest_error.ts";
import { hasFeature } from "../virtio/features.ts";

/** A vector above this size goes through the guest's own buffers: it must fit the guest's memory in one piece. */
const MAX_VECTOR_BYTES = 16 << 20;

/** How a write of zeros is carried out. */
export interface ZeroOptions {
  readonly unmap: boolean;
  /** Fail rather than write zeros as data. */
  readonly noFallback: boolean;
}

/**
 * The elements for a vector, if one request can have them: a device has limits for their number and length, and
 * only whole sectors can be scattered. Otherwise the guest cuts the data as it sees fit.
 */
export function vectorOptions(guest: Guest, offset: number, lengths: readonly number[]): TransferOptions {
  const segments = lengths.filter((length) => length > 0);
  const total = segments.reduce((sum, length) => sum + length, 0);
  const fits = segments.length > 1 && total <= MAX_VECTOR_BYTES &&
    offset % SECTOR_SIZE === 0 && total % SECTOR_SIZE === 0 &&
    segments.length <= guest.segMax &&
    segments.length + 2 <= guest.driver.queues[0].size &&
    Math.max(...segments) <= guest.sizeMax;
  return fits ? { segments } : {};
}

/** Makes a range read as zeros: whole sectors by WRITE_ZEROES, what is left at the edges as data. */
export async function writeZeroes(guest: Guest, offset: number, lengthBytes: number, how: ZeroOptions): Promise<void> {
  const end = offset + lengthBytes;
  if (!hasFeature(guest.features, VIRTIO_BLK_F_WRITE_ZEROES)) {
    if (how.noFallback) throw new GuestIoError("writeZeroes", 2);
    return await guest.write(offset, new Uint8Array(lengthBytes));
  }
  const [start, stop] = sectorsWithin(offset, end);
  if (start >= stop) return await guest.write(offset, new Uint8Array(lengthBytes));
  // An offset outside the disk must fail before an edge is written.
  await guest.writeZeroes(start, stop - start, { unmap: how.unmap });
  if (offset < start) await guest.write(offset, new Uint8Array(start - offset));
  if (stop < end) await guest.write(stop, new Uint8Array(end - stop));
}

/** Discards the whole sectors of a range; to discard is a wish, so the edges may stay as they are. */
export async function discard(guest: Guest, offset: number, lengthBytes: number): Promise<void> {
  const [start, stop] = sectorsWithin(offset, offset + lengthBytes);
  if (start < stop) return await guest.discard(start, stop - start);
  // Too short to hold a sector; still to be refused where it is not on the disk, or not supported at all.
  await guest.read(offset, lengthBytes);
  if (!hasFeature(guest.features, VIRTIO_BLK_F_DISCARD)) throw new GuestIoError("discard", 2);
}

function sectorsWithin(offset: number, end: number): [start: number, stop: number] {
  return [Math.ceil(offset / SECTOR_SIZE) * SECTOR_SIZE, end - (end % SECTOR_SIZE)];
}
