/**
 * Reference counts of host clusters (QEMU's docs/interop/qcow2, "Refcount handling"): who may be written in place,
 * and what is free.
 *
 * The refcount table is in memory whole (at most 8 MiB), blocks are in a bounded cache. Counts change in memory; when
 * they reach the file is decided in write_back.ts. New blocks and a new table are written at once, in this file: each
 * before anything refers to it, with a barrier in between.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { COMPATIBLE_LAZY_REFCOUNTS, REFCOUNT_TABLE_MAX_BYTES } from "./qcow2_layout.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { type RefcountEntries, refcountEntries } from "./refcount_entry.ts";
import { hex } from "./refuse.ts";
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
  /** Offsets of blocks; 0 where there is none, and all its clusters are free. */
  #table: Float64Array;
  readonly #entriesPerBlock: number;
  readonly #sliceBytes: number;
  readonly #entriesPerSlice: number;
  /** No cluster below this one is free. */
  #hint = 0;

  private constructor(file: Qcow2File, table: Float64Array, cacheBytes: number) {
    const { clusterBytes, header } = file;
    this.#file = file;
    this.#table = table;
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
    const { storage, header, clusterBytes, endBytes } = file;
    await file.event("reftable_load");
    const bytes = new Uint8Array(header.refcountTableClusters * clusterBytes);
    const stored = Math.min(bytes.byteLength, endBytes - header.refcountTableOffset);
    await storage.read(header.refcountTableOffset, SegmentList.over(bytes.subarray(0, stored)));
    const view = new DataView(bytes.buffer);
    const table = new Float64Array(bytes.byteLength / 8);
    for (let i = 0; i < table.length; i++) {
      // Bits 0 to 8 are reserved; whoever sets them has an offset that is refused when it is used.
      table[i] = view.getUint32(i * 8) * 0x1_0000_0000 + view.getUint32(i * 8 + 4);
    }
    const refcounts = new Refcounts(file, table, cacheBytes);
    refcounts.#noteTable();
    return refcounts;
  }

  /** The count of a cluster. */
  async get(cluster: number): Promise<number> {
    const offset = this.#blockOffset(Math.floor(cluster / this.#entriesPerBlock));
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
      const isCounted = this.#blockOffset(Math.floor(cluster / this.#entriesPerBlock)) !== 0;
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
    const first = await this.#makeRoom(clusters);
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
    return block < this.#table.length && this.#table[block] !== 0 && await this.get(cluster) === 0;
  }

  /** The first of so many free clusters that some block counts. */
  async #find(clusters: number, most: number): Promise<number> {
    let run = 0;
    for (let cluster = this.#hint;;) {
      const block = Math.floor(cluster / this.#entriesPerBlock);
      const offset = this.#blockOffset(block);
      if (offset === 0) {
        // All is free from here to the end of the range, but its first cluster is for the block.
        await this.#makeBlocks(block, 1);
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
    throw this.#noSpace("The image's file would be larger than 4 PiB");
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
    if (this.#blockOffset(block) === 0) await this.#makeBlocks(block, 1);
    const key = Math.floor(cluster / this.#entriesPerSlice);
    return await this.cache.dirty(key, this.#blockOffset(block) + this.#inBlock(cluster));
  }

  /** Where in its block the slice is that counts a cluster, in bytes. */
  #inBlock(cluster: number): number {
    return Math.floor(cluster % this.#entriesPerBlock / this.#entriesPerSlice) * this.#sliceBytes;
  }

  #blockOffset(block: number): number {
    if (block >= this.#table.length) return 0;
    const offset = this.#table[block];
    if (offset % this.#clusterBytes !== 0 || offset + this.#clusterBytes > this.#file.endBytes) {
      const place = this.#file.header.refcountTableOffset + block * 8;
      throw this.#file.damaged(`Refblock offset ${hex(offset)} is not a cluster of the file (index ${block})`, place);
    }
    return offset;
  }

  /** Lazy refcounts: they may be wrong in the file as long as the file says so. */
  async #beforeChange(): Promise<void> {
    const { header } = this.#file;
    if ((header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n && !header.dirty) await this.#file.setDirty(true);
  }

  /** Makes blocks behind all others, so that so many clusters are free; returns the first of them. */
  async #makeRoom(clusters: number): Promise<number> {
    const blocks = Math.ceil(clusters / (this.#entriesPerBlock - 1));
    const behindLast = () => 1 + this.#table.findLastIndex((offset) => offset !== 0);
    while (behindLast() + blocks > this.#table.length) await this.#growTable(this.#table.length, blocks);
    const first = behindLast();
    await this.#makeBlocks(first, blocks);
    return first * this.#entriesPerBlock + blocks;
  }

  /**
   * Makes blocks for ranges that follow each other and have none. They are the first clusters of the first range, so
   * the first block counts itself and others. A block is in the table only when the count of its own cluster is: else
   * a crash in between would leave a block that is free by its count.
   */
  async #makeBlocks(firstBlock: number, blocks: number): Promise<void> {
    if (firstBlock + blocks > this.#table.length) return await this.#growTable(firstBlock, blocks);
    await this.#file.event("refblock_alloc");
    const first = firstBlock * this.#entriesPerBlock;
    await this.#writeBlocks(first, firstBlock, blocks, blocks);
    for (let published = 0; published < blocks;) {
      await this.#file.barrier();
      const next = Math.min(blocks, published === 0 ? 1 : published * this.#entriesPerBlock);
      const offsets = Array.from({ length: next - published }, (_, i) => (first + published + i) * this.#clusterBytes);
      const at = this.#file.header.refcountTableOffset + (firstBlock + published) * 8;
      await this.#file.write("refcount table", at, tableBytes(offsets));
      offsets.forEach((offset, i) => this.#publish(firstBlock + published + i, offset));
      published = next;
    }
  }

  /** Moves to a longer table: new blocks, then the table, a barrier, and one write of the header. */
  async #growTable(firstBlock: number, blocks: number): Promise<void> {
    await this.#file.event("reftable_grow");
    const { header } = this.#file;
    // All that the table can't hold is free, so the area begins there.
    const start = this.#table.length;
    let area = 0;
    let count = Math.max(1, firstBlock + blocks - start);
    let tableClusters = 0;
    for (let before = -1; before !== area;) {
      before = area;
      const entries = Math.max(start + count + blocks, Math.ceil(start * 1.5));
      tableClusters = Math.ceil(entries * 8 / this.#clusterBytes);
      area = count + tableClusters;
      count = Math.max(count, Math.ceil(area / this.#entriesPerBlock));
    }
    if (tableClusters * this.#clusterBytes > REFCOUNT_TABLE_MAX_BYTES) {
      throw this.#noSpace("The refcount table would be larger than 8 MiB; larger clusters need fewer refcounts");
    }
    const first = start * this.#entriesPerBlock;
    const table = new Float64Array(tableClusters * this.#clusterBytes / 8);
    table.set(this.#table);
    for (let i = 0; i < count; i++) table[start + i] = (first + i) * this.#clusterBytes;
    await this.#writeBlocks(first, start, count, area);
    const tableOffset = (first + count) * this.#clusterBytes;
    await this.#file.write("refcount table", tableOffset, tableBytes(table));
    await this.#file.barrier();
    await this.#file.writeHeader({ refcountTableOffset: tableOffset, refcountTableClusters: tableClusters });
    // Memory follows the header, whether the barrier succeeds or not.
    this.#table = table;
    this.#noteTable();
    await this.#file.barrier();
    const old = header.refcountTableOffset / this.#clusterBytes;
    await this.add(old, header.refcountTableClusters, -1);
    // Ranges before the area that have no block yet are as they were.
    if (firstBlock < start) await this.#makeBlocks(firstBlock, start - firstBlock);
  }

  /** Writes blocks that nothing refers to yet, from cluster `first` on, which count the first `used` clusters. */
  async #writeBlocks(first: number, firstBlock: number, blocks: number, used: number): Promise<void> {
    const block = new DataView(new ArrayBuffer(this.#clusterBytes));
    const firstCounted = firstBlock * this.#entriesPerBlock;
    for (let i = 0; i < blocks; i++) {
      for (let index = 0; index < this.#entriesPerBlock; index++) {
        const cluster = firstCounted + i * this.#entriesPerBlock + index;
        this.entries.set(block, index, cluster >= first && cluster < first + used ? 1 : 0);
      }
      await this.#file.write("refcount block", (first + i) * this.#clusterBytes, new Uint8Array(block.buffer));
    }
  }

  #publish(block: number, offset: number): void {
    this.#table[block] = offset;
    this.#file.metadata.addTable("refcount block", offset);
  }

  /** Tells the overlap checks where table and blocks are. */
  #noteTable(): void {
    const { metadata, header } = this.#file;
    const lengthBytes = header.refcountTableClusters * this.#clusterBytes;
    metadata.setRanges("refcount table", [{ offset: header.refcountTableOffset, lengthBytes }]);
    metadata.setTables("refcount block", this.#table.filter((offset) => offset !== 0));
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

  #noSpace(reason: string): BlockError {
    return new BlockError({ kind: "no-space", path: this.#file.storage.name, operation: "write", reason });
  }
}

function tableBytes(offsets: ArrayLike<number>): Uint8Array {
  const bytes = new Uint8Array(offsets.length * 8);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < offsets.length; i++) {
    view.setUint32(i * 8, Math.floor(offsets[i] / 0x1_0000_0000));
    view.setUint32(i * 8 + 4, offsets[i] % 0x1_0000_0000);
  }
  return bytes;
}
