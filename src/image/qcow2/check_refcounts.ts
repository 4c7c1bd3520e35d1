/**
 * The refcounts in a file (QEMU's docs/interop/qcow2, "Refcount handling"), compared with the references that were
 * counted, and changed where a repair wants it.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { ClusterCounts, PAGE_CLUSTERS, readPadded, type References } from "./check_references.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import type { Qcow2Header } from "./header.ts";
import { type RefcountEntries, refcountEntries } from "./refcount_entry.ts";

/** Low bits of an entry of the refcount table that mean nothing. */
const RESERVED_LOW = 0x1ff;

/** What a repair makes of a refcount that differs: the new one, or `stored` to leave it. */
export type Change = (cluster: number, stored: number, references: number) => number;

/** The refcount table, and what its blocks say. */
export class StoredRefcounts {
  /** The highest cluster that is in use, by its refcount or by a reference. */
  highestCluster = 0;
  /** Whether a sweep found all refcounts to be the numbers of references, or made them so. */
  matches = false;
  /** Whether refcounts can only be repaired by writing all of them anew. */
  mustRebuild = false;
  readonly perBlock: number;
  readonly #storage: Storage;
  readonly #clusterBytes: number;
  readonly #table: DataView;
  readonly #entries: RefcountEntries;
  /** Whether they have 16 bits, as in nearly all images. */
  readonly #isPlain: boolean;
  readonly #block: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  /** Where the block that was read last is. */
  #blockOffset = -1;
  /** Pages in which a refcount is not the number of references; elsewhere the two are the same. */
  #different = new ClusterCounts();

  private constructor(storage: Storage, header: Qcow2Header, table: DataView) {
    this.#storage = storage;
    this.#clusterBytes = 2 ** header.clusterBits;
    this.perBlock = this.#clusterBytes * 8 / header.refcountBits;
    this.#table = table;
    this.#entries = refcountEntries(header.refcountBits);
    this.#isPlain = header.refcountBits === 16;
    this.#block = new Uint8Array(this.#clusterBytes);
    this.#view = new DataView(this.#block.buffer);
  }

  /** Reads the refcount table. */
  static async open(storage: Storage, header: Qcow2Header): Promise<StoredRefcounts> {
    const fileBytes = storage.sizeBytes;
    const lengthBytes = header.refcountTableClusters * 2 ** header.clusterBits;
    const stored = Math.max(0, Math.min(lengthBytes, Math.ceil((fileBytes - header.refcountTableOffset) / 8) * 8));
    const bytes = new Uint8Array(stored);
    await readPadded(storage, fileBytes, header.refcountTableOffset, bytes);
    return new StoredRefcounts(storage, header, new DataView(bytes.buffer));
  }

  /** Where a block is: 0 when there is none, and also where its cluster is broken by bits that mean nothing. */
  blockOffset(index: number): number {
    if (index * 8 >= this.#table.byteLength) return 0;
    const low = this.#table.getUint32(index * 8 + 4);
    return this.#table.getUint32(index * 8) * 0x1_0000_0000 + low - low % 512;
  }

  /** Offsets of all blocks that may be looked at. */
  get blocks(): number[] {
    const offsets: number[] = [];
    for (let i = 0; i < this.#table.byteLength / 8; i++) {
      const offset = this.blockOffset(i);
      if (offset !== 0 && offset % this.#clusterBytes === 0) offsets.push(offset);
    }
    return offsets;
  }

  /** Checks the refcount table, and counts the references to the blocks. */
  checkBlocks(references: References, findings: Findings, repairing: boolean): void {
    const table = this.#table;
    const damaged = (line: string) => {
      findings.corruption(line);
      this.mustRebuild = true;
    };
    for (let i = 0; i < table.byteLength / 8; i++) {
      const low = table.getUint32(i * 8 + 4);
      if (low === 0 && table.getUint32(i * 8) === 0) continue;
      if ((low & RESERVED_LOW) !== 0) {
        damaged(`ERROR refcount table entry ${i} has reserved bits set`);
        continue;
      }
      const offset = this.blockOffset(i);
      const cluster = offset / this.#clusterBytes;
      if (!Number.isInteger(cluster)) {
        damaged(`ERROR refcount block ${i} is not cluster aligned; refcount table entry corrupted`);
      } else if (cluster >= references.clusterCount) {
        // QEMU makes the file long enough for it to exist. An image that lies about sizes would then have any.
        damaged(`${repairing ? "Repairing" : "ERROR"} refcount block ${i} is outside image`);
      } else {
        references.add(offset, this.#clusterBytes);
        const count = references.counts.get(cluster);
        if (count !== 1) damaged(`ERROR refcount block ${i} refcount=${count}`);
      }
    }
  }

  /**
   * Compares all refcounts with the references, cluster by cluster.
   *
   * @param differs called for each that differs; what it returns is written, unless it is what is stored
   */
  async sweep(references: References, findings: Findings, differs: Change): Promise<void> {
    this.highestCluster = 0;
    this.matches = true;
    this.#different = new ClusterCounts();
    const step = Math.min(this.perBlock, PAGE_CLUSTERS);
    for (let first = 0; first < references.clusterCount; first += step) {
      const offset = this.blockOffset(Math.floor(first / this.perBlock));
      const count = Math.min(step, references.clusterCount - first);
      if (offset % this.#clusterBytes !== 0) {
        this.matches = false;
        unreadable(findings, first, count);
        continue;
      }
      if (offset === 0 && references.counts.page(first) === undefined) continue;
      if (offset !== 0) await this.#load(offset);
      if (this.#compare(references.counts, first, count, offset !== 0, differs)) await this.#store();
    }
    this.#blockOffset = -1;
  }

  /** The refcount of a cluster: the one in the file, after a sweep; `null` where it can't be read. */
  get(cluster: number, references: References): number | null | Promise<number> {
    if (cluster >= references.clusterCount) return this.#getBehind(cluster);
    const offset = this.blockOffset(Math.floor(cluster / this.perBlock));
    if (offset % this.#clusterBytes !== 0) return null;
    const page = this.#different.page(cluster) ?? references.counts.page(cluster);
    return page === undefined ? 0 : page[cluster & 0xffff];
  }

  /** Whether a sweep found a cluster that has neither references nor a refcount. */
  isFree(cluster: number, references: References): boolean {
    return references.counts.get(cluster) === 0 && this.get(cluster, references) === 0;
  }

  /** Whether a block exists that has the refcount of a cluster. */
  covers(cluster: number): boolean {
    const offset = this.blockOffset(Math.floor(cluster / this.perBlock));
    return offset !== 0 && offset % this.#clusterBytes === 0;
  }

  /** Writes one refcount. */
  async set(cluster: number, value: number): Promise<void> {
    await this.#load(this.blockOffset(Math.floor(cluster / this.perBlock)));
    this.#entries.set(this.#view, cluster % this.perBlock, value);
    await this.#store();
    this.#blockOffset = -1;
  }

  /** What a refcount block says of a cluster behind the end of the file. */
  #getBehind(cluster: number): number | null | Promise<number> {
    const offset = this.blockOffset(Math.floor(cluster / this.perBlock));
    if (offset === 0) return 0;
    if (offset % this.#clusterBytes !== 0) return null;
    const at = cluster % this.perBlock;
    if (offset === this.#blockOffset) return this.#entries.get(this.#view, at);
    return this.#load(offset).then(() => this.#entries.get(this.#view, at));
  }

  async #load(offset: number): Promise<void> {
    if (offset === this.#blockOffset) return;
    this.#blockOffset = -1;
    await readPadded(this.#storage, this.#storage.sizeBytes, offset, this.#block);
    this.#blockOffset = offset;
  }

  async #store(): Promise<void> {
    await this.#storage.write(this.#blockOffset, SegmentList.over(this.#block));
  }

  /** Compares a part of a page; returns whether the block has been changed. */
  #compare(counts: ClusterCounts, first: number, count: number, hasBlock: boolean, differs: Change): boolean {
    const entries = this.#entries;
    const view = this.#view;
    const page = counts.page(first);
    const at = first & 0xffff;
    const index = first % this.perBlock;
    let changed = false;
    for (let i = 0; i < count; i++) {
      // Nearly always there is no difference.
      if (hasBlock && page !== undefined) i = this.#equalUntil(index, page, at, i, count);
      if (i === count) break;
      const stored = hasBlock ? entries.get(view, index + i) : 0;
      const references = page === undefined ? 0 : page[at + i];
      if (stored === references) {
        if (stored !== 0) this.highestCluster = first + i;
        continue;
      }
      this.highestCluster = first + i;
      if (stored === 0) this.mustRebuild = true;
      const next = differs(first + i, stored, references);
      if (next !== references) this.#note(counts, first + i, next);
      if (next === stored) continue;
      entries.set(view, index + i, next);
      changed = true;
    }
    if (hasBlock && page !== undefined) {
      let last = count - 1;
      while (last >= 0 && page[at + last] === 0) last--;
      if (last >= 0) this.highestCluster = Math.max(this.highestCluster, first + last);
    }
    return changed;
  }

  /** Where, from `i` on, a refcount is not the number of references. */
  #equalUntil(index: number, page: Uint32Array, at: number, i: number, count: number): number {
    const view = this.#view;
    let same = i;
    if (this.#isPlain) {
      while (same < count && view.getUint16((index + same) * 2) === page[at + same]) same++;
      return same;
    }
    const entries = this.#entries;
    while (same < count && entries.get(view, index + same) === page[at + same]) same++;
    return same;
  }

  #note(counts: ClusterCounts, cluster: number, stored: number): void {
    this.matches = false;
    if (this.#different.page(cluster) === undefined) {
      this.#different.setPage(cluster, counts.page(cluster)?.slice() ?? new Uint32Array(PAGE_CLUSTERS));
    }
    this.#different.set(cluster, stored);
  }
}

/** Refcounts whose block is in an impossible place. */
function unreadable(findings: Findings, first: number, count: number): void {
  for (let cluster = first; cluster < first + count; cluster++) {
    findings.checkError(`Can't get refcount for cluster ${cluster}: Input/output error`);
  }
}

/** Says what a comparison found, as QEMU does without a repair. */
export function reportDifferences(findings: Findings): Change {
  return (cluster, stored, references) => {
    const tooLow = stored < references;
    if (tooLow) findings.corruptions++;
    else findings.leaks++;
    findings.say(`${tooLow ? "ERROR" : "Leaked"} cluster ${cluster} refcount=${stored} reference=${references}`);
    return stored;
  };
}

/** @throws CheckFailure where only new refcounts would help */
export function refuseRebuild(findings: Findings): never {
  findings.checkError("ERROR need to rebuild refcount structures");
  throw new CheckFailure("Input/output error");
}
