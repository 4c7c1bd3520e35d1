/**
 * Stores persistent bitmaps, so that a crash at any moment leaves all as they were in the file before or all as they
 * are now: what has changed goes to new places, then a barrier, then the header refers to a new directory, then a
 * barrier, and only then what the old directory referred to is given up.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import { SegmentList } from "../../memory/segment_list.ts";
import { type Bitmap, sameBits } from "./bitmap.ts";
import { BITMAP_FLAG, type BitmapEntry, encodeDirectory } from "./bitmap_directory.ts";
import { encodeTable, readTable } from "./bitmap_table.ts";
import type { BitmapSlot, PersistentBitmaps } from "./bitmaps.ts";
import type { BitmapDirectory } from "./extensions.ts";
import { changeHeader, writeHeader } from "./header_writer.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { WriteBack } from "./write_back.ts";

interface Place {
  readonly offset: number;
  readonly clusters: number;
}

/** A bitmap as it will be. */
interface Stored {
  readonly entry: BitmapEntry;
  /** `null` when it is kept as it is. */
  readonly table: Float64Array | null;
}

/**
 * Stores what has changed. The lock is held.
 *
 * @throws BlockError; then the bitmaps in the file are as they were, in use or right
 */
export async function storeBitmaps(tables: WriteBack, bitmaps: PersistentBitmaps): Promise<void> {
  if (!bitmaps.isChanged) return;
  const { file } = tables;
  const { bitmaps: before } = file.header;
  const store = new Store(tables);
  let all: Stored[];
  let directory: BitmapDirectory | null = null;
  let entries: BitmapEntry[] = [];
  try {
    all = [];
    for (const slot of bitmaps.slots) all.push(await store.bitmap(slot));
    if (all.length > 0) {
      const { bytes, placed } = encodeDirectory(all.map(({ entry }) => entry));
      directory = { count: all.length, offset: await store.write(bytes), lengthBytes: bytes.byteLength };
      entries = placed;
    }
    await tables.flush();
    await changeDirectory(file, directory);
  } catch (error) {
    await store.giveBack();
    throw error;
  }
  bitmaps.slots.forEach(({ bitmap }, i) => {
    const { table } = all[i];
    if (table !== null) bitmap!.stored(entries[i], table);
  });
  const removed = [...bitmaps.removed];
  bitmaps.stored(entries);
  noteDirectory(file);
  const release = (offset: number, lengthBytes: number) =>
    tables.release(offset, Math.ceil(lengthBytes / file.clusterBytes));
  if (before !== null) release(before.offset, before.lengthBytes);
  for (const { offset, clusters } of store.replaced) tables.release(offset, clusters);
  for (const entry of removed) {
    const table = await readTable(file.storage, entry, file.clusterBytes).catch((error) => {
      // Where its clusters are nobody knows: they are leaked, as in QEMU, and a check finds them.
      if (error instanceof BlockError && error.kind === "corrupt") return null;
      throw error;
    });
    if (table === null) continue;
    for (const offset of table) if (offset > 1) tables.release(offset, 1);
    release(entry.tableOffset, entry.tableEntries * 8);
  }
}

/** Tells the overlap checks where the directory is. */
export function noteDirectory({ header, metadata }: Qcow2File): void {
  metadata.setRanges("bitmap directory", header.bitmaps === null ? [] : [header.bitmaps]);
}

/** What is written to new places, and what it replaces. */
class Store {
  readonly replaced: Place[] = [];
  readonly #made: Place[] = [];
  readonly #tables: WriteBack;

  constructor(tables: WriteBack) {
    this.#tables = tables;
  }

  /** Writes a bitmap that has changed. */
  async bitmap({ entry, bitmap, marked, inFile }: BitmapSlot): Promise<Stored> {
    if (bitmap === null) return { entry, table: null };
    const flags = entry.flags & BITMAP_FLAG.extraDataCompatible | (bitmap.enabled ? BITMAP_FLAG.auto : 0);
    if (inFile && !marked && !bitmap.hasChanges) return { entry: { ...entry, flags }, table: null };
    const old = await bitmap.load();
    const table = new Float64Array(bitmap.pages);
    for (let i = 0; i < table.length; i++) table[i] = await this.#page(bitmap, i, old[i] ?? 0);
    for (const offset of old.subarray(table.length)) if (offset > 1) this.replaced.push({ offset, clusters: 1 });
    const tableOffset = await this.write(encodeTable(table));
    if (inFile) {
      const clusters = Math.ceil(entry.tableEntries * 8 / this.#tables.file.clusterBytes);
      this.replaced.push({ offset: entry.tableOffset, clusters });
    }
    return { entry: { ...entry, flags, tableOffset, tableEntries: table.length }, table };
  }

  /** Writes to new clusters, which nothing refers to yet; returns where. */
  async write(bytes: Uint8Array): Promise<number> {
    const { file, refcounts, mapping } = this.#tables;
    const clusters = Math.ceil(bytes.byteLength / file.clusterBytes);
    const padded = new Uint8Array(clusters * file.clusterBytes);
    padded.set(bytes);
    const offset = await refcounts.allocate(clusters);
    this.#made.push({ offset, clusters });
    await file.write("bitmap directory", offset, padded);
    mapping.grow(file.endBytes);
    return offset;
  }

  /** Takes back all that was written. */
  async giveBack(): Promise<void> {
    if (this.#tables.file.damage !== null) return;
    for (const { offset, clusters } of this.#made) await this.#tables.giveBack(offset, clusters);
  }

  /** Where a page is afterwards: an entry of the table. */
  async #page(bitmap: Bitmap, index: number, old: number): Promise<number> {
    if (!bitmap.isChanged(index)) return old;
    const uniform = bitmap.uniform(index);
    const bytes = uniform === null ? await bitmap.bits(index) : null;
    const same = uniform ?? sameBits(bytes!);
    if (same === old || (same === null && old > 1 && await this.#isThere(old, bytes!))) return old;
    if (old > 1) this.replaced.push({ offset: old, clusters: 1 });
    return same ?? await this.write(bytes!);
  }

  async #isThere(offset: number, bytes: Uint8Array): Promise<boolean> {
    const there = new Uint8Array(bytes.byteLength);
    await this.#tables.file.storage.read(offset, SegmentList.over(there));
    return there.every((byte, i) => byte === bytes[i]);
  }
}

/** Has the header refer to another directory. */
async function changeDirectory(file: Qcow2File, directory: BitmapDirectory | null): Promise<void> {
  const from = file.header;
  const to = changeHeader(from, { bitmaps: directory });
  try {
    file.header = await writeHeader(file.storage, from, to);
  } catch (error) {
    try {
      // The file may have the one or the other: go on only with what is known to be there.
      await writeHeader(file.storage, to, from);
    } catch {
      file.loseHeader(error);
    }
    throw error;
  }
}
