/**
 * What has to be true of a qcow2 image before it is written, and made so.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import type { OldContents } from "./cluster_writer.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import type { JournalStore } from "./journal.ts";
import type { Qcow2Mapping } from "./mapping.ts";
import { Qcow2File } from "./qcow2_file.ts";
import { AUTOCLEAR, EXTENSION } from "./qcow2_layout.ts";
import { Refcounts } from "./refcounts.ts";
import { readSnapshotTable, type SnapshotTable } from "./snapshot_table.ts";
import { WriteBack } from "./write_back.ts";
import { Qcow2Writer } from "./writer.ts";

/** Memory for refcount blocks, as a part of that for L2 tables: they say less of more. */
const REFCOUNT_CACHE_PART = 1 / 8;

/**
 * Refuses an image that is known to be damaged, repairs the refcounts of one that was not closed, and says in the
 * file that features which vblk does not know are not kept up ("autoclear_features").
 *
 * What a process that was killed had in memory is taken from its journal.
 *
 * Bitmaps that are not kept up any more ("Bitmaps extension") are forgotten.
 *
 * @returns the header as it is now
 * @throws BlockError
 */
export async function prepareForWriting(
  storage: Storage,
  header: Qcow2Header,
  journal?: JournalStore,
): Promise<Qcow2Header> {
  if (header.corrupt) {
    throw new BlockError({
      kind: "corrupt",
      path: storage.name,
      operation: "open",
      reason: "Image is corrupt; cannot be opened read/write",
      hint: "'vblk check -r all' repairs what can be repaired; give -r to read only",
    });
  }
  let current = header;
  if (current.dirty) {
    // Without the dirty bit somebody else has written to the image since, or the last one closed it as he should.
    const notes = journal?.read();
    if (notes !== undefined && notes.byteLength > 0) {
      await (await import("./journal.ts")).replayJournal(storage, current, notes);
    }
    const { repairDirty } = await import("./repair.ts");
    await repairDirty(storage, current);
    current = await readHeader(storage);
  }
  const known = Object.values(AUTOCLEAR).reduce((all, bit) => all | bit, 0n);
  if ((current.autoclear & ~known) !== 0n) {
    const file = new Qcow2File(storage, storage, current);
    await file.writeHeader({ autoclear: current.autoclear & known });
    await file.barrier();
    current = await readHeader(storage);
  }
  if (current.bitmaps === null && current.extensions.some(({ type }) => type === EXTENSION.bitmaps)) {
    // Somebody who knows no bitmaps wrote to the image. What they take in the file is leaked, as in QEMU.
    const { changeHeader, writeHeader } = await import("./header_writer.ts");
    await writeHeader(storage, current, changeHeader(current, { bitmaps: null }));
    current = await readHeader(storage);
  }
  return current;
}

/** Puts together what writes. */
export async function openWriter(
  storage: Storage,
  data: Storage,
  header: Qcow2Header,
  mapping: Qcow2Mapping,
  old: OldContents,
  options: { noFlush?: boolean; discards?: boolean; journal?: JournalStore },
): Promise<Qcow2Writer> {
  const file = new Qcow2File(storage, data, header, options.noFlush);
  const cacheBytes = mapping.cache.capacity * mapping.sliceBytes * REFCOUNT_CACHE_PART;
  const refcounts = await Refcounts.open(file, cacheBytes);
  const tables = new WriteBack(file, mapping, refcounts, options.discards ?? true);
  noteSnapshots(tables, await readSnapshotTable(storage, header));
  if (header.bitmaps !== null) {
    const [{ PersistentBitmaps }, { noteDirectory }] = await Promise.all([
      import("./bitmaps.ts"),
      import("./bitmap_store.ts"),
    ]);
    tables.bitmaps = await PersistentBitmaps.open(storage, header);
    await tables.bitmaps.prepareForWriting();
    noteDirectory(file);
  }
  if (options.journal !== undefined) {
    const { ChangeJournal } = await import("./journal.ts");
    options.journal.clear();
    tables.journal = new ChangeJournal(options.journal);
  }
  return new Qcow2Writer(tables, old);
}

/** Tells the overlap checks where the snapshot table, and the L1 tables of snapshots, are. */
export function noteSnapshots({ file }: WriteBack, { snapshots, lengthBytes }: SnapshotTable): void {
  const { metadata, header } = file;
  metadata.setRanges("snapshot table", [{ offset: header.snapshotsOffset, lengthBytes }]);
  const tables = snapshots.map(({ l1Offset, l1Entries }) => ({ offset: l1Offset, lengthBytes: l1Entries * 8 }));
  metadata.setRanges("inactive L1 table", tables);
}
