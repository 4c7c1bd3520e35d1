/**
 * Changes fields of a header in place: one write of the first sector, which disks write whole or not at all.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";

/** Has `change` set fields of the first sector, and writes it. The caller puts barriers around it. */
export async function patchHeader(storage: Storage, change: (sector: DataView) => void): Promise<void> {
  const sector = new Uint8Array(Math.min(SECTOR_BYTES, storage.sizeBytes));
  await storage.read(0, SegmentList.over(sector));
  change(new DataView(sector.buffer));
  await storage.write(0, SegmentList.over(sector));
}
