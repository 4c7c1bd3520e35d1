/**
 * What one entry of an L2 table says (QEMU's docs/interop/qcow2, "Cluster mapping" and "Extended L2 Entries").
 *
 * An entry is read as 32-bit halves, and the answer is left in fields of the reader, so that a lookup allocates nothing.
 *
 * @module
 */

import type { Qcow2Header } from "./header.ts";
import {
  COMPRESSED_SECTOR_BYTES,
  COPIED_HIGH,
  L2_COMPRESSED_HIGH,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
  L2_ZERO_LOW,
  OFFSET_HIGH_MASK,
  OFFSET_LOW_MASK,
  SUBCLUSTERS,
} from "./qcow2_layout.ts";
import { hex } from "./refuse.ts";

/** What a (sub)cluster is. */
export const UNALLOCATED = 0;
/** Stored as it is. */
export const DATA = 1;
/** Reads as zeros, whatever is behind it. */
export const ZERO = 2;
/** Stored compressed. */
export const COMPRESSED = 3;
/** The entry breaks the format. */
export const CORRUPT = 4;

/** Why an entry is corrupt: indexes into the table of `faultText`. */
const FAULT = {
  reserved: 0,
  unaligned: 1,
  outside: 2,
  data: 3,
  compressed: 4,
  bitmap: 5,
  compressedBitmap: 6,
} as const;

/** Reads entries of an image. */
export class L2EntryReader {
  /** Where the cluster starts in the file, or its compressed data; 0 when it has no place. */
  hostOffset = 0;
  /** Length of compressed data, at most. */
  compressedBytes = 0;
  /** 512-byte sectors that the compressed data touch, whether the file has them or not. */
  compressedSectors = 0;
  /** Whether nobody else refers to the cluster, so that it may be written in place. */
  copied = false;
  /** Whether the cluster has a place in the file, even if it reads as zeros. */
  placed = false;
  /** Extended L2: which subclusters are allocated, and which read as zeros. */
  allocatedBits = 0;
  zeroBits = 0;
  #fault = 0;

  readonly #clusterBytes: number;
  readonly #extended: boolean;
  readonly #externalData: boolean;
  readonly #zeroFlag: boolean;
  #fileBytes: number;
  /** In the high half of a compressed entry: bits of the offset, and the shift to the number of sectors. */
  readonly #compressedShift: number;
  readonly #compressedOffsetMask: number;

  /** @param fileBytes where the file ends; nothing may start there or later */
  constructor(header: Qcow2Header, fileBytes: number) {
    this.#clusterBytes = 2 ** header.clusterBits;
    this.#extended = header.extendedL2;
    this.#externalData = header.externalData;
    // In version 2, and with subclusters, bit 0 is reserved.
    this.#zeroFlag = header.version === 3 && !header.extendedL2;
    this.#fileBytes = fileBytes;
    // x = 62 - (cluster_bits - 8), between 49 and 61; so the sectors are bits of the high half alone.
    this.#compressedShift = 62 - (header.clusterBits - 8) - 32;
    this.#compressedOffsetMask = 2 ** this.#compressedShift - 1;
  }

  /** The file has become longer. */
  grow(fileBytes: number): void {
    this.#fileBytes = fileBytes;
  }

  /**
   * Reads the entry at `at`, which describes the cluster at `guestOffset`.
   *
   * @returns its kind; with extended entries, of a standard cluster, DATA if it has a place and UNALLOCATED if not
   */
  read(table: DataView, at: number, guestOffset: number): number {
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if ((high & L2_COMPRESSED_HIGH) !== 0) return this.#compressed(table, at, high, low);
    const reservedLow = this.#zeroFlag ? L2_RESERVED_LOW : L2_RESERVED_LOW | L2_ZERO_LOW;
    if ((high & L2_RESERVED_HIGH) !== 0 || (low & reservedLow) !== 0) return this.#bad(FAULT.reserved);
    this.hostOffset = (high & OFFSET_HIGH_MASK) * 0x1_0000_0000 + ((low & OFFSET_LOW_MASK) >>> 0);
    // A cluster has at most 2 MiB, so its low bits are all in the low half.
    if ((low & OFFSET_LOW_MASK & (this.#clusterBytes - 1)) !== 0) return this.#bad(FAULT.unaligned);
    const zero = (low & L2_ZERO_LOW) !== 0;
    const placed = this.hostOffset !== 0 || (!zero && this.#isAtZero(high));
    this.placed = placed;
    this.copied = (high & COPIED_HIGH) !== 0;
    if (this.#externalData && placed && this.hostOffset !== guestOffset) return this.#bad(FAULT.data);
    if (this.#extended) return this.#bitmap(table, at, placed);
    if (zero) return ZERO;
    if (!placed) return UNALLOCATED;
    return this.#isOutside() ? this.#bad(FAULT.outside) : DATA;
  }

  /** The kind of a subcluster, after `read` has returned DATA or UNALLOCATED for an extended entry. */
  subcluster(index: number, placed: boolean): number {
    if (((this.zeroBits >>> index) & 1) !== 0) return ZERO;
    return placed && ((this.allocatedBits >>> index) & 1) !== 0 ? DATA : UNALLOCATED;
  }

  /** What is wrong with the entry that was read last. */
  faultText(): string {
    switch (this.#fault) {
      case FAULT.reserved:
        return "has reserved bits set";
      case FAULT.unaligned:
        return `refers to offset ${hex(this.hostOffset)}, which is not the start of a cluster`;
      case FAULT.outside:
        return `refers to offset ${hex(this.hostOffset)}, but the file ends at ${hex(this.#fileBytes)}`;
      case FAULT.data:
        return `refers to offset ${hex(this.hostOffset)} of the data file, which is not the guest's`;
      case FAULT.compressed:
        return "is of a compressed cluster, which an image with an external data file cannot have";
      case FAULT.bitmap:
        return `has subclusters that are allocated without a place, or that are zeros too`;
      default:
        return "is of a compressed cluster and has subclusters";
    }
  }

  /** Only the first cluster of an external data file can be at offset 0; COPIED tells it from no cluster. */
  #isAtZero(high: number): boolean {
    return this.#externalData && (high & COPIED_HIGH) !== 0;
  }

  /** An external data file may end anywhere, as a raw image may: what is behind its end reads as zeros. */
  #isOutside(): boolean {
    return !this.#externalData && this.hostOffset >= this.#fileBytes;
  }

  #compressed(table: DataView, at: number, high: number, low: number): number {
    const offsetHigh = high & this.#compressedOffsetMask;
    this.placed = false;
    this.copied = false;
    this.hostOffset = offsetHigh * 0x1_0000_0000 + low;
    if (this.#externalData) return this.#bad(FAULT.compressed);
    if ((offsetHigh & ~OFFSET_HIGH_MASK) !== 0) return this.#bad(FAULT.reserved);
    if (this.#extended && (table.getUint32(at + 8) !== 0 || table.getUint32(at + 12) !== 0)) {
      return this.#bad(FAULT.compressedBitmap);
    }
    if (this.#isOutside()) return this.#bad(FAULT.outside);
    this.compressedSectors = ((high & 0x3fffffff) >>> this.#compressedShift) + 1;
    const most = this.compressedSectors * COMPRESSED_SECTOR_BYTES - this.hostOffset % COMPRESSED_SECTOR_BYTES;
    // The last sector need not be there in full.
    this.compressedBytes = Math.min(most, this.#fileBytes - this.hostOffset);
    return COMPRESSED;
  }

  #bitmap(table: DataView, at: number, placed: boolean): number {
    this.zeroBits = table.getUint32(at + 8);
    this.allocatedBits = table.getUint32(at + 12);
    if (placed ? (this.zeroBits & this.allocatedBits) !== 0 : this.allocatedBits !== 0) return this.#bad(FAULT.bitmap);
    if (!placed) return UNALLOCATED;
    return this.allocatedBits !== 0 && this.#isOutside() ? this.#bad(FAULT.outside) : DATA;
  }

  #bad(fault: number): number {
    this.#fault = fault;
    return CORRUPT;
  }
}

/** Writes the first half of a standard entry: a place, or 0 for none. */
export function writeEntry(table: DataView, at: number, hostOffset: number, copied: boolean, zero: boolean): void {
  const high = Math.floor(hostOffset / 0x1_0000_0000);
  table.setUint32(at, copied ? high | COPIED_HIGH : high);
  table.setUint32(at + 4, hostOffset % 0x1_0000_0000 | (zero ? L2_ZERO_LOW : 0));
}

/** Writes the second half of an extended entry. */
export function writeSubclusters(table: DataView, at: number, allocatedBits: number, zeroBits: number): void {
  table.setUint32(at + 8, zeroBits);
  table.setUint32(at + 12, allocatedBits);
}

/** Writes the (first half of an) entry of compressed data of so many bytes. */
export function writeCompressedEntry(
  table: DataView,
  at: number,
  hostOffset: number,
  lengthBytes: number,
  clusterBits: number,
): void {
  const sectors = Math.floor((hostOffset + lengthBytes - 1) / COMPRESSED_SECTOR_BYTES) -
    Math.floor(hostOffset / COMPRESSED_SECTOR_BYTES);
  const shift = 62 - (clusterBits - 8) - 32;
  table.setUint32(at, (L2_COMPRESSED_HIGH | sectors << shift | Math.floor(hostOffset / 0x1_0000_0000)) >>> 0);
  table.setUint32(at + 4, hostOffset % 0x1_0000_0000);
}

/** Subclusters in a cluster: 1 without extended entries. */
export function subclustersOf(header: Qcow2Header): number {
  return header.extendedL2 ? SUBCLUSTERS : 1;
}

/** The host clusters that the compressed data touch whose entry was just read. */
export function compressedClusters(
  entry: L2EntryReader,
  clusterBytes: number,
): { first: number; clusters: number } {
  const first = Math.floor(entry.hostOffset / clusterBytes);
  const end = entry.hostOffset - entry.hostOffset % COMPRESSED_SECTOR_BYTES +
    entry.compressedSectors * COMPRESSED_SECTOR_BYTES;
  return { first, clusters: Math.ceil(end / clusterBytes) - first };
}
