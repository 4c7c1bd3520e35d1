/**
 * Bytes in this process's memory, in pages that exist only once they hold something.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import { BlockError } from "./block_error.ts";
import type { Completion, Storage } from "./storage.ts";

/** Size of a page. One 4 KiB request on a page moves with one copy and without making a view. */
export const PAGE_BYTES = 4096;

/** How many pages are cleared one by one, whether they exist or not. */
const MANY_PAGES = 1 << 16;

const ZERO_PAGE = new Uint8Array(PAGE_BYTES);

/** Largest size: as many pages as an array has indexes. */
export const MEMORY_STORAGE_MAX_BYTES = (2 ** 32 - 1) * PAGE_BYTES;

/** A storage in memory; sparse. */
export class MemoryStorage implements Storage {
  readonly name: string;
  /** Whether whoever writes should be refused. */
  readonly readOnly: boolean;
  /** Pages that are cleared are given back. */
  readonly canUnmap = true;
  #sizeBytes: number;
  readonly #pages: (Uint8Array | undefined)[] = [];

  /**
   * Allocates nothing yet.
   *
   * @param sizeBytes initial size; all bytes read as zeros
   */
  constructor(sizeBytes: number, options: { name?: string; readOnly?: boolean } = {}) {
    this.#sizeBytes = sizeBytes;
    this.name = options.name ?? `mem:${sizeBytes}`;
    this.readOnly = options.readOnly ?? false;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Number of pages that hold something. */
  get pageCount(): number {
    let count = 0;
    for (const _ in this.#pages) count++;
    return count;
  }

  /** Whether the page that holds `offset` exists. */
  hasPage(offset: number): boolean {
    return this.#pages[Math.floor(offset / PAGE_BYTES)] !== undefined;
  }

  read(offset: number, into: SegmentList): Completion {
    let at = offset;
    for (let i = 0; i < into.count; i++) {
      const target = into.regionOf(i).bytes;
      let to = into.offsetOf(i);
      for (let left = into.lengthOf(i); left > 0;) {
        const page = this.#pages[Math.floor(at / PAGE_BYTES)];
        const from = at % PAGE_BYTES;
        const take = Math.min(left, PAGE_BYTES - from);
        if (page === undefined) target.fill(0, to, to + take);
        else target.set(take === PAGE_BYTES ? page : page.subarray(from, from + take), to);
        at += take;
        to += take;
        left -= take;
      }
    }
  }

  write(offset: number, from: SegmentList): Completion {
    let at = offset;
    for (let i = 0; i < from.count; i++) {
      const region = from.regionOf(i);
      let source = from.offsetOf(i);
      for (let left = from.lengthOf(i); left > 0;) {
        const into = at % PAGE_BYTES;
        const take = Math.min(left, PAGE_BYTES - into);
        this.#pageAt(at).set(region.slice(source, take), into);
        at += take;
        source += take;
        left -= take;
      }
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, at);
  }

  flush(): Completion {}

  zero(offset: number, lengthBytes: number): Completion {
    this.#clear(offset, lengthBytes);
    this.#sizeBytes = Math.max(this.#sizeBytes, offset + lengthBytes);
  }

  discard(offset: number, lengthBytes: number): Completion {
    this.#clear(offset, lengthBytes);
  }

  /**
   * Makes a range read as zeros and its whole pages exist, at the price of a reference each: for a storage that shows
   * something else where there is no page.
   */
  cover(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    const firstWhole = Math.ceil(offset / PAGE_BYTES);
    const endWhole = Math.floor(end / PAGE_BYTES);
    for (let index = firstWhole; index < endWhole; index++) this.#pages[index] = ZERO_PAGE;
    this.#clearEdges(offset, end);
    this.#sizeBytes = Math.max(this.#sizeBytes, end);
  }

  truncate(sizeBytes: number): Completion {
    if (sizeBytes > MEMORY_STORAGE_MAX_BYTES) {
      const reason = "A disk in memory must be below 16 TiB";
      throw new BlockError({ kind: "invalid", path: this.name, operation: "resize", reason });
    }
    if (sizeBytes < this.#sizeBytes) this.#clear(sizeBytes, this.#pages.length * PAGE_BYTES - sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  close(): void {
    this.#pages.length = 0;
  }

  #pageAt(offset: number): Uint8Array {
    const index = Math.floor(offset / PAGE_BYTES);
    const page = this.#pages[index];
    // The page of zeros is shared: whoever writes gets one of his own.
    return page !== undefined && page !== ZERO_PAGE ? page : this.#pages[index] = new Uint8Array(PAGE_BYTES);
  }

  #clear(offset: number, lengthBytes: number): void {
    if (lengthBytes <= 0) return;
    const end = offset + lengthBytes;
    const firstWhole = Math.ceil(offset / PAGE_BYTES);
    const endWhole = Math.floor(end / PAGE_BYTES);
    this.#clearEdges(offset, end);
    if (firstWhole > endWhole) return;
    if (endWhole >= this.#pages.length) {
      this.#pages.length = Math.min(this.#pages.length, firstWhole);
    } else if (endWhole - firstWhole < MANY_PAGES) {
      for (let index = firstWhole; index < endWhole; index++) delete this.#pages[index];
    } else {
      // A disk can have billions of pages of which a few exist: look at those only.
      for (const key in this.#pages) {
        const index = Number(key);
        if (index >= firstWhole && index < endWhole) delete this.#pages[index];
      }
    }
  }

  /** Clears the parts of a range that do not cover whole pages. */
  #clearEdges(offset: number, end: number): void {
    const firstWhole = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
    const endWhole = Math.floor(end / PAGE_BYTES) * PAGE_BYTES;
    if (firstWhole > endWhole) return this.#clearPart(offset, end - offset);
    this.#clearPart(offset, firstWhole - offset);
    this.#clearPart(endWhole, end - endWhole);
  }

  /** Clears a range inside one page. */
  #clearPart(offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    this.#pages[Math.floor(offset / PAGE_BYTES)]?.set(ZERO_PAGE.subarray(0, lengthBytes), offset % PAGE_BYTES);
  }
}
