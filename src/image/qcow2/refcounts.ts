/**
 * Reference counts of host clusters (QEMU's docs/interop/qcow2, "Refcount handling"): who may be written in place,
 * and what is free.
 *
 * Blocks are in a bounded cache, their places in refcount_table.ts. Counts change in memory; when they reach the file is
 * decided in write_back.ts.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import { COMPATIBLE_LAZY_REFCOUNTS } from "./qcow2_layout.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { type RefcountEntries, refcountEntries } from "./refcount_entry.ts";
import { noSpace, readRefcountTable, RefcountTable } from "./refcount_table.ts";
import { TableCache } from "./table_cache.ts";

/** Of a larger block only so much is read at a time. */
const SLICE_BYTES = 65536;
/** No file is as large as this, and all numbers below it are exact. */
const FILE_MAX_BYTES = 2 ** 52;

/** The counts of one image. */
export class Refcounts {
  readonly cache: TableCache;
  readonly entries: RefcountEntries;
  readonly #file: Qcow2File;
  /** Where the blocks are. */
  readonly #table: RefcountTable;
  readonly #entriesPerBlock: number;
  readonly #sliceBytes: number;
  readonly #entriesPerSlice: number;
  /** No cluster below this one is free. */
  #hint = 0;

  private constructor(file: Qcow2File, offsets: Float64Array, cacheBytes: number) {
    const { clusterBytes, header } = file;
    this.#file = file;
    this.#table = new RefcountTable(file, offsets, (first, clusters) => this.add(first, clusters, -1));
    this.entries = refcountEntries(header.refcountBits);
    this.#entriesPerBlock = clusterBytes * 8 / header.refcountBits;
    this.#sliceBytes = Math.min(SLICE_BYTES, clusterBytes);
    this.#entriesPerSlice = this.#sliceBytes * 8 / header.refcountBits;
    const capacity = Math.max(4, Math.floor(cacheBytes / this.#sliceBytes));
    this.cache = new TableCache(file.storage, this.#sliceBytes, capacity, {
      load: "refblock_load",
      update: "refblock_update_part",
    });
  }

  /** Reads the refcount table, which the header's checks have bounded. */
  static async open(file: Qcow2File, cacheBytes: number): Promise<Refcounts> {
    return new Refcounts(file, await readRefcountTable(file), cacheBytes);
  }

  /** The count of a cluster. */
  async get(cluster: number): Promise<number> {
    const offset = this.#table.blockOffset(Math.floor(cluster / this.#entriesPerBlock));
    if (offset === 0) return 0;
    const slice = await this.#slice(cluster, offset);
    return this.entries.get(slice, cluster % this.#entriesPerSlice);
  }

  /** The count of a cluster, if it is in memory; else it has to be waited for. */
  getCached(cluster: number): number | undefined {
    const slice = this.cache.get(Math.floor(cluster / this.#entriesPerSlice));
    return slice === undefined ? undefined : this.entries.get(slice, cluster % this.#entriesPerSlice);
  }

  /**
   * Raises or lowers the counts of clusters that follow each other.
   *
   * @param onFree told of each cluster whose count has become 0
   * @throws BlockError when a count would be too large for its width, or below 0
   */
  async add(first: number, clusters: number, change: number, onFree?: (cluster: number) => void): Promise<void> {
    await this.#beforeChange();
    const end = first + clusters;
    for (let cluster = first; cluster < end;) {
      const isCounted = this.#table.blockOffset(Math.floor(cluster / this.#entriesPerBlock)) !== 0;
      if (change < 0 && !isCounted) throw this.#underflow(cluster);
      const slice = await this.#dirtySlice(cluster);
      const sliceEnd = Math.min(end, (Math.floor(cluster / this.#entriesPerSlice) + 1) * this.#entriesPerSlice);
      for (; cluster < sliceEnd; cluster++) {
        const index = cluster % this.#entriesPerSlice;
        const value = this.entries.get(slice, index) + change;
        if (value < 0) throw this.#underflow(cluster);
        if (value > this.entries.max) {
          // What was changed so far is taken back: an image that cannot be written as asked is as it was.
          if (cluster > first) await this.add(first, cluster - first, -change);
          throw this.#overflow(cluster);
        }
        this.entries.set(slice, index, value);
        if (value > 0) continue;
        if (cluster < this.#hint) this.#hint = cluster;
        onFree?.(cluster);
      }
    }
  }

  /**
   * Takes free clusters that follow each other, as many as there are in the first place that has one.
   *
   * @returns the first cluster's offset and how many there are
   */
  async allocateRun(most: number): Promise<{ offset: number; clusters: number }> {
    return await this.#allocate(1, most);
  }

  /** Takes so many clusters that follow each other; returns the offset of the first. */
  async allocate(clusters: number): Promise<number> {
    // Each block begins the range that it counts, so no more than that can follow each other in what exists.
    if (clusters < this.#entriesPerBlock) return (await this.#allocate(clusters, clusters)).offset;
    await this.#beforeChange();
    const first = await this.#table.makeRoom(clusters);
    return await this.#take(first, clusters);
  }

  get #clusterBytes(): number {
    return this.#file.clusterBytes;
  }

  async #allocate(least: number, most: number): Promise<{ offset: number; clusters: number }> {
    await this.#file.event("cluster_alloc");
    await this.#beforeChange();
    const first = await this.#find(least, most);
    let clusters = least;
    while (clusters < most && await this.#isFree(first + clusters)) clusters++;
    return { offset: await this.#take(first, clusters), clusters };
  }

  async #take(first: number, clusters: number): Promise<number> {
    const offset = first * this.#clusterBytes;
    // What is free by its count may be in use all the same, in an image whose counts are wrong.
    this.#file.check(offset, clusters * this.#clusterBytes);
    await this.add(first, clusters, 1);
    if (first <= this.#hint) this.#hint = first + clusters;
    return offset;
  }

  /** Whether a cluster is free that some block counts. */
  async #isFree(cluster: number): Promise<boolean> {
    const block = Math.floor(cluster / this.#entriesPerBlock);
    return this.#table.has(block) && await this.get(cluster) === 0;
  }

  /** The first of so many free clusters that some block counts. */
  async #find(clusters: number, most: number): Promise<number> {
    let run = 0;
    for (let cluster = this.#hint;;) {
      const block = Math.floor(cluster / this.#entriesPerBlock);
      const offset = this.#table.blockOffset(block);
      if (offset === 0) {
        // All is free from here to the end of the range, but its first cluster is for the block.
        await this.#table.makeBlocks(block, 1);
        run = 0;
        cluster = block * this.#entriesPerBlock + 1;
        continue;
      }
      const slice = await this.#slice(cluster, offset);
      const end = (Math.floor(cluster / this.#entriesPerSlice) + 1) * this.#entriesPerSlice;
      for (; cluster < end; cluster++) {
        if (this.entries.get(slice, cluster % this.#entriesPerSlice) !== 0) run = 0;
        else if (++run === clusters) {
          if (clusters === 1) this.#hint = cluster;
          return this.#found(cluster + 1 - clusters, most);
        }
      }
      // With one cluster wanted, all that were looked at are in use.
      if (clusters === 1) this.#hint = cluster;
    }
  }

  #found(first: number, most: number): number {
    if ((first + most) * this.#clusterBytes <= FILE_MAX_BYTES) return first;
    throw noSpace(this.#file, "The image's file would be larger than 4 PiB");
  }

  async #slice(cluster: number, blockOffset: number): Promise<DataView> {
    const key = Math.floor(cluster / this.#entriesPerSlice);
    for (;;) {
      const slice = this.cache.get(key);
      if (slice !== undefined) return slice;
      await this.cache.load(key, blockOffset + this.#inBlock(cluster));
    }
  }

  async #dirtySlice(cluster: number): Promise<DataView> {
    const block = Math.floor(cluster / this.#entriesPerBlock);
    if (this.#table.blockOffset(block) === 0) await this.#table.makeBlocks(block, 1);
    const key = Math.floor(cluster / this.#entriesPerSlice);
    return await this.cache.dirty(key, this.#table.blockOffset(block) + this.#inBlock(cluster));
  }

  /** Where in its block the slice is that counts a cluster, in bytes. */
  #inBlock(cluster: number): number {
    return Math.floor(cluster % this.#entriesPerBlock / this.#entriesPerSlice) * this.#sliceBytes;
  }

  /** Lazy refcounts: they may be wrong in the file as long as the file says so. */
  async #beforeChange(): Promise<void> {
    const { header } = this.#file;
    if ((header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n && !header.dirty) await this.#file.setDirty(true);
  }

  #underflow(cluster: number): BlockError {
    return this.#file.damaged("Refcount underflow: a cluster in use is counted as free", cluster * this.#clusterBytes);
  }

  #overflow(cluster: number): BlockError {
    return new BlockError({
      kind: "unsupported",
      path: this.#file.storage.name,
      operation: "write",
      offset: cluster * this.#clusterBytes,
      reason: `A refcount of ${this.#file.header.refcountBits} bits can't be more than ${this.entries.max}`,
      hint: "'vblk amend -o refcount_bits=16' makes them wider",
    });
  }
}
