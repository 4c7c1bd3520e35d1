/**
 * A disk image: guest offsets mapped to places in a storage. What the block device, the commands and the traces
 * see of raw and qcow2 alike.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import type { Completion } from "../storage/storage.ts";

// An image ends its operations, and fails, as its storage does; whoever uses images need not know storages.
export { BlockError } from "../storage/block_error.ts";
export { after, type Completion } from "../storage/storage.ts";

/** Disks are measured in sectors of 512 bytes, whatever their block size. */
export const SECTOR_BYTES = 512;

/** Where a run of guest bytes is. */
export interface Extent {
  /** Offset on the disk, in bytes. */
  readonly guestOffset: number;
  /** Length of the run, in bytes. */
  readonly lengthBytes: number;
  /**
   * `data`: stored at `hostOffset`. `compressed`: stored from `hostOffset` on, in another form. `zero`: reads as zeros.
   * `unallocated`: not in this image; what is behind it decides, and zeros are read when nothing is.
   */
  readonly kind: "data" | "zero" | "compressed" | "unallocated";
  /** Offset in the storage, for `data` and `compressed`. */
  readonly hostOffset?: number;
}

/** A fact about an image: something to print. */
export type DetailValue = string | number | boolean | readonly DetailValue[] | { readonly [name: string]: DetailValue };

/** Facts that only some formats have. */
export interface ImageDetails {
  /** Unit of allocation, in bytes. */
  readonly clusterBytes: number;
  /** Where the state of a virtual machine would start, in bytes. */
  readonly vmStateOffset: number;
  /** More, by the names that QEMU prints. */
  readonly specific: { readonly [name: string]: DetailValue };
}

/** A disk image. Callers keep ranges inside `sizeBytes`. */
export interface Image {
  /** Name for messages: the path as the user gave it. */
  readonly name: string;
  /** `"raw"` or `"qcow2"`. */
  readonly format: string;
  /** Whether writes must not be asked for. */
  readonly readOnly: boolean;
  /** Whether `writeZeroes` and `discard` can give space back. */
  readonly canUnmap: boolean;
  /** Size of the disk, in bytes: a multiple of 512. */
  readonly sizeBytes: number;
  /** Fills `into` with the disk's bytes at `offset`. */
  read(offset: number, into: SegmentList): Completion;
  /** Writes the bytes of `from` at `offset`. */
  write(offset: number, from: SegmentList): Completion;
  /** Ends when everything written so far is on stable storage. */
  flush(): Completion;
  /** Makes a range read as zeros. */
  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion;
  /** Says that the contents of a range are not needed any more. */
  discard(offset: number, lengthBytes: number): Completion;
  /** Where the bytes of a range are, in order and without gaps; a promise when the tables must be waited for. */
  map(offset: number, lengthBytes: number): Extent[] | Promise<Extent[]>;
  /** What there is to say about the format. Opens no other file. */
  details?(): Promise<ImageDetails>;
  /** Changes the size of the disk; new bytes read as zeros. */
  resize(sizeBytes: number): Completion;
  /**
   * Writes whole clusters, or up to the end of the disk, in compressed form. Only formats that have one.
   *
   * @throws BlockError when the range does not begin and end like that
   */
  writeCompressed?(offset: number, from: SegmentList): Completion;
  /** Releases the image. Tables that were kept in memory are written; what was written to a plain file is not flushed. */
  close(): Completion;
}
