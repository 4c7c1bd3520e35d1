/**
 * A scatter-gather list of guest memory, made to be filled and emptied for every request without allocating.
 *
 * Every segment has been checked against its region when it was appended, so whoever moves bytes through the
 * list need not check again.
 *
 * @module
 */

import { MemoryRegion } from "./region.ts";

/** An ordered list of byte ranges in guest memory. */
export class SegmentList {
  /** Number of segments in use. The arrays may be longer. */
  count = 0;
  /** Sum of the segments' lengths, in bytes. */
  byteLength = 0;

  readonly #regions: MemoryRegion[] = [];
  readonly #offsets: number[] = [];
  readonly #lengths: number[] = [];

  /** A list of one segment that covers host bytes which belong to no guest. */
  static over(bytes: Uint8Array): SegmentList {
    const list = new SegmentList();
    // A region starts at an even offset of its buffer, so for odd bytes it starts one before them. Never a copy:
    // what is written through the list would be lost.
    const odd = bytes.byteOffset % 2;
    const whole = odd === 0 ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset - 1, bytes.byteLength + 1);
    list.append(new MemoryRegion(0, whole), odd, bytes.byteLength);
    return list;
  }

  /** Empties the list. */
  clear(): void {
    this.count = 0;
    this.byteLength = 0;
  }

  /** Adds a range; the caller has checked that it lies in the region. Empty ranges are dropped. */
  append(region: MemoryRegion, offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const i = this.count++;
    this.#regions[i] = region;
    this.#offsets[i] = offset;
    this.#lengths[i] = lengthBytes;
    this.byteLength += lengthBytes;
  }

  /** The region of segment `i`. */
  regionOf(i: number): MemoryRegion {
    return this.#regions[i];
  }

  /** Where segment `i` starts in its region, in bytes. */
  offsetOf(i: number): number {
    return this.#offsets[i];
  }

  /** Length of segment `i`, in bytes. */
  lengthOf(i: number): number {
    return this.#lengths[i];
  }

  /** The bytes of segment `i`, as a view. */
  viewOf(i: number): Uint8Array {
    return this.#regions[i].slice(this.#offsets[i], this.#lengths[i]);
  }

  /** Appends `lengthBytes` of `source`, from its byte `from` on. The caller has checked the range. */
  appendRange(source: SegmentList, from: number, lengthBytes: number): void {
    let skip = from;
    let left = lengthBytes;
    for (let i = 0; i < source.count && left > 0; i++) {
      const length = source.#lengths[i];
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, left);
      this.append(source.#regions[i], source.#offsets[i] + skip, take);
      skip = 0;
      left -= take;
    }
  }

  /** Copies bytes out of the list, from its byte `from` on, until `target` is full or the list ends; returns how many. */
  copyTo(target: Uint8Array, from = 0): number {
    let skip = from;
    let done = 0;
    for (let i = 0; i < this.count && done < target.byteLength; i++) {
      const length = this.#lengths[i];
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, target.byteLength - done);
      const source = this.#regions[i].bytes;
      const start = this.#offsets[i] + skip;
      if (take <= 32) {
        // Headers and segment descriptors: a short loop costs less than a view.
        for (let k = 0; k < take; k++) target[done + k] = source[start + k];
      } else {
        target.set(this.#regions[i].slice(start, take), done);
      }
      skip = 0;
      done += take;
    }
    return done;
  }

  /** Copies `source` into the list, from its byte `from` on, until either ends; returns how many bytes were copied. */
  copyFrom(source: Uint8Array, from = 0): number {
    let skip = from;
    let done = 0;
    for (let i = 0; i < this.count && done < source.byteLength; i++) {
      const length = this.#lengths[i];
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, source.byteLength - done);
      const whole = done === 0 && take === source.byteLength;
      this.#regions[i].bytes.set(whole ? source : source.subarray(done, done + take), this.#offsets[i] + skip);
      skip = 0;
      done += take;
    }
    return done;
  }

  /** Fills `lengthBytes` of the list with `value`, from its byte `from` on. */
  fill(value: number, from = 0, lengthBytes: number = this.byteLength - from): void {
    let skip = from;
    let left = lengthBytes;
    for (let i = 0; i < this.count && left > 0; i++) {
      const length = this.#lengths[i];
      if (skip >= length) {
        skip -= length;
        continue;
      }
      const take = Math.min(length - skip, left);
      const start = this.#offsets[i] + skip;
      this.#regions[i].bytes.fill(value, start, start + take);
      skip = 0;
      left -= take;
    }
  }
}
