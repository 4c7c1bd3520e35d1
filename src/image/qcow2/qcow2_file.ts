/**
 * The files of an image that is written: where they end, barriers between writes, checks before them, and the fields
 * of the header that change while an image is in use.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import type { Qcow2Header } from "./header.ts";
import { type MetadataKind, MetadataMap } from "./metadata_map.ts";
import { HEADER, INCOMPATIBLE } from "./qcow2_layout.ts";
import { hex } from "./refuse.ts";

/** All fields that change in use lie in it, and disks write a sector whole or not at all. */
const HEADER_SECTOR_BYTES = 512;

/** The fields of a header that are changed one by one, each in place. */
export type HeaderFields = Pick<
  Qcow2Header,
  | "sizeBytes"
  | "l1Entries"
  | "l1Offset"
  | "refcountTableOffset"
  | "refcountTableClusters"
  | "snapshotCount"
  | "snapshotsOffset"
  | "incompatible"
  | "compatible"
  | "autoclear"
>;

/** The image's own file, and that of its data. */
export class Qcow2File {
  readonly storage: Storage;
  /** Where guest data are: the same, or the external data file. */
  readonly data: Storage;
  readonly clusterBytes: number;
  readonly metadata: MetadataMap;
  /** What the file says of itself, as it is on disk. */
  header: Qcow2Header;
  /** Where the image's file ends. */
  endBytes: number;
  /** Behind here nothing was ever written, not even by a write that failed: it reads as zeros. */
  dataTouchedBytes: number;
  /** Where the file of the data ends, if it is another one. */
  #externalEndBytes: number;
  /** Why nothing may be written any more. */
  damage: BlockError | null = null;
  /** Whether barriers do nothing. */
  readonly ignoresFlush: boolean;

  /** @param noFlush barriers do nothing: for images that are worthless unless they are finished */
  constructor(storage: Storage, data: Storage, header: Qcow2Header, noFlush = false) {
    this.storage = storage;
    this.data = data;
    this.header = header;
    this.clusterBytes = 2 ** header.clusterBits;
    this.metadata = new MetadataMap(this.clusterBytes);
    this.endBytes = storage.sizeBytes;
    this.#externalEndBytes = data === storage ? 0 : data.sizeBytes;
    this.dataTouchedBytes = data === storage ? this.endBytes : this.#externalEndBytes;
    this.ignoresFlush = noFlush;
  }

  /** Where the file ends that has the guest's data. */
  get dataEndBytes(): number {
    return this.data === this.storage ? this.endBytes : this.#externalEndBytes;
  }

  /** Something is about to happen, under QEMU's name for it: for those who make it fail (blkdebug). */
  async event(name: string): Promise<void> {
    if (this.storage.event !== undefined) await this.storage.event(name);
  }

  /** Everything that was written before is on stable storage before anything that is written after. */
  async barrier(): Promise<void> {
    if (this.ignoresFlush) return;
    if (this.data !== this.storage) await this.data.flush();
    await this.event("flush_to_os");
    await this.storage.flush();
  }

  /** Writes metadata, unless there are other metadata in that place. */
  async write(kind: MetadataKind, offset: number, bytes: Uint8Array): Promise<void> {
    this.check(offset, bytes.byteLength, kind);
    this.#touch(offset + bytes.byteLength);
    await this.storage.write(offset, SegmentList.over(bytes));
    this.noteEnd(offset + bytes.byteLength);
  }

  /** Makes a range of the image's file read as zeros, and exist. */
  async zero(kind: MetadataKind, offset: number, lengthBytes: number): Promise<void> {
    this.check(offset, lengthBytes, kind);
    this.#touch(offset + lengthBytes);
    await this.storage.zero(offset, lengthBytes, false);
    this.noteEnd(offset + lengthBytes);
  }

  /** Writes guest data, which may go on behind the end of the file. */
  async writeData(offset: number, list: SegmentList): Promise<void> {
    const end = offset + list.byteLength;
    if (end > this.dataTouchedBytes) this.dataTouchedBytes = end;
    await this.event("write_aio");
    await this.data.write(offset, list);
    this.noteDataEnd(end);
  }

  /** Metadata were written up to here. */
  noteEnd(end: number): void {
    if (end > this.endBytes) this.endBytes = end;
    this.#touch(end);
  }

  /** Guest data were written up to here. */
  noteDataEnd(end: number): void {
    if (this.data === this.storage) this.noteEnd(end);
    else if (end > this.#externalEndBytes) this.#externalEndBytes = end;
  }

  /** Refuses a write of guest data over metadata. */
  checkData(offset: number, lengthBytes: number): void {
    if (this.data === this.storage) this.check(offset, lengthBytes);
  }

  /**
   * Refuses a write over metadata other than of `own` kind; then the image is damaged, and not written any more.
   *
   * @throws BlockError
   */
  check(offset: number, lengthBytes: number, own?: MetadataKind): void {
    const kind = this.metadata.overlap(offset, lengthBytes, own);
    if (kind === null) return;
    throw this.damaged(`Preventing invalid write on metadata (overlaps with ${kind})`, offset);
  }

  /** Marks the image as damaged, in the file too as far as that is possible, and gives the error to throw. */
  damaged(reason: string, offset: number): BlockError {
    const error = new BlockError({
      kind: "corrupt",
      path: this.storage.name,
      operation: "write",
      offset,
      reason: `Marking image as corrupt: ${reason} at ${hex(offset)}; the image is not written any more`,
      hint: "'vblk check' tells how much of the image is damaged, and with -r all repairs it",
    });
    if (this.damage === null) {
      this.damage = error;
      if (this.header.version >= 3) {
        // The error is what matters; a mark that can't be made is found again by whoever checks the image.
        this.writeHeader({ incompatible: this.header.incompatible | INCOMPATIBLE.corrupt }).catch(() => {});
      }
    }
    return error;
  }

  /** @throws BlockError when the image was found to be damaged */
  assertSound(): void {
    if (this.damage !== null) throw this.damage;
  }

  /**
   * Changes fields of the header: one write of one sector. The caller puts the barriers around it.
   *
   * @throws BlockError; then the file has the old fields or the new ones, and `header` the old ones
   */
  async writeHeader(change: Partial<HeaderFields>): Promise<void> {
    const header = { ...this.header, ...change };
    const sector = new Uint8Array(Math.min(HEADER_SECTOR_BYTES, this.endBytes));
    await this.storage.read(0, SegmentList.over(sector));
    const before = sector.slice();
    const view = new DataView(sector.buffer);
    const u64 = (at: number, value: number | bigint) => view.setBigUint64(at, BigInt(value));
    // What was read was rounded down to whole sectors; the file keeps its own number until the size changes.
    if (change.sizeBytes !== undefined) u64(HEADER.size, change.sizeBytes);
    view.setUint32(HEADER.l1Size, header.l1Entries);
    u64(HEADER.l1TableOffset, header.l1Offset);
    u64(HEADER.refcountTableOffset, header.refcountTableOffset);
    view.setUint32(HEADER.refcountTableClusters, header.refcountTableClusters);
    view.setUint32(HEADER.nbSnapshots, header.snapshotCount);
    u64(HEADER.snapshotsOffset, header.snapshotsOffset);
    if (header.version >= 3) {
      u64(HEADER.incompatibleFeatures, header.incompatible);
      u64(HEADER.compatibleFeatures, header.compatible);
      u64(HEADER.autoclearFeatures, header.autoclear);
    }
    try {
      await this.storage.write(0, SegmentList.over(sector));
    } catch (error) {
      await this.#restore(before, error);
      throw error;
    }
    this.header = {
      ...header,
      dirty: (header.incompatible & INCOMPATIBLE.dirty) !== 0n,
      corrupt: (header.incompatible & INCOMPATIBLE.corrupt) !== 0n,
    };
  }

  /** Nobody knows which header is in the file: nothing is written any more. */
  loseHeader(cause: unknown): void {
    this.damage ??= new BlockError({
      kind: "io",
      path: this.storage.name,
      operation: "write",
      offset: 0,
      reason: "The header could not be written; the image is not written any more",
      cause,
    });
  }

  /** A header that failed to be written may be in the file or not; go on only with what is known to be there. */
  async #restore(sector: Uint8Array, cause: unknown): Promise<void> {
    try {
      await this.storage.write(0, SegmentList.over(sector));
    } catch {
      this.loseHeader(cause);
    }
  }

  #touch(end: number): void {
    if (this.data === this.storage && end > this.dataTouchedBytes) this.dataTouchedBytes = end;
  }

  /** Sets or clears the bit that says that refcounts may be wrong, with a barrier before and after. Version 3 only. */
  async setDirty(dirty: boolean): Promise<void> {
    const { version, incompatible, dirty: already } = this.header;
    if (version < 3 || already === dirty) return;
    await this.barrier();
    await this.writeHeader({
      incompatible: dirty ? incompatible | INCOMPATIBLE.dirty : incompatible & ~INCOMPATIBLE.dirty,
    });
    await this.barrier();
  }
}
