/**
 * The table of a persistent bitmap (QEMU's docs/interop/qcow2, "Bitmap table"): where each cluster of its bits is.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import type { BitmapEntry } from "./bitmap_directory.ts";
import { OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import { corrupt } from "./refuse.ts";

/** Entries that stand for a cluster of zeros, or ones. All others are offsets in the file. */
export const ALL_ZEROS = 0;
export const ALL_ONES = 1;

/**
 * Reads a table, which `entryFault` has bounded.
 *
 * @throws BlockError when it breaks the format, or refers to what is not in the file
 */
export async function readTable(storage: Storage, entry: BitmapEntry, clusterBytes: number): Promise<Float64Array> {
  const { name, tableOffset, tableEntries } = entry;
  const bad = (at: number) =>
    corrupt(storage.name, "open", `Could not read bitmap_table table from image for bitmap '${name}'`, at);
  const fileBytes = storage.sizeBytes;
  const bytes = new Uint8Array(tableEntries * 8);
  if (tableOffset + bytes.byteLength > fileBytes) throw bad(tableOffset);
  await storage.read(tableOffset, SegmentList.over(bytes));
  const view = new DataView(bytes.buffer);
  const table = new Float64Array(tableEntries);
  for (let i = 0; i < tableEntries; i++) {
    const [high, low] = [view.getUint32(i * 8), view.getUint32(i * 8 + 4)];
    const offset = high * 0x1_0000_0000 + ((low & OFFSET_LOW_MASK) >>> 0);
    const rest = low & ~OFFSET_LOW_MASK;
    const isPlace = offset !== 0;
    const good = (high & ~OFFSET_HIGH_MASK) === 0 && offset % clusterBytes === 0 &&
      (isPlace ? rest === 0 && offset + clusterBytes <= fileBytes : rest <= ALL_ONES);
    if (!good) throw bad(tableOffset + i * 8);
    table[i] = isPlace ? offset : rest;
  }
  return table;
}

/** The bytes of a table. */
export function encodeTable(table: Float64Array): Uint8Array {
  const view = new DataView(new ArrayBuffer(table.length * 8));
  table.forEach((entry, i) => {
    view.setUint32(i * 8, Math.floor(entry / 0x1_0000_0000));
    view.setUint32(i * 8 + 4, entry % 0x1_0000_0000);
  });
  return new Uint8Array(view.buffer);
}
