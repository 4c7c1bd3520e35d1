/**
 * Changes the width of an image's refcounts (QEMU's docs/interop/qcow2, "Host cluster management").
 *
 * A whole new table with new blocks is written behind everything that is in use. Nothing refers to it, so a crash there
 * leaves the image as it was. Then a barrier, and one write of the header's first sector, which has the width and the
 * place of the table: all of the old structure, or all of the new one. The new counts are those that are right then: the
 * new structure is in use, the old one is free.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { REFCOUNT_TABLE_MAX_BYTES } from "./qcow2_layout.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { type RefcountEntries, refcountEntries } from "./refcount_entry.ts";
import { hex } from "./refuse.ts";
import { replaceHeader } from "./replace_header.ts";
import type { WriteBack } from "./write_back.ts";

/** The counts as they are in the file. */
interface OldCounts {
  /** Offsets of blocks; 0 where there is none. */
  readonly table: Float64Array;
  /** Clusters of the table and the blocks themselves. */
  readonly own: ReadonlySet<number>;
  readonly perBlock: number;
  readonly entries: RefcountEntries;
}

/** Where the new structure will be; all in clusters, but for the numbers of blocks. */
interface NewPlaces {
  readonly first: number;
  /** Numbers of the blocks that there will be, in order: others would be all zeros. */
  readonly blocks: readonly number[];
  readonly tableClusters: number;
}

/**
 * Gives the refcounts another width. The image is clean, and nobody writes; it must be closed afterwards.
 *
 * @param onProgress told which part of the work is done, from 0 to 1
 * @throws BlockError when a count does not fit, before anything is written; or what the storage failed with
 */
export async function changeRefcountBits(
  { file }: WriteBack,
  refcountBits: number,
  onProgress: (part: number) => void,
): Promise<void> {
  const old = await readOldCounts(file);
  const perBlock = file.clusterBytes * 8 / refcountBits;
  const { used, last } = await survey(file, old, refcountBits, perBlock, (part) => onProgress(part / 2));
  const places = placesFor(file, Math.max(last + 1, Math.ceil(file.endBytes / file.clusterBytes)), used, perBlock);
  await writeBlocks(file, old, places, refcountBits, (part) => onProgress(0.5 + part / 2));
  const tableOffset = await writeTable(file, places);
  // A barrier, one sector, a barrier.
  await replaceHeader(file, {
    refcountBits,
    refcountTableOffset: tableOffset,
    refcountTableClusters: places.tableClusters,
  });
}

async function readOldCounts(file: Qcow2File): Promise<OldCounts> {
  const { header, clusterBytes, storage, endBytes } = file;
  const bytes = new Uint8Array(header.refcountTableClusters * clusterBytes);
  const stored = Math.min(bytes.byteLength, endBytes - header.refcountTableOffset);
  await storage.read(header.refcountTableOffset, SegmentList.over(bytes.subarray(0, stored)));
  const view = new DataView(bytes.buffer);
  const table = new Float64Array(bytes.byteLength / 8);
  const own = new Set<number>();
  for (let i = 0; i < header.refcountTableClusters; i++) own.add(header.refcountTableOffset / clusterBytes + i);
  for (let i = 0; i < table.length; i++) {
    const offset = view.getUint32(i * 8) * 0x1_0000_0000 + view.getUint32(i * 8 + 4);
    if (offset === 0) continue;
    // A place that is used twice would be read over and over, and counts things that are not there.
    if (offset % clusterBytes !== 0 || offset + clusterBytes > endBytes || own.has(offset / clusterBytes)) {
      throw file.damaged(`Refblock offset ${hex(offset)} can't be right (index ${i})`, header.refcountTableOffset);
    }
    table[i] = offset;
    own.add(offset / clusterBytes);
  }
  const entries = refcountEntries(header.refcountBits);
  return { table, own, perBlock: clusterBytes * 8 / header.refcountBits, entries };
}

/** Which blocks the new structure needs, and which cluster is the last one in use. */
async function survey(
  file: Qcow2File,
  old: OldCounts,
  refcountBits: number,
  perBlock: number,
  onProgress: (part: number) => void,
): Promise<{ used: Set<number>; last: number }> {
  const { max } = refcountEntries(refcountBits);
  const used = new Set<number>();
  let last = 0;
  const block = new DataView(new ArrayBuffer(file.clusterBytes));
  for (let i = 0; i < old.table.length; i++) {
    if (old.table[i] === 0) continue;
    await file.storage.read(old.table[i], SegmentList.over(new Uint8Array(block.buffer)));
    for (let index = 0; index < old.perBlock; index++) {
      const count = old.entries.get(block, index);
      const cluster = i * old.perBlock + index;
      if (count === 0 || old.own.has(cluster)) continue;
      if (count > max) throw tooMany(file, refcountBits, cluster * file.clusterBytes, count);
      used.add(Math.floor(cluster / perBlock));
      last = cluster;
    }
    onProgress((i + 1) / old.table.length);
  }
  return { used, last };
}

function tooMany(file: Qcow2File, bits: number, offset: number, count: number): BlockError {
  const reason = `Cannot decrease refcount entry width to ${bits} bits: Cluster at offset ${hex(offset)} has a ` +
    `refcount of ${count}`;
  return new BlockError({ kind: "invalid", path: file.storage.name, operation: "write", reason });
}

/** Blocks first, then the table; it counts itself. */
function placesFor(file: Qcow2File, first: number, used: ReadonlySet<number>, perBlock: number): NewPlaces {
  const blocks = new Set(used);
  let tableClusters = 0;
  for (let before = -1; before !== blocks.size + tableClusters;) {
    before = blocks.size + tableClusters;
    const end = first + before;
    for (let block = Math.floor(first / perBlock); block * perBlock < end; block++) blocks.add(block);
    const highest = [...blocks].reduce((a, b) => Math.max(a, b), 0);
    tableClusters = Math.ceil((highest + 1) * 8 / file.clusterBytes);
  }
  if (tableClusters * file.clusterBytes > REFCOUNT_TABLE_MAX_BYTES) {
    const reason = "The refcount table would be larger than 8 MiB";
    throw new BlockError({ kind: "no-space", path: file.storage.name, operation: "write", reason });
  }
  return { first, blocks: [...blocks].sort((a, b) => a - b), tableClusters };
}

async function writeBlocks(
  file: Qcow2File,
  old: OldCounts,
  { first, blocks, tableClusters }: NewPlaces,
  refcountBits: number,
  onProgress: (part: number) => void,
): Promise<void> {
  const entries = refcountEntries(refcountBits);
  const perBlock = file.clusterBytes * 8 / refcountBits;
  const end = first + blocks.length + tableClusters;
  const counts = new OldReader(file, old);
  const block = new DataView(new ArrayBuffer(file.clusterBytes));
  for (let i = 0; i < blocks.length; i++) {
    const start = blocks[i] * perBlock;
    new Uint8Array(block.buffer).fill(0);
    for (let index = 0; index < perBlock;) {
      // As far as one of the old blocks goes.
      const stop = Math.min(perBlock, index + old.perBlock - (start + index) % old.perBlock);
      const source = await counts.blockOf(start + index);
      for (; index < stop; index++) {
        const cluster = start + index;
        const isNew = cluster >= first && cluster < end;
        const had = source === null || old.own.has(cluster) ? 0 : old.entries.get(source, cluster % old.perBlock);
        entries.set(block, index, isNew ? 1 : had);
      }
    }
    await file.write("refcount block", (first + i) * file.clusterBytes, new Uint8Array(block.buffer));
    onProgress((i + 1) / blocks.length);
  }
}

/** Reads old blocks, one at a time. */
class OldReader {
  readonly #file: Qcow2File;
  readonly #old: OldCounts;
  readonly #block: DataView<ArrayBuffer>;
  #number = -1;

  constructor(file: Qcow2File, old: OldCounts) {
    this.#file = file;
    this.#old = old;
    this.#block = new DataView(new ArrayBuffer(file.clusterBytes));
  }

  /** The block that counts a cluster; `null` where there is none. */
  async blockOf(cluster: number): Promise<DataView | null> {
    const { table, perBlock } = this.#old;
    const number = Math.floor(cluster / perBlock);
    if (number >= table.length || table[number] === 0) return null;
    if (number !== this.#number) {
      await this.#file.storage.read(table[number], SegmentList.over(new Uint8Array(this.#block.buffer)));
      this.#number = number;
    }
    return this.#block;
  }
}

/** Writes the new table; returns where. */
async function writeTable(file: Qcow2File, { first, blocks, tableClusters }: NewPlaces): Promise<number> {
  const { clusterBytes } = file;
  const table = new DataView(new ArrayBuffer(tableClusters * clusterBytes));
  blocks.forEach((block, i) => table.setBigUint64(block * 8, BigInt((first + i) * clusterBytes)));
  const offset = (first + blocks.length) * clusterBytes;
  await file.write("refcount table", offset, new Uint8Array(table.buffer));
  return offset;
}
