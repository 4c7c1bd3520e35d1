/**
 * Writes guest data to clusters that have no place of their own yet: allocation and copy-on-write (QEMU's
 * docs/interop/qcow2, "Cluster mapping").
 *
 * What a write does not cover of a (sub)cluster is filled with what was read there before, in the same operation as
 * the guest's bytes. The entry changes in memory when all of that has been written, and in the file behind a barrier.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { COMPRESSED, CORRUPT, DATA, writeEntry, writeSubclusters, ZERO } from "./l2_entry.ts";
import type { WriteBack } from "./write_back.ts";

/** What the guest sees where it does not write. */
export interface OldContents {
  /** Fills `into` with the disk's bytes at `offset`; also beyond its end, where the last cluster goes on. */
  read(offset: number, into: SegmentList): Promise<void>;
  /** Whether a place that is not allocated reads as zeros, for lack of a backing image. */
  isZeroBehind(offset: number): boolean;
  /** Size of the backing image; 0 without one. */
  readonly backingBytes: number;
}

/** A piece of a write: a run of clusters of the disk, and where they will be. */
interface Piece {
  /** Offset of the first cluster on the disk. */
  readonly start: number;
  readonly clusters: number;
  readonly hostOffset: number;
  /** Allocated for this piece: to be given back if it fails. */
  readonly isNew: boolean;
  /** Nothing was ever written there, so it reads as zeros. */
  readonly isFresh: boolean;
  /** The guest's bytes, from the start of the piece on. */
  readonly from: number;
  readonly to: number;
}

/** Makes places and writes to them. Whoever calls it holds the lock. */
export class ClusterWriter {
  readonly #tables: WriteBack;
  readonly #old: OldContents;
  readonly #clusterBytes: number;
  readonly #subclusterBytes: number;
  /** Room for a cluster: only one is made at a time. */
  #scratch: Uint8Array | null = null;

  constructor(tables: WriteBack, old: OldContents) {
    this.#tables = tables;
    this.#old = old;
    this.#clusterBytes = tables.file.clusterBytes;
    this.#subclusterBytes = this.#clusterBytes / tables.mapping.subclusters;
  }

  /**
   * Writes what is left of `list`, from its byte `done` on, at `offset` of the disk; as far as one piece goes.
   *
   * @returns how many bytes have been written
   */
  async write(offset: number, list: SegmentList, done: number): Promise<number> {
    const tables = this.#tables;
    await tables.relieve();
    // Marked as changed, so it stays in memory until it is written, which nobody can do meanwhile.
    const slice = await tables.tableFor(offset);
    const piece = await this.#plan(slice, offset, list.byteLength - done);
    try {
      await this.#writePiece(slice, piece, list, done);
    } catch (error) {
      if (piece.isNew) await tables.giveBack(piece.hostOffset, piece.clusters);
      throw error;
    }
    return piece.to - piece.from;
  }

  async #plan(slice: DataView, offset: number, lengthBytes: number): Promise<Piece> {
    const { file, refcounts, mapping } = this.#tables;
    const from = offset % this.#clusterBytes;
    const start = offset - from;
    const piece = (clusters: number, hostOffset: number, isNew: boolean, isFresh: boolean): Piece => {
      const to = Math.min(from + lengthBytes, clusters * this.#clusterBytes);
      return { start, clusters, hostOffset, isNew, isFresh, from, to };
    };
    const kind = this.readEntry(slice, start);
    if (this.#isPrivate(kind)) return piece(1, mapping.entry.hostOffset, false, false);
    const wanted = this.#clustersWanted(slice, start, from + lengthBytes);
    // In an external data file each cluster has the guest's offset, and is not counted.
    if (file.header.externalData) return piece(wanted, start, false, start >= file.dataTouchedBytes);
    const touched = file.dataTouchedBytes;
    const { offset: hostOffset, clusters } = await refcounts.allocateRun(wanted);
    return piece(clusters, hostOffset, true, hostOffset >= touched);
  }

  /** Reads the entry of the cluster at `start`; the answer is in the mapping's reader. */
  readEntry(slice: DataView, start: number): number {
    const { mapping } = this.#tables;
    const kind = mapping.entry.read(slice, mapping.inSlice(start), start);
    if (kind === CORRUPT) throw mapping.corruptEntry(start, "write");
    return kind;
  }

  /** Whether the cluster whose entry was just read has a place where nobody else looks. */
  #isPrivate(kind: number): boolean {
    const { file, mapping } = this.#tables;
    if (kind === COMPRESSED || !mapping.entry.placed) return false;
    // A place behind the end, of a cluster that reads as zeros: nobody has looked at it so far.
    if (kind === ZERO && mapping.entry.hostOffset >= file.endBytes && !file.header.externalData) return false;
    return file.header.externalData || mapping.entry.copied;
  }

  /** How many clusters from `start` on need a place, as far as the slice and the write go. */
  #clustersWanted(slice: DataView, start: number, lengthBytes: number): number {
    const { sliceSpan } = this.#tables.mapping;
    const end = Math.min(start + lengthBytes, (Math.floor(start / sliceSpan) + 1) * sliceSpan);
    let at = start + this.#clusterBytes;
    while (at < end && !this.#isPrivate(this.readEntry(slice, at))) at += this.#clusterBytes;
    return (at - start) / this.#clusterBytes;
  }

  async #writePiece(slice: DataView, piece: Piece, list: SegmentList, done: number): Promise<void> {
    const { file } = this.#tables;
    const { start, from, to, hostOffset } = piece;
    const lastStart = (piece.clusters - 1) * this.#clusterBytes;
    const head = this.#cover(slice, piece, 0);
    const tail = piece.clusters === 1 ? head : this.#cover(slice, piece, lastStart);
    const cover = { from: head.from, to: lastStart + tail.to };
    // What was never written reads as zeros already; elsewhere they must be written over what was there before.
    const begin = piece.isFresh && head.isZero ? from : cover.from;
    const end = piece.isFresh && tail.isZero ? to : cover.to;
    const bytes = piece.clusters === 1 && end - begin > to - from
      ? await this.#merge(piece, begin, end, head.isZero, list, done)
      : await this.#surround(piece, begin, end, head.isZero, tail.isZero, list, done);
    if (!piece.isNew) file.checkData(hostOffset + begin, end - begin);
    await file.writeData(hostOffset + begin, bytes);
    this.#tables.mapping.grow(file.endBytes);
    for (let at = 0; at <= lastStart; at += this.#clusterBytes) {
      const covered = { from: at === 0 ? cover.from : 0, to: at === lastStart ? tail.to : this.#clusterBytes };
      this.#setEntry(slice, start + at, hostOffset + at, covered, piece.isNew);
    }
  }

  /** Which bytes of one cluster of the piece are data afterwards, and whether those that are not the guest's are zeros. */
  #cover(slice: DataView, piece: Piece, clusterAt: number): { from: number; to: number; isZero: boolean } {
    const { start, from, to } = piece;
    const kind = this.readEntry(slice, start + clusterAt);
    const { entry, subclusters } = this.#tables.mapping;
    const unit = this.#subclusterBytes;
    let begin = Math.max(0, from - clusterAt);
    let end = Math.min(this.#clusterBytes, to - clusterAt);
    const isEmpty = subclusters === 1 ? kind !== DATA : entry.allocatedBits === 0;
    const isZero = kind !== COMPRESSED && isEmpty &&
      (kind === ZERO || this.#old.isZeroBehind(start + clusterAt));
    if (kind === COMPRESSED) return { from: 0, to: this.#clusterBytes, isZero };
    if (this.#isPrivate(kind)) {
      // In place: what is stored already stays where it is.
      const isData = (at: number) => this.#kindAt(kind, Math.floor(at / unit)) === DATA;
      if (!isData(begin)) begin -= begin % unit;
      if (!isData(end - 1)) end = Math.ceil(end / unit) * unit;
      return { from: begin, to: end, isZero };
    }
    if (subclusters > 1 && entry.placed && entry.allocatedBits !== 0) {
      // A copy has all that the shared cluster has.
      begin = Math.min(begin, lowestBit(entry.allocatedBits) * unit);
      end = Math.max(end, (32 - Math.clz32(entry.allocatedBits)) * unit);
    }
    return { from: begin - begin % unit, to: Math.ceil(end / unit) * unit, isZero };
  }

  #kindAt(kind: number, subcluster: number): number {
    const { entry, subclusters } = this.#tables.mapping;
    return subclusters === 1 ? kind : entry.subcluster(subcluster, entry.placed);
  }

  /** One cluster in one buffer: to be read with one operation, and written with one. */
  async #merge(
    piece: Piece,
    begin: number,
    end: number,
    isZero: boolean,
    list: SegmentList,
    done: number,
  ): Promise<SegmentList> {
    this.#scratch ??= new Uint8Array(this.#clusterBytes);
    const bytes = this.#scratch.subarray(0, end - begin);
    if (isZero) bytes.fill(0);
    else await this.#readOld(piece.start + begin, bytes);
    list.copyTo(bytes.subarray(piece.from - begin, piece.to - begin), done);
    return SegmentList.over(bytes);
  }

  /** The guest's bytes where they are, between those that it does not write. */
  async #surround(
    { start, from, to }: Piece,
    begin: number,
    end: number,
    isHeadZero: boolean,
    isTailZero: boolean,
    list: SegmentList,
    done: number,
  ): Promise<SegmentList> {
    const bytes = new SegmentList();
    const append = async (offset: number, lengthBytes: number, isZero: boolean) => {
      const part = new Uint8Array(lengthBytes);
      if (lengthBytes > 0 && !isZero) await this.#readOld(offset, part);
      bytes.appendRange(SegmentList.over(part), 0, lengthBytes);
    };
    await append(start + begin, from - begin, isHeadZero);
    bytes.appendRange(list, done, to - from);
    await append(start + to, end - to, isTailZero);
    return bytes;
  }

  async #readOld(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#tables.file.event("cow_read");
    await this.#old.read(offset, SegmentList.over(bytes));
  }

  /** The cluster at `start` is at `hostOffset` from now on, with data in some of its bytes. */
  #setEntry(
    slice: DataView,
    start: number,
    hostOffset: number,
    data: { from: number; to: number },
    isNew: boolean,
  ): void {
    const { mapping } = this.#tables;
    const { entry } = mapping;
    const at = mapping.inSlice(start);
    const kind = this.readEntry(slice, start);
    const isExtended = mapping.subclusters > 1;
    const allocatedBefore = isExtended && kind !== COMPRESSED && !isNew ? entry.allocatedBits : 0;
    const zeroBefore = isExtended && kind !== COMPRESSED ? entry.zeroBits : 0;
    if (isNew) this.#tables.releasePlace(kind);
    writeEntry(slice, at, hostOffset, true, false);
    this.#tables.journal?.note(start);
    if (!isExtended) return;
    const added = bits(Math.floor(data.from / this.#subclusterBytes), Math.ceil(data.to / this.#subclusterBytes));
    writeSubclusters(slice, at, (allocatedBefore | added) >>> 0, (zeroBefore & ~added) >>> 0);
  }
}

/** Bits `from` to `to - 1`. */
export function bits(from: number, to: number): number {
  const below = (n: number) => n === 32 ? 0xffffffff : (1 << n) - 1;
  return (below(to) & ~below(from)) >>> 0;
}

function lowestBit(value: number): number {
  return 31 - Math.clz32(value & -value);
}
