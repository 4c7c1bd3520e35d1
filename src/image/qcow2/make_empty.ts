/**
 * Empties an image: nothing is allocated afterwards, and what is behind it shows through. Snapshots stay as they are.
 *
 * Each L2 table goes as a whole, in the order that write_back.ts states: a crash leaves a part of them. Whoever empties
 * an image has seen to it that what is behind it holds the same.
 *
 * @module
 */

import type { WriteBack } from "./write_back.ts";

/** Empties the disk. The image is clean, and nobody writes. */
export async function makeEmpty(tables: WriteBack): Promise<void> {
  const { mapping, file } = tables;
  // Behind the end of the disk is the state of a virtual machine, which belongs to snapshots.
  const used = Math.ceil(file.header.sizeBytes / mapping.tableSpan);
  for (let index = 0; index < used; index++) {
    if (mapping.tableOffset(index) === 0) continue;
    await tables.relieve();
    await tables.dropTable(index);
  }
  await tables.finish();
  await tables.cut();
}
