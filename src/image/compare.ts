/**
 * Whether two images hold the same disk. What both are known to hold as zeros is not read.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Image } from "./image.ts";
import { type ChainExtent, mapChain, type MapChainOptions } from "./map_chain.ts";
import { firstNonZero } from "./zeros.ts";

/** What came of a comparison. */
export type Comparison =
  | { readonly same: true; readonly sizesDiffer: boolean }
  | { readonly same: false; readonly why: "size" }
  | {
    readonly same: false;
    readonly why: "status" | "content";
    readonly offset: number;
    readonly sizesDiffer: boolean;
  };

/** Which of the two images could not be read, and where. */
export class CompareError extends Error {
  override readonly name = "CompareError";
  readonly image: Image;
  readonly operation: "map" | "read";
  readonly offset: number;

  constructor(image: Image, operation: "map" | "read", offset: number, cause: unknown) {
    super(`${operation} of ${image.name} at ${offset}`, { cause });
    this.image = image;
    this.operation = operation;
    this.offset = offset;
  }
}

/** How to compare. */
export interface CompareOptions extends MapChainOptions {
  /** Sizes must be equal, and what is allocated too. Otherwise the longer one may go on with zeros. */
  readonly strict?: boolean;
  /** Told how many bytes have been looked at since the last call. */
  readonly onProgress?: (bytes: number) => void;
}

const CHUNK_BYTES = 2 << 20;
const SECTOR_BYTES = 512;

/**
 * Compares two disks. As in qemu-img, a difference is reported at the start of its sector.
 *
 * @throws CompareError
 */
export async function compareImages(a: Image, b: Image, options: CompareOptions = {}): Promise<Comparison> {
  const { strict = false, onProgress } = options;
  const common = Math.min(a.sizeBytes, b.sizeBytes);
  const sizesDiffer = a.sizeBytes !== b.sizeBytes;
  if (strict && sizesDiffer) return { same: false, why: "size" };
  const left = new Walk(a, common, options);
  const right = new Walk(b, common, options);
  const bytes = [new Uint8Array(CHUNK_BYTES), new Uint8Array(CHUNK_BYTES)];
  const different = (why: "status" | "content", offset: number) => ({ same: false, why, offset, sizesDiffer } as const);
  for (let at = 0; at < common;) {
    const [one, other] = [await left.at(at), await right.at(at)];
    if (strict && !sameStatus(one, other, at, common)) return different("status", at);
    let length = Math.min(endOf(one), endOf(other)) - at;
    if (!one.zero || !other.zero) {
      length = Math.min(length, CHUNK_BYTES);
      const where = await difference([a, b], [one, other], at, bytes.map((buffer) => buffer.subarray(0, length)));
      if (where >= 0) return different("content", at + where);
    }
    onProgress?.(length);
    at += length;
  }
  if (!sizesDiffer) return { same: true, sizesDiffer };
  const longer = a.sizeBytes > b.sizeBytes ? a : b;
  const rest = await nonZeroFrom(longer, common, bytes[0], options);
  return rest < 0 ? { same: true, sizesDiffer } : different("content", rest);
}

/** The first sector in which two runs of one length differ, from `at` on; -1 when none does. */
async function difference(
  images: readonly [Image, Image],
  [one, other]: readonly [ChainExtent, ChainExtent],
  at: number,
  [first, second]: readonly Uint8Array[],
): Promise<number> {
  // Zeros need not be read to be compared with.
  if (!one.zero) await readInto(images[0], at, first);
  if (!other.zero) await readInto(images[1], at, second);
  if (one.zero || other.zero) return firstNonZeroSector(one.zero ? second : first);
  return firstDifferentSector(first, second);
}

function firstNonZeroSector(bytes: Uint8Array): number {
  const where = firstNonZero(bytes);
  return where < 0 ? -1 : where - where % SECTOR_BYTES;
}

/** Where a disk has the first byte that is not zero, from `from` on; -1 when nowhere. */
async function nonZeroFrom(image: Image, from: number, buffer: Uint8Array, options: CompareOptions): Promise<number> {
  const walk = new Walk(image, image.sizeBytes, options);
  for (let at = from; at < image.sizeBytes;) {
    const run = await walk.at(at);
    let length = endOf(run) - at;
    if (!run.zero) {
      length = Math.min(length, buffer.byteLength);
      const part = buffer.subarray(0, length);
      await readInto(image, at, part);
      const where = firstNonZeroSector(part);
      if (where >= 0) return at + where;
    }
    options.onProgress?.(length);
    at += length;
  }
  return -1;
}

async function readInto(image: Image, offset: number, bytes: Uint8Array): Promise<void> {
  try {
    await image.read(offset, SegmentList.over(bytes));
  } catch (cause) {
    throw new CompareError(image, "read", offset, cause);
  }
}

/** Index of the first sector that differs, in bytes; -1 when none does. The buffers are as long as each other. */
export function firstDifferentSector(a: Uint8Array, b: Uint8Array): number {
  const length = a.byteLength;
  const words = Math.floor(length / 4);
  const one = new Int32Array(a.buffer, a.byteOffset, words);
  const other = new Int32Array(b.buffer, b.byteOffset, words);
  const whole = words - words % 8;
  let i = 0;
  for (; i < whole; i += 8) {
    const some = (one[i] ^ other[i]) | (one[i + 1] ^ other[i + 1]) | (one[i + 2] ^ other[i + 2]) |
      (one[i + 3] ^ other[i + 3]) | (one[i + 4] ^ other[i + 4]) | (one[i + 5] ^ other[i + 5]) |
      (one[i + 6] ^ other[i + 6]) | (one[i + 7] ^ other[i + 7]);
    if (some !== 0) return 4 * i - 4 * i % SECTOR_BYTES;
  }
  for (let at = 4 * i; at < length; at++) {
    if (a[at] !== b[at]) return at - at % SECTOR_BYTES;
  }
  return -1;
}

/** Whether an image has something there, in the sense in which QEMU asks: that an image ends counts as something. */
function isThere({ present, pastBacking }: ChainExtent): boolean {
  return present || pastBacking;
}

function endOf({ guestOffset, lengthBytes }: ChainExtent): number {
  return guestOffset + lengthBytes;
}

/** Whether QEMU would say the same about the two runs that hold `at`: what they are, and whether they reach the end. */
function sameStatus(one: ChainExtent, other: ChainExtent, at: number, end: number): boolean {
  if (one.zero !== other.zero || one.data !== other.data || isThere(one) !== isThere(other)) return false;
  if ((one.hostOffset === undefined) !== (other.hostOffset === undefined)) return false;
  return at >= end || (endOf(one) === end) === (endOf(other) === end);
}

/** Runs of one disk, asked for in order. */
class Walk {
  readonly #image: Image;
  readonly #end: number;
  readonly #options: MapChainOptions;
  #windows: AsyncGenerator<ChainExtent[]> | null = null;
  #extents: readonly ChainExtent[] = [];
  #next = 0;
  #current: ChainExtent | null = null;

  constructor(image: Image, end: number, options: MapChainOptions) {
    this.#image = image;
    this.#end = end;
    this.#options = options;
  }

  /** The run that holds `offset`, joined with those behind it that are alike. */
  async at(offset: number): Promise<ChainExtent> {
    if (this.#current !== null && offset < endOf(this.#current)) return this.#current;
    this.#windows ??= mapChain(this.#image, offset, this.#end - offset, this.#options);
    try {
      let run = (await this.#take())!;
      for (let next = await this.#take(); next !== null; next = await this.#take()) {
        if (!alike(run, next)) {
          this.#next--;
          break;
        }
        run = { ...run, lengthBytes: run.lengthBytes + next.lengthBytes };
      }
      return this.#current = run;
    } catch (cause) {
      throw new CompareError(this.#image, "map", offset, cause);
    }
  }

  async #take(): Promise<ChainExtent | null> {
    while (this.#next === this.#extents.length) {
      const { done, value } = await this.#windows!.next();
      if (done) return null;
      this.#extents = value;
      this.#next = 0;
    }
    return this.#extents[this.#next++];
  }
}

function alike(a: ChainExtent, b: ChainExtent): boolean {
  return a.zero === b.zero && a.data === b.data && isThere(a) === isThere(b) &&
    (a.hostOffset === undefined) === (b.hostOffset === undefined);
}
