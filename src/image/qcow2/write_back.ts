/**
 * Safe order: what reaches the file before what, so that a crash at any moment leaves an image that holds all that
 * was flushed, and nothing that refers to what is not there.
 *
 * Guest data are written when the guest asks. Tables are changed in memory only, and reach the file when the guest
 * flushes, when the cache is full, and at the end:
 *
 * 1. Data (already written), raised refcounts, and new L2 tables that nothing in the file refers to yet.
 *    A crash here leaves clusters that are counted and not used: leaks.
 * 2. **Barrier.**
 * 3. L2 entries and L1 entries, which now refer to data and tables that are there, and are counted.
 * 4. **Barrier.** The guest's flush ends here.
 * 5. Clusters that nothing in the file refers to any more are counted down, in memory: this reaches the file with
 *    step 1 of the next time. Only now are they free, so that no write in between can reuse what an old entry, still
 *    in the file, refers to.
 *
 * Whatever is read by its place in the header (the L1 table, the refcount table, the snapshot table) is written
 * to a new place, then a barrier, then one sector of the header, then a barrier (see refcounts.ts, `moveTable` here).
 * Lazy refcounts leave the refcounts out of step 1: the dirty bit, set with barriers around it, says so.
 * Snapshots change refcounts of clusters in use and the COPIED flags that follow from them; no order of writes makes
 * that one step, so it is done with the dirty bit set as well (see snapshots.ts).
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import {
  COMPATIBLE_LAZY_REFCOUNTS,
  COMPRESSED_SECTOR_BYTES,
  OFFSET_HIGH_MASK,
  OFFSET_LOW_MASK,
} from "./qcow2_layout.ts";
import { COMPRESSED, CORRUPT, type L2EntryReader } from "./l2_entry.ts";
import { InFlight } from "./in_flight.ts";
import type { ChangeJournal } from "./journal.ts";
import type { PersistentBitmaps } from "./bitmaps.ts";
import type { Qcow2Mapping } from "./mapping.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Refcounts } from "./refcounts.ts";

/** The host clusters that the compressed data touch whose entry was just read. */
export function compressedClusters(
  entry: L2EntryReader,
  clusterBytes: number,
): { first: number; clusters: number } {
  const first = Math.floor(entry.hostOffset / clusterBytes);
  const end = entry.hostOffset - entry.hostOffset % COMPRESSED_SECTOR_BYTES +
    entry.compressedSectors * COMPRESSED_SECTOR_BYTES;
  return { first, clusters: Math.ceil(end / clusterBytes) - first };
}

/** How many runs of given-up clusters are remembered. */
const RELEASED_MAX = 1 << 16;

/** L1 entries are written in units that no crash tears. */
const L1_SECTOR_BYTES = 512;

/** All tables of an image that is written, and the way back to the file. Whoever changes them holds the lock. */
export class WriteBack {
  readonly file: Qcow2File;
  readonly mapping: Qcow2Mapping;
  readonly refcounts: Refcounts;
  /** Reads and writes of guest data that are on their way. */
  readonly inFlight = new InFlight();
  /** Told of each range of the disk before it changes; `null` while there are none. */
  bitmaps: PersistentBitmaps | null = null;
  /** Keeps what the file does not say yet, for whoever goes on when this process is killed; `null` when nobody does. */
  journal: ChangeJournal | null = null;
  /** Whether space that is given up is given back to the file. */
  readonly #discards: boolean;
  /** L1 entries that differ from the file. */
  readonly #dirtyL1 = new Set<number>();
  /** Those of them whose L2 tables nothing in the file can refer to yet. */
  readonly #newTables = new Set<number>();
  /** Clusters that will be referred to once less, when the file does not say otherwise any more. */
  #released: { first: number; clusters: number }[] = [];
  /** What has to be done before the image can be called clean; tried again until it succeeds. */
  unsettled: (() => Promise<void>) | null = null;
  /** Told of each cluster that has become free: whoever holds on to it must let go. */
  readonly freeListeners: ((cluster: number) => void)[] = [];

  constructor(file: Qcow2File, mapping: Qcow2Mapping, refcounts: Refcounts, discards: boolean) {
    this.file = file;
    this.mapping = mapping;
    this.refcounts = refcounts;
    this.#discards = discards && file.storage.canUnmap;
    this.noteTables();
  }

  /** Whether a flush has more to do than to flush the storage. */
  get isDirty(): boolean {
    return this.unsettled !== null || this.mapping.cache.dirtyCount > 0 || this.#dirtyL1.size > 0 ||
      this.#released.length > 0 ||
      (!this.#isLazy && this.refcounts.cache.dirtyCount > 0);
  }

  /** Has bitmaps note a change that is about to be made. */
  async noteChange(offset: number, lengthBytes: number): Promise<void> {
    await this.bitmaps?.noteWaiting(this.file, offset, lengthBytes);
  }

  /** Writes tables back when they leave no room for others. */
  async relieve(): Promise<void> {
    const isStrained = this.mapping.cache.isStrained || this.refcounts.cache.isStrained;
    if (isStrained || this.#released.length > RELEASED_MAX) await this.flush();
  }

  /**
   * Brings everything to stable storage, in safe order.
   *
   * @throws BlockError; what was not written stays in memory, for the next time
   */
  async flush(): Promise<void> {
    const { file, mapping, refcounts } = this;
    const l2 = mapping.cache.dirtyKeys();
    const isNew = (key: number) => this.#newTables.has(mapping.l1Index(key * mapping.sliceSpan));
    const [fresh, changed] = [l2.filter(isNew), l2.filter((key) => !isNew(key))];
    const counts = this.#isLazy && !refcounts.cache.isStrained ? [] : refcounts.cache.dirtyKeys();
    const l1 = [...this.#dirtyL1];
    const released = this.#released;
    this.#released = [];
    try {
      await refcounts.cache.write(counts, (at, length) => this.#write("refcount block", at, length));
      await mapping.cache.write(fresh, (at, length) => this.#write("active L2 table", at, length));
      if (l2.length > 0 || l1.length > 0) {
        await file.barrier();
        await mapping.cache.write(changed, (at, length) => this.#write("active L2 table", at, length));
        // From here on the file may refer to them, even if what follows fails.
        this.#newTables.clear();
        await this.#writeL1(l1);
      }
      await file.barrier();
    } catch (error) {
      this.#released = [...released, ...this.#released];
      throw error;
    }
    refcounts.cache.settle(counts);
    mapping.cache.settle(l2);
    for (const index of l1) this.#dirtyL1.delete(index);
    this.journal?.reset();
    await this.#free(released);
  }

  /** Keeps the changes that were made since the last time, before a request ends that depends on them. */
  async keepChanges(): Promise<void> {
    const { journal, file, mapping } = this;
    if (journal === null || !journal.isPending || file.damage !== null) return;
    if (file.header.version < 3) return await this.flush();
    if (!file.header.dirty) await file.setDirty(true);
    try {
      journal.commit(mapping);
      if (!journal.isFull) return;
    } catch (error) {
      // What can't be noted is written instead.
      if (!(error instanceof BlockError)) throw error;
    }
    await this.flush();
  }

  /** Brings everything to stable storage, and the refcounts of what was given up too; then the image is clean. */
  async finish(): Promise<void> {
    this.file.assertSound();
    await this.flush();
    await this.settle();
    const { file, refcounts } = this;
    const counts = refcounts.cache.dirtyKeys();
    if (counts.length > 0) {
      await refcounts.cache.write(counts, (at, length) => this.#write("refcount block", at, length));
      await file.barrier();
      refcounts.cache.settle(counts);
    }
    if (file.header.dirty) await file.setDirty(false);
  }

  /** Does what is left to do, if anything. */
  async settle(): Promise<void> {
    await this.unsettled?.();
    this.unsettled = null;
  }

  /** One reference less to each of so many clusters, as soon as the file has none of those that are given up now. */
  release(hostOffset: number, clusters: number): void {
    const first = Math.floor(hostOffset / this.file.clusterBytes);
    const last = this.#released.at(-1);
    if (last !== undefined && last.first + last.clusters === first) last.clusters += clusters;
    else this.#released.push({ first, clusters });
  }

  /** The entry that was just read will be replaced: its place in the image's file is given up. */
  releasePlace(kind: number): void {
    const { clusterBytes, header } = this.file;
    const { entry } = this.mapping;
    if (header.externalData) return;
    if (kind === COMPRESSED) {
      const { first, clusters } = compressedClusters(entry, clusterBytes);
      this.release(first * clusterBytes, clusters);
    } else if (entry.placed) this.release(entry.hostOffset, 1);
  }

  /** Gives up a whole L2 table, with all that it refers to. */
  async dropTable(index: number): Promise<void> {
    const { file, mapping } = this;
    const offset = mapping.tableOffset(index);
    const start = index * mapping.tableSpan;
    for (let at = start; at < start + mapping.tableSpan; at += mapping.sliceSpan) {
      const slice = await this.slice(at);
      for (let cluster = at; cluster < at + mapping.sliceSpan; cluster += file.clusterBytes) {
        const kind = mapping.entry.read(slice, mapping.inSlice(cluster), cluster);
        if (kind === CORRUPT) throw mapping.corruptEntry(cluster, "write");
        this.releasePlace(kind);
      }
    }
    mapping.cache.drop(start / mapping.sliceSpan, mapping.tableSpan / mapping.sliceSpan);
    mapping.setTableOffset(index, 0, false);
    this.#dirtyL1.add(index);
    file.metadata.removeTable("active L2 table", offset);
    this.release(offset, 1);
  }

  /** Says whether no snapshot shares the L2 table that an L1 entry refers to. */
  setTableCopied(index: number, copied: boolean): void {
    const { mapping } = this;
    if (mapping.isTableCopied(index) === copied) return;
    mapping.setTableOffset(index, mapping.tableOffset(index), copied);
    this.#dirtyL1.add(index);
  }

  /** The slice of the L2 table for an offset on the disk, which has one; valid until something is waited for. */
  async slice(offset: number): Promise<DataView> {
    const { mapping } = this;
    const key = Math.floor(offset / mapping.sliceSpan);
    for (;;) {
      const slice = mapping.cache.get(key);
      if (slice !== undefined) return slice;
      await mapping.cache.load(key, mapping.sliceOffset(mapping.tableOffset(mapping.l1Index(offset)), offset));
    }
  }

  /** Takes what nobody uses off the end of the file. The image is clean. */
  async cut(): Promise<void> {
    const { file, refcounts } = this;
    let clusters = Math.ceil(file.endBytes / file.clusterBytes);
    const before = clusters;
    while (clusters > 0 && await refcounts.get(clusters - 1) === 0) clusters--;
    if (clusters === before) return;
    await file.storage.truncate(clusters * file.clusterBytes);
    file.endBytes = clusters * file.clusterBytes;
    if (file.data === file.storage) file.dataTouchedBytes = file.endBytes;
    this.mapping.grow(file.endBytes);
  }

  /** Takes back an allocation that nothing refers to, not even in memory. */
  async giveBack(hostOffset: number, clusters: number): Promise<void> {
    await this.refcounts.add(hostOffset / this.file.clusterBytes, clusters, -1);
  }

  /**
   * The slice of the L2 table for an offset on the disk, to be changed at once and before anything is waited for.
   * Where there is no table one is made; one that a snapshot shares is copied.
   */
  async tableFor(offset: number): Promise<DataView> {
    const { mapping } = this;
    const index = mapping.l1Index(offset);
    const tableOffset = mapping.tableOffset(index);
    if (tableOffset === 0) await this.#makeTable(index);
    else if (!mapping.isTableCopied(index)) await this.#copyTable(index, tableOffset);
    const key = Math.floor(offset / mapping.sliceSpan);
    const slice = await mapping.cache.dirty(key, mapping.sliceOffset(mapping.tableOffset(index), offset));
    return slice;
  }

  /** Another L1 table takes over, or the same at another size: the overlap checks must know. */
  noteTables(): void {
    const { header, metadata } = this.file;
    metadata.setRanges("qcow2_header", [{ offset: 0, lengthBytes: this.file.clusterBytes }]);
    metadata.setRanges("active L1 table", [{ offset: header.l1Offset, lengthBytes: header.l1Entries * 8 }]);
    const tables = new Float64Array(header.l1Entries);
    let count = 0;
    for (let i = 0; i < header.l1Entries; i++) {
      // An entry that breaks the format is refused when it is used, not here.
      const offset = (this.mapping.l1.getUint32(i * 8) & OFFSET_HIGH_MASK) * 0x1_0000_0000 +
        ((this.mapping.l1.getUint32(i * 8 + 4) & OFFSET_LOW_MASK) >>> 0);
      if (offset > 0) tables[count++] = offset;
    }
    metadata.setTables("active L2 table", tables.slice(0, count));
  }

  get #isLazy(): boolean {
    const { header } = this.file;
    return header.dirty && (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n;
  }

  #write(kind: "refcount block" | "active L2 table", offset: number, lengthBytes: number): void {
    this.file.check(offset, lengthBytes, kind);
    this.file.noteEnd(offset + lengthBytes);
  }

  async #writeL1(indexes: readonly number[]): Promise<void> {
    const { l1 } = this.mapping;
    const sectors = new Set(indexes.map((index) => Math.floor(index * 8 / L1_SECTOR_BYTES)));
    for (const sector of [...sectors].sort((a, b) => a - b)) {
      const from = sector * L1_SECTOR_BYTES;
      const length = Math.min(L1_SECTOR_BYTES, l1.byteLength - from);
      const bytes = new Uint8Array(l1.buffer, l1.byteOffset + from, length);
      await this.file.event("l1_update");
      await this.file.write("active L1 table", this.file.header.l1Offset + from, bytes);
    }
  }

  /** Counts down what nothing in the file refers to any more. */
  async #free(released: readonly { first: number; clusters: number }[]): Promise<void> {
    if (released.length === 0) return;
    // Somebody may still be reading or writing where he was told to before; nobody else may get that place.
    await this.inFlight.settle();
    for (const { first, clusters } of released) {
      await this.file.event("cluster_free");
      const free: { first: number; clusters: number }[] = [];
      await this.refcounts.add(first, clusters, -1, (cluster) => {
        this.freeListeners.forEach((listener) => listener(cluster));
        const last = free.at(-1);
        if (last !== undefined && last.first + last.clusters === cluster) last.clusters++;
        else free.push({ first: cluster, clusters: 1 });
      });
      for (const run of free) await this.#discard(run);
    }
  }

  async #discard({ first, clusters }: { first: number; clusters: number }): Promise<void> {
    const { clusterBytes, storage, endBytes } = this.file;
    const length = Math.min(clusters * clusterBytes, endBytes - first * clusterBytes);
    if (this.#discards && length > 0) await storage.discard(first * clusterBytes, length);
  }

  async #makeTable(index: number): Promise<void> {
    const { file, mapping } = this;
    await file.event("l2_alloc_write");
    const offset = await this.refcounts.allocate(1);
    try {
      await file.zero("active L2 table", offset, file.clusterBytes);
    } catch (error) {
      await this.giveBack(offset, 1);
      throw error;
    }
    this.#useTable(index, offset);
    mapping.grow(file.endBytes);
  }

  /** A snapshot keeps the old one. */
  async #copyTable(index: number, oldOffset: number): Promise<void> {
    const { file, mapping } = this;
    const offset = await this.refcounts.allocate(1);
    const slices = file.clusterBytes / mapping.sliceBytes;
    const copy = new Uint8Array(file.clusterBytes);
    try {
      for (let i = 0; i < slices; i++) {
        const place = i * mapping.sliceBytes;
        const slice = await mapping.cache.dirty(index * slices + i, oldOffset + place);
        copy.set(new Uint8Array(slice.buffer), place);
      }
      await file.write("active L2 table", offset, copy);
    } catch (error) {
      await this.giveBack(offset, 1);
      throw error;
    }
    for (let i = 0; i < slices; i++) mapping.cache.move(index * slices + i, offset + i * mapping.sliceBytes);
    file.metadata.removeTable("active L2 table", oldOffset);
    this.#useTable(index, offset);
    mapping.grow(file.endBytes);
    this.release(oldOffset, 1);
  }

  #useTable(index: number, offset: number): void {
    this.mapping.setTableOffset(index, offset, true);
    this.#dirtyL1.add(index);
    this.#newTables.add(index);
    this.file.metadata.addTable("active L2 table", offset);
  }
}
