/**
 * Makes a qcow2 image: header, refcount table, refcount blocks, L1 table, and, preallocated, L2 tables and clusters, in
 * this order in the file, which is QEMU's for an image whose refcounts fit into one block.
 *
 * The header's first sector is written last, behind a barrier: a crash leaves no image, or a whole one.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";
import {
  type CompleteOptions,
  completeOptions,
  CreateOptionsError,
  l1EntriesFor,
  type Preallocation,
  type Qcow2CreateOptions,
} from "./create_options.ts";
import { changeHeader, encodeHeader, newHeader } from "./header_writer.ts";
import { COPIED_HIGH } from "./qcow2_layout.ts";

export type { Preallocation, Qcow2CreateOptions } from "./create_options.ts";
export { CreateOptionsError } from "./create_options.ts";

/** Where the parts of a new image are: offsets in bytes, sizes in clusters. */
interface Layout {
  readonly tableClusters: number;
  readonly blocks: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly l2Offset: number;
  readonly l2Tables: number;
  readonly dataOffset: number;
  /** Clusters of the file that are in use. */
  readonly clusters: number;
}

/**
 * Makes an image of a storage; what was in it is lost.
 *
 * @param dataStorage for guest data, when the options name a data file; it is emptied too
 * @throws CreateOptionsError before anything is written; BlockError when the storage fails
 */
export async function createQcow2(
  storage: Storage,
  options: Qcow2CreateOptions,
  dataStorage?: Storage,
): Promise<void> {
  const complete = completeOptions(options);
  const layout = layoutOf(complete);
  const first = firstCluster(complete, layout, storage.name);
  await empty(storage);
  if (dataStorage !== undefined) {
    const { sizeBytes, clusterBytes, preallocation } = complete;
    // As in QEMU: clusters that the tables say are there are there as a whole.
    const unit = preallocation === "off" ? SECTOR_BYTES : clusterBytes;
    await createRaw(dataStorage, Math.ceil(sizeBytes / unit) * unit, preallocation);
  }
  await writeRefcounts(storage, complete, layout);
  await writeTables(storage, complete, layout);
  if (complete.preallocation !== "off" && complete.dataFileName === null) {
    await giveSpace(storage, layout.dataOffset, layout.clusters * complete.clusterBytes, complete.preallocation);
  }
  if (first.byteLength > SECTOR_BYTES) {
    await storage.write(SECTOR_BYTES, SegmentList.over(first.subarray(SECTOR_BYTES)));
  }
  await storage.flush();
  await storage.write(0, SegmentList.over(first.subarray(0, SECTOR_BYTES)));
  await storage.flush();
}

/**
 * Makes a raw image of a storage; what was in it is lost.
 *
 * @throws BlockError
 */
export async function createRaw(storage: Storage, sizeBytes: number, preallocation: Preallocation): Promise<void> {
  await empty(storage);
  if (sizeBytes > storage.sizeBytes) await giveSpace(storage, 0, sizeBytes, preallocation);
  await storage.flush();
}

/** Empties a file. A block device cannot be; it must only not look like the image that it was. */
async function empty(storage: Storage): Promise<void> {
  if (storage.sizeBytes === 0) return;
  try {
    await storage.truncate(0);
  } catch (error) {
    if (!(error instanceof BlockError) || error.kind !== "unsupported") throw error;
    await storage.zero(0, Math.min(SECTOR_BYTES, storage.sizeBytes), false);
  }
  // What follows must not be found behind the header of the image that was there.
  await storage.flush();
}

const CHUNK_BYTES = 1 << 20;

/** Makes a file as long as `end`; with `falloc` and `full` the bytes from `from` on are written, so as to have space. */
async function giveSpace(storage: Storage, from: number, end: number, preallocation: Preallocation): Promise<void> {
  if (preallocation === "falloc" || preallocation === "full") {
    const zeros = new Uint8Array(CHUNK_BYTES);
    for (let at = from; at < end; at += CHUNK_BYTES) {
      await storage.write(at, SegmentList.over(zeros.subarray(0, Math.min(CHUNK_BYTES, end - at))));
    }
  } else if (end > storage.sizeBytes) {
    await storage.truncate(end);
  }
}

function layoutOf(options: CompleteOptions): Layout {
  const { sizeBytes, clusterBytes, extendedL2, preallocation, refcountBits } = options;
  const l1Entries = l1EntriesFor(sizeBytes, clusterBytes, extendedL2);
  const l1Clusters = Math.ceil(l1Entries * 8 / clusterBytes);
  const l2Tables = preallocation === "off" ? 0 : l1Entries;
  const guestClusters = Math.ceil(sizeBytes / clusterBytes);
  const dataClusters = preallocation === "off" || options.dataFileName !== null ? 0 : guestClusters;
  const others = 1 + l1Clusters + l2Tables + dataClusters;
  const { tableClusters, blocks } = refcountClustersFor(others, clusterBytes, refcountBits);
  const l1Cluster = 1 + tableClusters + blocks;
  return {
    tableClusters,
    blocks,
    l1Offset: l1Cluster * clusterBytes,
    l1Entries,
    l2Offset: (l1Cluster + l1Clusters) * clusterBytes,
    l2Tables,
    dataOffset: (l1Cluster + l1Clusters + l2Tables) * clusterBytes,
    clusters: others + tableClusters + blocks,
  };
}

/** How many clusters it takes to count so many others, and themselves. */
export function refcountClustersFor(
  others: number,
  clusterBytes: number,
  refcountBits: number,
): { readonly tableClusters: number; readonly blocks: number } {
  const perBlock = clusterBytes * 8 / refcountBits;
  let [tableClusters, blocks] = [0, 0];
  for (let before = -1; before !== tableClusters + blocks;) {
    before = tableClusters + blocks;
    blocks = Math.ceil((others + before) / perBlock);
    tableClusters = Math.ceil(blocks / (clusterBytes / 8));
  }
  return { tableClusters, blocks };
}

function firstCluster(options: CompleteOptions, layout: Layout, path: string): Uint8Array<ArrayBuffer> {
  const { version, clusterBytes, refcountBits } = options;
  const header = changeHeader(newHeader({ version, clusterBits: Math.log2(clusterBytes), refcountBits }), {
    sizeBytes: options.sizeBytes,
    l1Offset: layout.l1Entries === 0 ? 0 : layout.l1Offset,
    l1Entries: layout.l1Entries,
    refcountTableOffset: clusterBytes,
    refcountTableClusters: layout.tableClusters,
    backingName: options.backingName,
    backingFormat: options.backingFormat,
    dataFileName: options.dataFileName,
    externalData: options.dataFileName !== null,
    externalDataRaw: options.dataFileRaw,
    lazyRefcounts: options.lazyRefcounts,
    extendedL2: options.extendedL2,
    compression: options.compression,
  });
  try {
    return encodeHeader(header, path);
  } catch (error) {
    if (!(error instanceof BlockError) || error.kind !== "no-space") throw error;
    const { backingName, backingFormat } = options;
    const what = backingName === null
      ? "Could not update qcow2 header"
      : `Could not assign backing file '${backingName}' with format '${backingFormat ?? "(null)"}'`;
    throw new CreateOptionsError(`${what}: No space left on device`, error.hint);
  }
}

/** The refcount table and its blocks: each cluster of the file is used once. */
async function writeRefcounts(storage: Storage, options: CompleteOptions, layout: Layout): Promise<void> {
  const { clusterBytes, refcountBits } = options;
  const { tableClusters, blocks, clusters } = layout;
  const table = new DataView(new ArrayBuffer(tableClusters * clusterBytes));
  const blocksOffset = (1 + tableClusters) * clusterBytes;
  for (let i = 0; i < blocks; i++) table.setBigUint64(i * 8, BigInt(blocksOffset + i * clusterBytes));
  await storage.write(clusterBytes, SegmentList.over(new Uint8Array(table.buffer)));
  const perBlock = clusterBytes * 8 / refcountBits;
  const whole = refcountsOfOne(clusterBytes, refcountBits, perBlock);
  for (let i = 0; i < blocks; i++) {
    const used = Math.min(perBlock, clusters - i * perBlock);
    const block = used === perBlock ? whole : refcountsOfOne(clusterBytes, refcountBits, used);
    await storage.write(blocksOffset + i * clusterBytes, SegmentList.over(block));
  }
}

/** A refcount block whose first `count` refcounts are 1. Narrow ones fill a byte from its lowest bit. */
function refcountsOfOne(clusterBytes: number, refcountBits: number, count: number): Uint8Array<ArrayBuffer> {
  const block = new Uint8Array(clusterBytes);
  for (let i = 0; i < count; i++) {
    if (refcountBits >= 8) block[(i + 1) * refcountBits / 8 - 1] = 1;
    else block[Math.floor(i * refcountBits / 8)] |= 1 << (i * refcountBits % 8);
  }
  return block;
}

/** The L1 table and, preallocated, the L2 tables. */
async function writeTables(storage: Storage, options: CompleteOptions, layout: Layout): Promise<void> {
  const { clusterBytes } = options;
  const { l1Entries, l1Offset, l2Tables, l2Offset } = layout;
  if (l1Entries === 0) return;
  if (l2Tables === 0) return await storage.zero(l1Offset, l1Entries * 8, true);
  const l1 = new DataView(new ArrayBuffer(Math.ceil(l1Entries * 8 / clusterBytes) * clusterBytes));
  for (let i = 0; i < l1Entries; i++) setEntry(l1, i * 8, l2Offset + i * clusterBytes);
  await storage.write(l1Offset, SegmentList.over(new Uint8Array(l1.buffer)));
  const base = options.dataFileName === null ? layout.dataOffset : 0;
  const clusters = Math.ceil(options.sizeBytes / clusterBytes);
  const entryBytes = options.extendedL2 ? 16 : 8;
  const perTable = clusterBytes / entryBytes;
  const table = new DataView(new ArrayBuffer(clusterBytes));
  for (let i = 0; i < l2Tables; i++) {
    const count = Math.min(perTable, clusters - i * perTable);
    if (count < perTable) new Uint8Array(table.buffer).fill(0);
    // An extended entry has a place for the cluster, and no subcluster in it yet.
    for (let j = 0; j < count; j++) setEntry(table, j * entryBytes, base + (i * perTable + j) * clusterBytes);
    await storage.write(l2Offset + i * clusterBytes, SegmentList.over(new Uint8Array(table.buffer)));
  }
}

/** An entry for a cluster or table that nothing else refers to. */
function setEntry(table: DataView, at: number, hostOffset: number): void {
  table.setUint32(at, Math.floor(hostOffset / 2 ** 32) + COPIED_HIGH);
  table.setUint32(at + 4, hostOffset % 2 ** 32);
}
