/**
 * Zeros and discards: what an entry can say, no cluster need store (QEMU's docs/interop/qcow2, "Cluster mapping").
 *
 * As in QEMU, a discard looks at whole clusters only, and leaves version 2 images with a backing image alone: these
 * can't say that a cluster reads as zeros, and what the backing image has there must not come back.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { bits, type ClusterWriter, type OldContents } from "./cluster_writer.ts";
import { COMPRESSED, UNALLOCATED, writeEntry, writeSubclusters, ZERO } from "./l2_entry.ts";
import type { WriteBack } from "./write_back.ts";

const ZEROS = new Uint8Array(65536);
const ALL_SUBCLUSTERS = 0xffffffff;

/** Writes zeros into tables, where possible. Whoever calls it holds the lock. */
export class ZeroWriter {
  readonly #tables: WriteBack;
  readonly #writer: ClusterWriter;
  readonly #old: OldContents;
  readonly #clusterBytes: number;
  /** What an entry can describe alone. */
  readonly #unitBytes: number;
  /** Version 2 has no way to say that a cluster reads as zeros. */
  readonly #hasZeroFlag: boolean;

  constructor(tables: WriteBack, writer: ClusterWriter, old: OldContents) {
    this.#tables = tables;
    this.#writer = writer;
    this.#old = old;
    this.#clusterBytes = tables.file.clusterBytes;
    this.#unitBytes = this.#clusterBytes / tables.mapping.subclusters;
    this.#hasZeroFlag = tables.file.header.version >= 3;
  }

  /**
   * Makes a range read as zeros.
   *
   * @param diskBytes where the disk ends, or will end
   */
  async zero(
    offset: number,
    lengthBytes: number,
    mayUnmap: boolean,
    diskBytes: number = this.#tables.file.header.sizeBytes,
  ): Promise<void> {
    await this.#zeroExternal(offset, lengthBytes, mayUnmap);
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) at += await this.#zeroPiece(at, end, mayUnmap, diskBytes);
  }

  /** Gives up the clusters of a range. */
  async discard(offset: number, lengthBytes: number): Promise<void> {
    const { header } = this.#tables.file;
    const start = Math.ceil(offset / this.#clusterBytes) * this.#clusterBytes;
    const isToEnd = offset + lengthBytes >= header.sizeBytes;
    const end = isToEnd
      ? header.sizeBytes
      : Math.floor((offset + lengthBytes) / this.#clusterBytes) * this.#clusterBytes;
    if (start >= end || (!this.#hasZeroFlag && !this.#old.isZeroBehind(start))) return;
    await this.#zeroExternal(start, end - start, true);
    await this.#discardRange(start, end);
  }

  async #discardRange(start: number, end: number): Promise<void> {
    for (let at = start; at < end;) {
      if (this.#isNothing(at)) at = this.#nextTable(at);
      else at += await this.#eachCluster(at, end, (slice, start) => this.#discardCluster(slice, start));
    }
  }

  /** Before the entries: until they are in the file, the guest may be shown what is done to the data file here. */
  async #zeroExternal(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    const { file } = this.#tables;
    const { externalData, externalDataRaw } = file.header;
    if (externalDataRaw) {
      // Others read a raw data file, and they see no entries.
      await file.data.zero(offset, lengthBytes, mayUnmap);
      file.noteDataEnd(offset + lengthBytes);
    } else if (externalData && mayUnmap && file.data.canUnmap && offset < file.dataEndBytes) {
      await file.data.zero(offset, Math.min(lengthBytes, file.dataEndBytes - offset), true);
    }
  }

  /** Zeros from `at` on, as far as one way of doing it goes; returns how many bytes. */
  async #zeroPiece(at: number, end: number, mayUnmap: boolean, diskBytes: number): Promise<number> {
    const clusterStart = at - at % this.#clusterBytes;
    const clusterEnd = Math.min(clusterStart + this.#clusterBytes, diskBytes);
    if (this.#hasZeroFlag || this.#old.isZeroBehind(clusterStart)) {
      if (at === clusterStart && end >= clusterEnd) {
        const whole = end >= diskBytes ? diskBytes : end - end % this.#clusterBytes;
        if (!this.#hasZeroFlag) {
          await this.#discardRange(at, whole);
          return whole - at;
        }
        return await this.#eachCluster(at, whole, (slice, start) => this.#zeroCluster(slice, start, mayUnmap));
      }
      const unitEnd = Math.min(end, clusterEnd);
      const covered = unitEnd === clusterEnd ? unitEnd : unitEnd - unitEnd % this.#unitBytes;
      if (this.#unitBytes < this.#clusterBytes && at % this.#unitBytes === 0 && covered > at) {
        return await this.#zeroSubclusters(at, covered);
      }
    }
    return await this.#zeroPart(at, Math.min(end, at - at % this.#unitBytes + this.#unitBytes));
  }

  /** Visits the entries of a range that begins with a cluster, as far as one slice goes; returns how many bytes. */
  async #eachCluster(at: number, end: number, visit: (slice: DataView, start: number) => void): Promise<number> {
    await this.#tables.relieve();
    const { sliceSpan } = this.#tables.mapping;
    const sliceEnd = Math.min(end, (Math.floor(at / sliceSpan) + 1) * sliceSpan);
    const slice = await this.#tables.tableFor(at);
    for (let start = at; start < sliceEnd; start += this.#clusterBytes) visit(slice, start);
    return sliceEnd - at;
  }

  #discardCluster(slice: DataView, start: number): void {
    const kind = this.#writer.readEntry(slice, start);
    const { mapping } = this.#tables;
    const isPlaced = kind === COMPRESSED || mapping.entry.placed;
    if (!isPlaced && this.#old.isZeroBehind(start)) return;
    this.#replace(slice, start, kind);
  }

  #zeroCluster(slice: DataView, start: number, mayUnmap: boolean): void {
    const kind = this.#writer.readEntry(slice, start);
    const { mapping } = this.#tables;
    const { entry } = mapping;
    const at = mapping.inSlice(start);
    if (kind === COMPRESSED || mayUnmap || !entry.placed) return this.#replace(slice, start, kind);
    this.#tables.journal?.note(start);
    // The place is kept for what will be written there.
    const isExtended = mapping.subclusters > 1;
    writeEntry(slice, at, entry.hostOffset, entry.copied, !isExtended);
    if (isExtended) writeSubclusters(slice, at, 0, ALL_SUBCLUSTERS);
  }

  /** Nothing is stored for the cluster any more, and it reads as zeros. */
  #replace(slice: DataView, start: number, kind: number): void {
    const { mapping } = this.#tables;
    const at = mapping.inSlice(start);
    const isExtended = mapping.subclusters > 1;
    this.#tables.releasePlace(kind);
    writeEntry(slice, at, 0, false, this.#hasZeroFlag && !isExtended);
    this.#tables.journal?.note(start);
    if (isExtended) writeSubclusters(slice, at, 0, ALL_SUBCLUSTERS);
  }

  /** Zeros of whole subclusters of one cluster. */
  async #zeroSubclusters(at: number, end: number): Promise<number> {
    await this.#tables.relieve();
    const { mapping } = this.#tables;
    const clusterStart = at - at % this.#clusterBytes;
    const slice = await this.#tables.tableFor(at);
    const kind = this.#writer.readEntry(slice, clusterStart);
    if (kind === COMPRESSED) return await this.#zeroPart(at, end);
    const { allocatedBits, zeroBits } = mapping.entry;
    const from = (at - clusterStart) / this.#unitBytes;
    const zeroed = bits(from, Math.ceil((end - clusterStart) / this.#unitBytes));
    const place = mapping.inSlice(clusterStart);
    this.#tables.journal?.note(clusterStart);
    writeSubclusters(slice, place, (allocatedBits & ~zeroed) >>> 0, (zeroBits | zeroed) >>> 0);
    return end - at;
  }

  /** Zeros that an entry can't describe are written, unless they are there. */
  async #zeroPart(at: number, end: number): Promise<number> {
    const { mapping } = this.#tables;
    for (let miss = mapping.lookup(at, end - at); miss !== undefined; miss = mapping.lookup(at, end - at)) await miss;
    const { kind, lengthBytes } = mapping;
    const isZero = kind === ZERO || (kind === UNALLOCATED && this.#old.isZeroBehind(at));
    const length = Math.min(isZero ? lengthBytes : Math.min(lengthBytes, ZEROS.byteLength), end - at);
    if (isZero) return length;
    return await this.#writer.write(at, SegmentList.over(ZEROS.subarray(0, length)), 0);
  }

  /** Whether nothing is allocated in the table for an offset, and nothing is behind it. */
  #isNothing(offset: number): boolean {
    const { mapping } = this.#tables;
    return this.#old.isZeroBehind(offset) && mapping.tableOffset(mapping.l1Index(offset)) === 0;
  }

  #nextTable(offset: number): number {
    const { mapping } = this.#tables;
    return (mapping.l1Index(offset) + 1) * mapping.tableSpan;
  }
}
