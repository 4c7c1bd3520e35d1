/**
 * Copies disks, one behind the other, into one image: what `convert` does.
 *
 * What is known to read as zeros is not read, and zeros that are found are not written where the target reads as zeros
 * anyway. Extents are copied in order; nothing is flushed.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { CopyError, CopySource, type CopySourceOptions } from "./copy_source.ts";
import { BlockError, type Image } from "./image.ts";
import { RateLimit } from "./rate_limit.ts";
import { areZeroWords, isZeros } from "./zeros.ts";

/** Bytes that are moved at a time, at most. */
export const COPY_CHUNK_BYTES = 2 << 20;

/** How to copy. */
export interface CopyOptions extends CopySourceOptions {
  /** So many zeros in a row, at least, are left out. 0: everything is written, and takes its space. */
  readonly sparseBytes: number;
  /** What is not written reads as zeros. */
  readonly targetIsZero: boolean;
  /** Writes are not split inside of so many bytes: the target's unit of allocation. */
  readonly unitBytes?: number;
  /** Told after each step how far the copy has come, and how far it has to go; both in bytes. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Most bytes to write in a second. */
  readonly bytesPerSecond?: number;
  /** Reads ahead on other threads. Only for a single source. */
  readonly reader?: AheadReader;
}

/** Reads of a disk that go on while others are written. */
export interface AheadReader {
  /** How many reads are worth being under way. */
  readonly depth: number;
  /** Reads at most `COPY_CHUNK_BYTES`; when that fails the copy reads again by itself, to learn why. */
  read(offset: number, lengthBytes: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Takes back what `read` gave. */
  recycle(bytes: Uint8Array<ArrayBuffer>): void;
}

/**
 * Copies the disks.
 *
 * @throws CopyError
 */
export async function copyImages(sources: readonly Image[], target: Image, options: CopyOptions): Promise<void> {
  const copy = new PlainCopy(new CopySource(sources, options), target, options);
  await copy.run();
}

/** Turns a failed write into the copy's failure. */
export async function writing(offset: number, action: () => void | Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    throw error instanceof BlockError ? new CopyError("write", offset, error) : error;
  }
}

class PlainCopy {
  readonly #source: CopySource;
  readonly #target: Image;
  readonly #options: CopyOptions;
  readonly #buffer = new Uint8Array(COPY_CHUNK_BYTES);
  readonly #ahead: { offset: number; lengthBytes: number; bytes: Promise<Uint8Array<ArrayBuffer>> }[] = [];
  readonly #rate: RateLimit | null;

  constructor(source: CopySource, target: Image, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#rate = options.bytesPerSecond === undefined ? null : new RateLimit(options.bytesPerSecond);
  }

  async run(): Promise<void> {
    const { sparseBytes, targetIsZero } = this.#options;
    for await (const { offset, lengthBytes, kind } of this.#source.runs()) {
      const end = offset + lengthBytes;
      if (kind === "data" || (kind === "zero" && sparseBytes === 0)) await this.#copy(offset, end, kind === "zero");
      else if (kind === "zero" && !targetIsZero) await this.#zero(offset, lengthBytes);
    }
    while (this.#ahead.length > 0) await this.#finishFirst();
  }

  async #copy(from: number, end: number, zeros: boolean): Promise<void> {
    const { reader } = this.#options;
    for (let at = from; at < end;) {
      // Up to a multiple of its size, so that units are not split.
      const take = Math.min(COPY_CHUNK_BYTES - at % COPY_CHUNK_BYTES, end - at);
      if (reader !== undefined && !zeros) await this.#readAhead(reader, at, take);
      else {
        const bytes = this.#buffer.subarray(0, take);
        if (zeros) bytes.fill(0);
        else await this.#source.read(at, bytes);
        await this.#finish(at, bytes);
      }
      at += take;
    }
  }

  async #readAhead(reader: AheadReader, offset: number, lengthBytes: number): Promise<void> {
    const bytes = reader.read(offset, lengthBytes);
    // Looked at when its turn comes.
    bytes.catch(() => {});
    this.#ahead.push({ offset, lengthBytes, bytes });
    if (this.#ahead.length > reader.depth) await this.#finishFirst();
  }

  async #finishFirst(): Promise<void> {
    const { offset, lengthBytes, bytes } = this.#ahead.shift()!;
    const read = await bytes.catch(() => null);
    if (read !== null) {
      await this.#finish(offset, read);
      this.#options.reader!.recycle(read);
      return;
    }
    const again = this.#buffer.subarray(0, lengthBytes);
    await this.#source.read(offset, again);
    await this.#finish(offset, again);
  }

  async #finish(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.#options.sparseBytes === 0) await this.#write(offset, bytes);
    else await this.#writeSparse(offset, bytes);
    this.#options.onProgress?.(offset + bytes.byteLength, this.#source.totalBytes);
    if (this.#rate !== null) await this.#rate.spend(bytes.byteLength);
  }

  /** Writes what is not zeros; zeros between two runs are written with them when they are few. */
  async #writeSparse(offset: number, bytes: Uint8Array): Promise<void> {
    const { sparseBytes, unitBytes = 0, targetIsZero } = this.#options;
    const unit = Math.max(Math.min(sparseBytes, SPARSE_UNIT_BYTES), Math.min(unitBytes, UNIT_MAX_BYTES));
    const end = bytes.byteLength;
    for (let at = 0; at < end;) {
      const dataEnd = endOfData(bytes, offset, at, unit, sparseBytes);
      if (dataEnd > at) await this.#write(offset + at, bytes.subarray(at, dataEnd));
      const zerosEnd = endOfZeros(bytes, offset, dataEnd, unit);
      if (zerosEnd > dataEnd && !targetIsZero) await this.#zero(offset + dataEnd, zerosEnd - dataEnd);
      at = zerosEnd;
    }
  }

  #write(offset: number, bytes: Uint8Array): Promise<void> {
    return writing(offset, () => this.#target.write(offset, SegmentList.over(bytes)));
  }

  #zero(offset: number, lengthBytes: number): Promise<void> {
    return writing(offset, () => this.#target.writeZeroes(offset, lengthBytes, true));
  }
}

/** File systems leave out blocks of this size. */
const SPARSE_UNIT_BYTES = 4096;
/** A target with large clusters gets smaller pieces all the same: zeros inside of a cluster take space. */
const UNIT_MAX_BYTES = 65536;

/** Where zeros begin that are worth leaving out, from `from` on. */
function endOfData(bytes: Uint8Array, offset: number, from: number, unit: number, sparseBytes: number): number {
  const end = bytes.byteLength;
  let dataEnd = from;
  for (let at = from; at < end;) {
    const next = nextUnit(offset, at, unit, end);
    if (!zerosIn(bytes, at, next)) dataEnd = next;
    else if (next - dataEnd >= sparseBytes) break;
    at = next;
  }
  return dataEnd;
}

function endOfZeros(bytes: Uint8Array, offset: number, from: number, unit: number): number {
  const end = bytes.byteLength;
  let at = from;
  while (at < end) {
    const next = nextUnit(offset, at, unit, end);
    if (!zerosIn(bytes, at, next)) break;
    at = next;
  }
  return at;
}

function nextUnit(offset: number, at: number, unit: number, end: number): number {
  return Math.min(end, at + unit - (offset + at) % unit);
}

let words: Int32Array = new Int32Array(0);

/** A view for each unit would cost more than looking at it: there is one for the buffer. */
function zerosIn(bytes: Uint8Array, from: number, to: number): boolean {
  if (bytes.byteOffset !== 0 || from % 32 !== 0 || to % 32 !== 0) return isZeros(bytes, from, to);
  if (words.buffer !== bytes.buffer) words = new Int32Array(bytes.buffer);
  return areZeroWords(words, from / 4, to / 4);
}
