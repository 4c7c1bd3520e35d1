/**
 * Lists of memory as the kernel wants them: struct iovec, an address and a length each, in memory of which the address
 * is known.
 *
 * @module
 */

import { addressOf, pointerTo } from "../host/mapping.ts";
import type { SegmentList } from "../memory/segment_list.ts";

/** The kernel takes no more in one call (IOV_MAX). */
export const MOST_IOVECS = 1024;

const IOVEC_BYTES = 16;
const WORDS = IOVEC_BYTES / 4;
const HIGH = 0x1_0000_0000;

/** A place for a number of iovecs, filled from its start. */
export class Iovecs {
  /** How many `add` wrote last. */
  count = 0;
  readonly #capacity: number;
  #words: Uint32Array<ArrayBuffer> | undefined;
  #address = 0;
  #pointer: Deno.PointerValue = null;
  #used = 0;

  /** Takes no memory before it is used. */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  /** Where the first one lies. */
  get pointer(): Deno.PointerValue {
    return this.#pointer;
  }

  /** Whether `count` more fit. */
  hasRoom(count: number): boolean {
    return this.#used + count <= this.#capacity;
  }

  /** Forgets all. The kernel must have looked at them. */
  clear(): void {
    this.#used = 0;
  }

  /** Writes those of one list over all that there is. */
  only(list: SegmentList): this {
    this.#used = 0;
    this.add(list, 0);
    return this;
  }

  /**
   * Adds those of a list from its byte `from` on, at most `MOST_IOVECS`. The caller has looked whether they fit.
   *
   * @returns the address of the first
   */
  add(list: SegmentList, from: number): number {
    const words = this.#words ?? this.#make();
    const first = this.#used;
    let at = first * WORDS;
    let skip = from;
    let count = 0;
    for (let i = 0; i < list.count && count < MOST_IOVECS; i++) {
      const length = list.lengthOf(i) - skip;
      if (length <= 0) {
        skip = -length;
        continue;
      }
      const region = list.regionOf(i).bytes;
      const address = addressOf(region.buffer) + region.byteOffset + list.offsetOf(i) + skip;
      words[at] = address;
      words[at + 1] = address / HIGH;
      words[at + 2] = length;
      words[at + 3] = length / HIGH;
      at += WORDS;
      count++;
      skip = 0;
    }
    this.count = count;
    this.#used = first + count;
    return this.#address + first * IOVEC_BYTES;
  }

  #make(): Uint32Array<ArrayBuffer> {
    this.#words = new Uint32Array(this.#capacity * WORDS);
    this.#address = addressOf(this.#words.buffer);
    this.#pointer = pointerTo(this.#address);
    return this.#words;
  }
}
