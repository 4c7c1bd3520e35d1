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
 * to a new place, then a barrier, then one sector of the header, then a barrier (see refcount_table.ts, resize.ts and
 * snapshots.ts).
 * Lazy refcounts leave the refcounts out of step 1: the dirty bit, set with barriers around it, says so.
 * Snapshots change refcounts of clusters in use and the COPIED flags that follow from them; no order of writes makes
 * that one step, so it is done with the dirty bit set as well (see snapshots.ts).
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import { COMPATIBLE_LAZY_REFCOUNTS, OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import { GivenUp } from "./given_up.ts";
import { L1Changes } from "./l1_changes.ts";
import { COMPRESSED, compressedClusters, CORRUPT } from "./l2_entry.ts";
import { InFlight } from "./in_flight.ts";
import type { ChangeJournal } from "./journal.ts";
import type { PersistentBitmaps } from "./bitmaps.ts";
import type { Qcow2Mapping } from "./mapping.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Refcounts } from "./refcounts.ts";

/** How many runs of given-up clusters are remembered. */
const RELEASED_MAX = 1 << 16;

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
  readonly #l1: L1Changes;
  readonly #givenUp: GivenUp;
  /** What has to be done before the image can be called clean; tried again until it succeeds. */
  unsettled: (() => Promise<void>) | null = null;

  constructor(file: Qcow2File, mapping: Qcow2Mapping, refcounts: Refcounts, discards: boolean) {
    this.file = file;
    this.mapping = mapping;
    this.refcounts = refcounts;
    this.#l1 = new L1Changes(file, mapping);
    this.#givenUp = new GivenUp(file, refcounts, this.inFlight, discards);
    this.noteTables();
  }

  /** Told of each cluster that has become free: whoever holds on to it must let go. */
  get freeListeners(): ((cluster: number) => void)[] {
    return this.#givenUp.listeners;
  }

  /** Whether a flush has more to do than to flush the storage. */
  get isDirty(): boolean {
    return this.unsettled !== null || this.mapping.cache.dirtyCount > 0 || this.#l1.count > 0 ||
      this.#givenUp.count > 0 ||
      (!this.#isLazy && this.refcounts.cache.dirtyCount > 0);
  }

  /** Has bitmaps note a change that is about to be made. */
  async noteChange(offset: number, lengthBytes: number): Promise<void> {
    await this.bitmaps?.noteWaiting(this.file, offset, lengthBytes);
  }

  /** Writes tables back when they leave no room for others. */
  async relieve(): Promise<void> {
    const isStrained = this.mapping.cache.isStrained || this.refcounts.cache.isStrained;
    if (isStrained || this.#givenUp.count > RELEASED_MAX) await this.flush();
  }

  /**
   * Brings everything to stable storage, in safe order.
   *
   * @throws BlockError; what was not written stays in memory, for the next time
   */
  async flush(): Promise<void> {
    const { file, mapping, refcounts } = this;
    const l2 = mapping.cache.dirtyKeys();
    const isNew = (key: number) => this.#l1.isNew(mapping.l1Index(key * mapping.sliceSpan));
    const [fresh, changed] = [l2.filter(isNew), l2.filter((key) => !isNew(key))];
    const counts = this.#isLazy && !refcounts.cache.isStrained ? [] : refcounts.cache.dirtyKeys();
    const l1 = this.#l1.indexes();
    const released = this.#givenUp.take();
    try {
      await refcounts.cache.write(counts, (at, length) => this.#write("refcount block", at, length));
      await mapping.cache.write(fresh, (at, length) => this.#write("active L2 table", at, length));
      if (l2.length > 0 || l1.length > 0) {
        await file.barrier();
        await mapping.cache.write(changed, (at, length) => this.#write("active L2 table", at, length));
        await this.#l1.write(l1);
      }
      await file.barrier();
    } catch (error) {
      this.#givenUp.putBack(released);
      throw error;
    }
    refcounts.cache.settle(counts);
    mapping.cache.settle(l2);
    this.#l1.settle(l1);
    this.journal?.reset();
    await this.#givenUp.free(released);
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
    this.#givenUp.add(Math.floor(hostOffset / this.file.clusterBytes), clusters);
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
    this.#l1.set(index, 0, false);
    file.metadata.removeTable("active L2 table", offset);
    this.release(offset, 1);
  }

  /** Says whether no snapshot shares the L2 table that an L1 entry refers to. */
  setTableCopied(index: number, copied: boolean): void {
    const { mapping } = this;
    if (mapping.isTableCopied(index) === copied) return;
    this.#l1.set(index, mapping.tableOffset(index), copied);
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
    this.#l1.setNew(index, offset);
    this.file.metadata.addTable("active L2 table", offset);
  }
}
