/**
 * The refcount table (QEMU's docs/interop/qcow2, "Refcount handling"): where the blocks of counts are, and how more of
 * them are made.
 *
 * It is in memory whole (at most 8 MiB). New blocks and a new table are written at once: each before anything refers to
 * it, with a barrier in between.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { REFCOUNT_TABLE_MAX_BYTES } from "./qcow2_layout.ts";
import { type RefcountEntries, refcountEntries } from "./refcount_entry.ts";
import { hex } from "./refuse.ts";

/** Reads the offsets of blocks from the table in the file, which the header's checks have bounded. */
export async function readRefcountTable(file: Qcow2File): Promise<Float64Array> {
  const { storage, header, clusterBytes, endBytes } = file;
  await file.event("reftable_load");
  const bytes = new Uint8Array(header.refcountTableClusters * clusterBytes);
  const stored = Math.min(bytes.byteLength, endBytes - header.refcountTableOffset);
  await storage.read(header.refcountTableOffset, SegmentList.over(bytes.subarray(0, stored)));
  const view = new DataView(bytes.buffer);
  const offsets = new Float64Array(bytes.byteLength / 8);
  for (let i = 0; i < offsets.length; i++) {
    // Bits 0 to 8 are reserved; whoever sets them has an offset that is refused when it is used.
    offsets[i] = view.getUint32(i * 8) * 0x1_0000_0000 + view.getUint32(i * 8 + 4);
  }
  return offsets;
}

/** No space in an image's file for what it would have to hold. */
export function noSpace(file: Qcow2File, reason: string): BlockError {
  return new BlockError({ kind: "no-space", path: file.storage.name, operation: "write", reason });
}

/** The table of one image. */
export class RefcountTable {
  readonly #file: Qcow2File;
  readonly #entries: RefcountEntries;
  readonly #entriesPerBlock: number;
  readonly #release: (first: number, clusters: number) => Promise<void>;
  /** Offsets of blocks; 0 where there is none, and all its clusters are free. */
  #offsets: Float64Array;

  /** @param release counts clusters down that a table has left */
  constructor(
    file: Qcow2File,
    offsets: Float64Array,
    release: (first: number, clusters: number) => Promise<void>,
  ) {
    const { clusterBytes, header } = file;
    this.#file = file;
    this.#offsets = offsets;
    this.#release = release;
    this.#entries = refcountEntries(header.refcountBits);
    this.#entriesPerBlock = clusterBytes * 8 / header.refcountBits;
    this.#noteTable();
  }

  /** Where a block is; 0 where there is none. */
  blockOffset(block: number): number {
    if (block >= this.#offsets.length) return 0;
    const offset = this.#offsets[block];
    if (offset % this.#clusterBytes !== 0 || offset + this.#clusterBytes > this.#file.endBytes) {
      const place = this.#file.header.refcountTableOffset + block * 8;
      throw this.#file.damaged(`Refblock offset ${hex(offset)} is not a cluster of the file (index ${block})`, place);
    }
    return offset;
  }

  /** Whether there is a block. */
  has(block: number): boolean {
    return block < this.#offsets.length && this.#offsets[block] !== 0;
  }

  /** Makes blocks behind all others, so that so many clusters are free; returns the first of them. */
  async makeRoom(clusters: number): Promise<number> {
    const blocks = Math.ceil(clusters / (this.#entriesPerBlock - 1));
    const behindLast = () => 1 + this.#offsets.findLastIndex((offset) => offset !== 0);
    while (behindLast() + blocks > this.#offsets.length) await this.#growTable(this.#offsets.length, blocks);
    const first = behindLast();
    await this.makeBlocks(first, blocks);
    return first * this.#entriesPerBlock + blocks;
  }

  /**
   * Makes blocks for ranges that follow each other and have none. They are the first clusters of the first range, so
   * the first block counts itself and others. A block is in the table only when the count of its own cluster is: else
   * a crash in between would leave a block that is free by its count.
   */
  async makeBlocks(firstBlock: number, blocks: number): Promise<void> {
    if (firstBlock + blocks > this.#offsets.length) return await this.#growTable(firstBlock, blocks);
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
    const start = this.#offsets.length;
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
      throw noSpace(this.#file, "The refcount table would be larger than 8 MiB; larger clusters need fewer refcounts");
    }
    const first = start * this.#entriesPerBlock;
    const table = new Float64Array(tableClusters * this.#clusterBytes / 8);
    table.set(this.#offsets);
    for (let i = 0; i < count; i++) table[start + i] = (first + i) * this.#clusterBytes;
    await this.#writeBlocks(first, start, count, area);
    const tableOffset = (first + count) * this.#clusterBytes;
    await this.#file.write("refcount table", tableOffset, tableBytes(table));
    await this.#file.barrier();
    await this.#file.writeHeader({ refcountTableOffset: tableOffset, refcountTableClusters: tableClusters });
    // Memory follows the header, whether the barrier succeeds or not.
    this.#offsets = table;
    this.#noteTable();
    await this.#file.barrier();
    const old = header.refcountTableOffset / this.#clusterBytes;
    await this.#release(old, header.refcountTableClusters);
    // Ranges before the area that have no block yet are as they were.
    if (firstBlock < start) await this.makeBlocks(firstBlock, start - firstBlock);
  }

  /** Writes blocks that nothing refers to yet, from cluster `first` on, which count the first `used` clusters. */
  async #writeBlocks(first: number, firstBlock: number, blocks: number, used: number): Promise<void> {
    const block = new DataView(new ArrayBuffer(this.#clusterBytes));
    const firstCounted = firstBlock * this.#entriesPerBlock;
    for (let i = 0; i < blocks; i++) {
      for (let index = 0; index < this.#entriesPerBlock; index++) {
        const cluster = firstCounted + i * this.#entriesPerBlock + index;
        this.#entries.set(block, index, cluster >= first && cluster < first + used ? 1 : 0);
      }
      await this.#file.write("refcount block", (first + i) * this.#clusterBytes, new Uint8Array(block.buffer));
    }
  }

  #publish(block: number, offset: number): void {
    this.#offsets[block] = offset;
    this.#file.metadata.addTable("refcount block", offset);
  }

  /** Tells the overlap checks where table and blocks are. */
  #noteTable(): void {
    const { metadata, header } = this.#file;
    const lengthBytes = header.refcountTableClusters * this.#clusterBytes;
    metadata.setRanges("refcount table", [{ offset: header.refcountTableOffset, lengthBytes }]);
    metadata.setTables("refcount block", this.#offsets.filter((offset) => offset !== 0));
  }

  get #clusterBytes(): number {
    return this.#file.clusterBytes;
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
