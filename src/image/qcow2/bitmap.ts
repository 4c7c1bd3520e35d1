/**
 * One persistent bitmap that may be used: what is stored of it, and what has changed since.
 *
 * Of the bits only changed pages, each as long as a cluster, are in memory. A bit is set when a page says so, or when
 * it is below `onesBits`, or when it is below `keptBits` and set in the file. So to clear a bitmap, to set all of it or
 * to cut it reads nothing, and takes no memory.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { BITMAP_FLAG, type BitmapEntry } from "./bitmap_directory.ts";
import { ALL_ONES, ALL_ZEROS, readTable } from "./bitmap_table.ts";

/** Changes to bits, and the bits themselves. */
export class Bitmap {
  readonly name: string;
  readonly granularityBits: number;
  /** Whether it notes changes of the disk. */
  enabled: boolean;
  readonly #storage: Storage;
  readonly #clusterBytes: number;
  readonly #granuleBytes: number;
  readonly #pageBits: number;
  /** As it is in the file. */
  #entry: BitmapEntry;
  #table: Float64Array | null = null;
  #diskBytes: number;
  #bits: number;
  #keptBits: number;
  #onesBits = 0;
  readonly #pages = new Map<number, Uint8Array>();
  /** Stands for each page that is full: most memory goes to disks that are written from one end to the other. */
  readonly #full: Uint8Array;

  constructor(storage: Storage, entry: BitmapEntry, clusterBytes: number, diskBytes: number) {
    this.name = entry.name;
    this.granularityBits = entry.granularityBits;
    this.enabled = (entry.flags & BITMAP_FLAG.auto) !== 0;
    this.#storage = storage;
    this.#clusterBytes = clusterBytes;
    this.#granuleBytes = 2 ** entry.granularityBits;
    this.#pageBits = clusterBytes * 8;
    this.#entry = entry;
    this.#diskBytes = diskBytes;
    this.#bits = this.#bitsFor(diskBytes);
    this.#keptBits = entry.tableEntries === 0 ? 0 : this.#bits;
    this.#full = fullPage(clusterBytes);
  }

  get diskBytes(): number {
    return this.#diskBytes;
  }

  /** Most memory that its bits can take, in bytes. */
  get memoryBytes(): number {
    return this.pages * this.#clusterBytes;
  }

  /** How many clusters hold its bits. */
  get pages(): number {
    return Math.ceil(this.#bits / this.#pageBits);
  }

  /** Reads the table that is in the file, if that has not been done. */
  async load(): Promise<Float64Array> {
    const { tableEntries } = this.#entry;
    this.#table ??= tableEntries === 0
      ? new Float64Array()
      : await readTable(this.#storage, this.#entry, this.#clusterBytes);
    return this.#table;
  }

  /** The bits of a range of the disk are set. */
  set(offset: number, lengthBytes: number): void {
    if (lengthBytes <= 0) return;
    const first = Math.floor(offset / this.#granuleBytes);
    const end = Math.min(this.#bits, Math.floor((offset + lengthBytes - 1) / this.#granuleBytes) + 1);
    for (let bit = first; bit < end;) {
      const index = Math.floor(bit / this.#pageBits);
      const from = bit - index * this.#pageBits;
      const to = Math.min(this.#pageBits, end - index * this.#pageBits);
      if (from === 0 && to === this.#pageBits) this.#pages.set(index, this.#full);
      else if (this.#pages.get(index) !== this.#full) setBits(this.#page(index), from, to);
      bit = index * this.#pageBits + to;
    }
  }

  setAll(): void {
    this.#onesBits = this.#bits;
    this.#pages.clear();
  }

  clear(): void {
    this.#onesBits = 0;
    this.#keptBits = 0;
    this.#pages.clear();
  }

  /** The disk has another size. What is new was not written to. */
  resize(diskBytes: number): void {
    this.#diskBytes = diskBytes;
    this.#bits = this.#bitsFor(diskBytes);
    this.#keptBits = Math.min(this.#keptBits, this.#bits);
    this.#onesBits = Math.min(this.#onesBits, this.#bits);
    for (const [index, page] of this.#pages) {
      const left = this.#bits - index * this.#pageBits;
      if (left <= 0) this.#pages.delete(index);
      else if (left < this.#pageBits) this.#pages.set(index, cut(page.slice(), left));
    }
  }

  /** Whether any page may differ from what is in the file. */
  get hasChanges(): boolean {
    return this.#pages.size > 0 || this.#onesBits > 0 || this.#keptBits < this.#bits;
  }

  /** Whether a page may differ from what is in the file. */
  isChanged(index: number): boolean {
    const start = index * this.#pageBits;
    return this.#pages.has(index) || this.#onesBits > start ||
      this.#keptBits < Math.min(this.#bits, start + this.#pageBits);
  }

  /** Whether all bits of a page are the same, and which, as far as that can be told without looking at each. */
  uniform(index: number): typeof ALL_ZEROS | typeof ALL_ONES | null {
    const start = index * this.#pageBits;
    const page = this.#pages.get(index);
    if (page === this.#full || this.#onesBits >= start + this.#pageBits) return ALL_ONES;
    const stored = this.#keptBits > start ? this.#table?.[index] ?? ALL_ZEROS : ALL_ZEROS;
    if (page !== undefined || this.#onesBits > start) return null;
    if (stored === ALL_ZEROS) return ALL_ZEROS;
    return stored === ALL_ONES && this.#keptBits >= start + this.#pageBits ? ALL_ONES : null;
  }

  /** The bits of a page: a cluster, with zeros behind the last bit of the bitmap. */
  async bits(index: number): Promise<Uint8Array> {
    const start = index * this.#pageBits;
    const bytes = new Uint8Array(this.#clusterBytes);
    const stored = (await this.load())[index] ?? ALL_ZEROS;
    if (this.#keptBits > start && stored !== ALL_ZEROS) {
      if (stored === ALL_ONES) bytes.fill(0xff);
      else await this.#storage.read(stored, SegmentList.over(bytes));
      cut(bytes, this.#keptBits - start);
    }
    if (this.#onesBits > start) setBits(bytes, 0, Math.min(this.#pageBits, this.#onesBits - start));
    const page = this.#pages.get(index);
    for (let i = 0; page !== undefined && i < bytes.byteLength; i++) bytes[i] |= page[i];
    return cut(bytes, this.#bits - start);
  }

  /** Ranges of the disk whose bits are set, in order. */
  async *ranges(): AsyncGenerator<{ offset: number; lengthBytes: number }> {
    let first = -1;
    const range = (end: number) => ({
      offset: first * this.#granuleBytes,
      lengthBytes: Math.min(end * this.#granuleBytes, this.#diskBytes) - first * this.#granuleBytes,
    });
    await this.load();
    for (let index = 0; index < this.pages; index++) {
      const start = index * this.#pageBits;
      const uniform = this.uniform(index);
      const bytes = uniform === null ? await this.bits(index) : null;
      for (let bit = 0; bit < this.#pageBits; bit++) {
        const byte = bytes === null ? (uniform === ALL_ONES ? 0xff : 0) : bytes[bit >> 3];
        const isSet = (byte >> (bit & 7) & 1) === 1;
        if (isSet && first < 0) first = start + bit;
        else if (!isSet && first >= 0) {
          yield range(start + bit);
          first = -1;
        }
        if (bytes === null) break;
        // Most bytes are all zeros or all ones.
        if (byte === (isSet ? 0xff : 0) && (bit & 7) === 0) bit += 7;
      }
    }
    if (first >= 0) yield range(this.#bits);
  }

  /** It is in the file now, at this place. */
  stored(entry: BitmapEntry, table: Float64Array): void {
    this.#entry = entry;
    this.#table = table;
    this.#keptBits = this.#bits;
    this.#onesBits = 0;
    this.#pages.clear();
  }

  #bitsFor(diskBytes: number): number {
    return Math.ceil(diskBytes / this.#granuleBytes);
  }

  #page(index: number): Uint8Array {
    const page = this.#pages.get(index);
    if (page !== undefined) return page;
    const made = new Uint8Array(this.#clusterBytes);
    this.#pages.set(index, made);
    return made;
  }
}

const fullPages = new Map<number, Uint8Array>();

/** A page of ones that all bitmaps of images with such clusters share; nobody writes to it. */
function fullPage(clusterBytes: number): Uint8Array {
  let page = fullPages.get(clusterBytes);
  if (page === undefined) fullPages.set(clusterBytes, page = new Uint8Array(clusterBytes).fill(0xff));
  return page;
}

/** Whether all of so many bits are the same, and which; `null` when they differ. */
export function sameBits(bytes: Uint8Array): typeof ALL_ZEROS | typeof ALL_ONES | null {
  const first = bytes[0];
  if (first !== 0 && first !== 0xff) return null;
  for (let i = 1; i < bytes.byteLength; i++) if (bytes[i] !== first) return null;
  return first === 0 ? ALL_ZEROS : ALL_ONES;
}

function setBits(bytes: Uint8Array, from: number, to: number): void {
  const [first, last] = [from >> 3, to >> 3];
  const low = 0xff << (from & 7) & 0xff;
  const high = (1 << (to & 7)) - 1;
  if (first === last) {
    if (high !== 0) bytes[first] |= low & high;
    return;
  }
  bytes[first] |= low;
  bytes.fill(0xff, first + 1, last);
  if (high !== 0) bytes[last] |= high;
}

/** Clears the bits behind the first so many. */
function cut(bytes: Uint8Array, bits: number): Uint8Array {
  if (bits >= bytes.byteLength * 8) return bytes;
  const last = bits >> 3;
  bytes[last] &= (1 << (bits & 7)) - 1;
  bytes.fill(0, last + 1);
  return bytes;
}
