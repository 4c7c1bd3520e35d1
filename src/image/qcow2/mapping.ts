/**
 * From an offset on the disk to a place in the file: L1 table, L2 table, entry (QEMU's docs/interop/qcow2,
 * "Cluster mapping").
 *
 * The L1 table is in memory whole (at most 32 MiB), L2 tables are in a bounded cache. A lookup that hits the cache
 * allocates nothing and waits for nothing: its answer is left in this object, to be used before anything else is
 * looked up.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Completion, Storage } from "../../storage/storage.ts";
import type { Qcow2Header } from "./header.ts";
import { COMPRESSED, CORRUPT, DATA, L2EntryReader, subclustersOf, UNALLOCATED } from "./l2_entry.ts";
import { COPIED_HIGH, L1_RESERVED_HIGH, L1_RESERVED_LOW, OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import { corrupt, hex } from "./refuse.ts";
import { TableCache } from "./table_cache.ts";

/** Of a larger L2 table only so much is read at a time. */
const SLICE_BYTES = 65536;

/** Looks places up. */
export class Qcow2Mapping {
  /** What the run that was looked up is: UNALLOCATED, DATA, ZERO or COMPRESSED. */
  kind: number = UNALLOCATED;
  /** How long the run is, in bytes. */
  lengthBytes = 0;
  /** DATA: where the run starts. COMPRESSED: where the compressed data of its cluster start. */
  hostOffset = 0;
  /** COMPRESSED: how many bytes the compressed data take at most. */
  compressedBytes = 0;
  /** DATA: whether the run may be written in place. */
  copied = false;

  /** Reads entries; after a lookup it has the one that the run ended with. */
  readonly entry: L2EntryReader;
  readonly entryBytes: number;
  /** Size of what the cache holds at a time, and bytes of the disk that it describes. */
  readonly sliceBytes: number;
  readonly sliceSpan: number;
  /** Bytes of the disk that a whole L2 table describes. */
  readonly tableSpan: number;
  readonly subclusters: number;
  readonly cache: TableCache;
  readonly #path: string;
  #l1: DataView;
  #l1Offset: number;
  #fileBytes: number;
  readonly #externalData: boolean;
  readonly #clusterBytes: number;
  readonly #subclusterBytes: number;
  readonly #sliceEntries: number;

  private constructor(storage: Storage, header: Qcow2Header, l1: DataView, fileBytes: number, cacheBytes: number) {
    this.#path = storage.name;
    this.#l1 = l1;
    this.#l1Offset = header.l1Offset;
    this.#fileBytes = fileBytes;
    this.#externalData = header.externalData;
    this.entry = new L2EntryReader(header, fileBytes);
    this.#clusterBytes = 2 ** header.clusterBits;
    this.subclusters = subclustersOf(header);
    this.#subclusterBytes = this.#clusterBytes / this.subclusters;
    this.entryBytes = header.extendedL2 ? 16 : 8;
    this.sliceBytes = Math.min(SLICE_BYTES, this.#clusterBytes);
    this.#sliceEntries = this.sliceBytes / this.entryBytes;
    this.sliceSpan = this.#sliceEntries * this.#clusterBytes;
    this.tableSpan = this.#clusterBytes / this.entryBytes * this.#clusterBytes;
    this.cache = new TableCache(storage, this.sliceBytes, Math.floor(cacheBytes / this.sliceBytes), {
      load: "l2_load",
      update: "l2_update",
    });
  }

  /** Reads the L1 table. The header's checks have bounded it, and put it inside the file. */
  static async open(
    storage: Storage,
    header: Qcow2Header,
    fileBytes: number,
    cacheBytes: number,
  ): Promise<Qcow2Mapping> {
    const l1 = new Uint8Array(header.l1Entries * 8);
    if (l1.byteLength > 0) await storage.read(header.l1Offset, SegmentList.over(l1));
    return new Qcow2Mapping(storage, header, new DataView(l1.buffer), fileBytes, cacheBytes);
  }

  /**
   * Finds the run that starts at `offset`, of at most `limitBytes` (not 0), and leaves it in this object's fields.
   *
   * @param inPlace whether the run ends where clusters that may be written in place and others meet
   * @returns nothing when it was found; a promise when a table had to be waited for: then look again
   * @throws BlockError for an entry that breaks the format
   */
  lookup(offset: number, limitBytes: number, inPlace = false): Completion {
    const key = Math.floor(offset / this.sliceSpan);
    const table = this.cache.get(key);
    if (table !== undefined) return this.#scan(table, offset, limitBytes, inPlace);
    return this.#miss(key, offset, limitBytes, inPlace);
  }

  #miss(key: number, offset: number, limitBytes: number, inPlace: boolean): Completion {
    const tableOffset = this.tableOffset(this.l1Index(offset));
    if (tableOffset === 0) return this.#noTable(offset, limitBytes);
    const loading = this.cache.load(key, this.sliceOffset(tableOffset, offset));
    if (loading !== undefined) return loading;
    return this.#scan(this.cache.get(key)!, offset, limitBytes, inPlace);
  }

  /** Number of the L1 entry for an offset on the disk. */
  l1Index(offset: number): number {
    return Math.floor(offset / this.tableSpan);
  }

  /** The L1 table as it is in memory. */
  get l1(): DataView {
    return this.#l1;
  }

  /** Another L1 table is the active one now; nothing of the last one's is kept. */
  replaceL1(l1: DataView, l1Offset: number): void {
    this.#l1 = l1;
    this.#l1Offset = l1Offset;
    this.cache.clear();
  }

  /** A longer or shorter L1 table takes the place of one with the same entries, as far as both go. */
  resizeL1(l1: DataView, l1Offset: number): void {
    this.#l1 = l1;
    this.#l1Offset = l1Offset;
  }

  /** Changes an L1 entry, in memory. */
  setTableOffset(index: number, tableOffset: number, copied: boolean): void {
    const high = Math.floor(tableOffset / 0x1_0000_0000);
    this.#l1.setUint32(index * 8, copied ? high | COPIED_HIGH : high);
    this.#l1.setUint32(index * 8 + 4, tableOffset % 0x1_0000_0000);
  }

  /** Whether no snapshot shares the L2 table that an L1 entry refers to. */
  isTableCopied(index: number): boolean {
    return (this.#l1.getUint32(index * 8) & COPIED_HIGH) !== 0;
  }

  /** Where the slice of an L2 table is that has the entry for an offset on the disk. */
  sliceOffset(tableOffset: number, offset: number): number {
    return tableOffset + Math.floor(offset % this.tableSpan / this.sliceSpan) * this.sliceBytes;
  }

  /** Where in its slice the entry for an offset on the disk is, in bytes. */
  inSlice(offset: number): number {
    return Math.floor(offset / this.#clusterBytes) % this.#sliceEntries * this.entryBytes;
  }

  /** The image's file has become longer: more places are inside. */
  grow(fileBytes: number): void {
    this.#fileBytes = fileBytes;
    this.entry.grow(fileBytes);
  }

  /** Nothing is allocated as far as the L1 table has no entries; that can be terabytes. */
  #noTable(offset: number, limitBytes: number): void {
    let index = Math.floor(offset / this.tableSpan);
    const end = offset + limitBytes;
    do index++; while (index * this.tableSpan < end && this.#isEmpty(index));
    this.kind = UNALLOCATED;
    this.lengthBytes = Math.min(end, index * this.tableSpan) - offset;
  }

  #isEmpty(l1Index: number): boolean {
    return this.#l1.getUint32(l1Index * 8) === 0 && this.#l1.getUint32(l1Index * 8 + 4) === 0;
  }

  /**
   * Where the L2 table is that entry `index` of the L1 table refers to; 0 when to none.
   *
   * @throws BlockError for an entry that breaks the format
   */
  tableOffset(index: number): number {
    const high = this.#l1.getUint32(index * 8);
    const low = this.#l1.getUint32(index * 8 + 4);
    const offset = (high & OFFSET_HIGH_MASK) * 0x1_0000_0000 + ((low & OFFSET_LOW_MASK) >>> 0);
    let fault: string | null = null;
    if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) fault = "has reserved bits set";
    else if (offset % this.#clusterBytes !== 0) {
      fault = `refers to an L2 table at ${hex(offset)}, which is not the start of a cluster`;
    } else if (offset !== 0 && offset + this.#clusterBytes > this.#fileBytes) {
      fault = `refers to an L2 table at ${hex(offset)}, but the file ends at ${hex(this.#fileBytes)}`;
    }
    if (fault === null) return offset;
    const place = this.#l1Offset + index * 8;
    throw corrupt(this.#path, "read", `The image is corrupt: entry ${index} of the L1 table ${fault}`, place);
  }

  #scan(table: DataView, offset: number, limitBytes: number, inPlace: boolean): void {
    const clusterStart = offset - offset % this.#clusterBytes;
    const index = Math.floor(offset / this.#clusterBytes) % this.#sliceEntries;
    const kind = this.entry.read(table, index * this.entryBytes, clusterStart);
    if (kind === CORRUPT) throw this.corruptEntry(offset, "read");
    const inCluster = offset - clusterStart;
    const isPrivate = this.entry.copied && this.isTableCopied(this.l1Index(offset));
    this.copied = this.#externalData || isPrivate;
    if (kind === COMPRESSED) {
      this.kind = COMPRESSED;
      this.hostOffset = this.entry.hostOffset;
      this.compressedBytes = this.entry.compressedBytes;
      this.lengthBytes = Math.min(limitBytes, this.#clusterBytes - inCluster);
      return;
    }
    const sub = this.subclusters === 1 ? 0 : Math.floor(inCluster / this.#subclusterBytes);
    this.kind = this.subclusters === 1 ? kind : this.entry.subcluster(sub, kind === DATA);
    this.hostOffset = this.entry.hostOffset + inCluster;
    const length = this.#runFrom(table, index, sub, kind, clusterStart, inCluster + limitBytes, inPlace);
    this.lengthBytes = Math.min(limitBytes, length - inCluster);
  }

  /**
   * How far the run goes on, from the start of its first cluster, within the table; nothing behind `wanted` matters.
   * An entry that is corrupt ends the run: whoever gets there hears of it.
   */
  #runFrom(
    table: DataView,
    first: number,
    firstSub: number,
    firstKind: number,
    clusterStart: number,
    wanted: number,
    inPlace: boolean,
  ): number {
    const start = this.entry.hostOffset;
    const copied = this.entry.copied;
    let length = 0;
    let kind = firstKind;
    for (let index = first;;) {
      const end = this.subclusters === 1 ? 1 : this.#sameSubclusters(index === first ? firstSub : 0, kind === DATA);
      if (end < this.subclusters) return length + end * this.#subclusterBytes;
      length += this.#clusterBytes;
      if (length >= wanted || ++index === this.#sliceEntries) return length;
      kind = this.entry.read(table, index * this.entryBytes, clusterStart + length);
      if (kind === CORRUPT || kind === COMPRESSED) return length;
      const here = this.subclusters === 1 ? kind : this.entry.subcluster(0, kind === DATA);
      if (inPlace && this.entry.copied !== copied) return length;
      if (here !== this.kind || (here === DATA && this.entry.hostOffset !== start + length)) return length;
    }
  }

  /** The first subcluster behind `from` that is not of this run's kind. */
  #sameSubclusters(from: number, placed: boolean): number {
    let sub = from + 1;
    while (sub < this.subclusters && this.entry.subcluster(sub, placed) === this.kind) sub++;
    return sub;
  }

  /** What is wrong with the entry for an offset on the disk, which has just been read. */
  corruptEntry(offset: number, operation: "read" | "write"): Error {
    const inTable = Math.floor((offset % this.tableSpan) / this.#clusterBytes);
    const l1Index = Math.floor(offset / this.tableSpan);
    const place = this.tableOffset(l1Index) + inTable * this.entryBytes;
    const what = `entry ${inTable} of the L2 table (L1 index ${l1Index}) ${this.entry.faultText()}`;
    return corrupt(this.#path, operation, `The image is corrupt: ${what}`, place);
  }
}
