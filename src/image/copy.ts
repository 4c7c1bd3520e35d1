/**
 * Copies disks, one behind the other, into one image: what `convert` does.
 *
 * What is known to read as zeros is not read, and zeros that are found are not written where the target reads as zeros
 * anyway. Extents are copied in order; nothing is flushed.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type Image, SECTOR_BYTES } from "./image.ts";
import { type ChainExtent, mapChain } from "./map_chain.ts";
import { RateLimit } from "./rate_limit.ts";
import { areZeroWords, isZeros } from "./zeros.ts";

/** Bytes that are moved at a time, at most. */
export const COPY_CHUNK_BYTES = 2 << 20;

/** How to copy. */
export interface CopyOptions {
  /** So many zeros in a row, at least, are left out. 0: everything is written, and takes its space. */
  readonly sparseBytes: number;
  /** What is not written reads as zeros. */
  readonly targetIsZero: boolean;
  /**
   * What the first image of a source's chain does not have is left out: the target has the rest behind it. The number
   * is where that ends, in bytes; zeros are read from there on.
   */
  readonly behindTargetBytes?: number;
  /** Writes are not split inside of so many bytes: the target's unit of allocation. */
  readonly unitBytes?: number;
  /** What cannot be read is zeros, sector by sector, and told to this function. */
  readonly onUnreadable?: (offset: number, error: BlockError) => void;
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

/** What a run of the disks asks for. */
export interface CopyRun {
  /** Offset on the target, in bytes. */
  readonly offset: number;
  readonly lengthBytes: number;
  /** `behind`: leave it out, the image behind the target has it. */
  readonly kind: "data" | "zero" | "behind";
}

/** A copy that failed: on which side, and where on the target's disk. */
export class CopyError extends Error {
  override readonly name = "CopyError";
  readonly side: "read" | "write" | "map";
  readonly offset: number;
  override readonly cause: BlockError;

  constructor(side: "read" | "write" | "map", offset: number, cause: BlockError) {
    super(`${side} at ${offset}: ${cause.message}`);
    this.side = side;
    this.offset = offset;
    this.cause = cause;
  }
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

/** Disks that are one behind the other. */
export class CopySource {
  readonly totalBytes: number;
  readonly #sources: readonly Image[];
  readonly #options: CopyOptions;

  constructor(sources: readonly Image[], options: CopyOptions) {
    this.#sources = sources;
    this.#options = options;
    this.totalBytes = sources.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  /** What to do with each part of the disks; neighbours that are alike are one run, over the borders of disks too. */
  async *runs(): AsyncGenerator<CopyRun> {
    let pending: CopyRun = { offset: 0, lengthBytes: 0, kind: "data" };
    let start = 0;
    for (const source of this.#sources) {
      for await (const window of this.#map(source, start)) {
        for (const extent of window) {
          for (const next of this.#runsOf(extent, start)) {
            if (next.kind === pending.kind) {
              pending = { ...pending, lengthBytes: pending.lengthBytes + next.lengthBytes };
              continue;
            }
            if (pending.lengthBytes > 0) yield pending;
            pending = next;
          }
        }
      }
      start += source.sizeBytes;
    }
    if (pending.lengthBytes > 0) yield pending;
  }

  /** Fills `bytes` from `offset` of the disks on. */
  async read(offset: number, bytes: Uint8Array): Promise<void> {
    let start = 0;
    for (const source of this.#sources) {
      const end = start + source.sizeBytes;
      const from = Math.max(offset, start);
      const to = Math.min(offset + bytes.byteLength, end);
      if (from < to) await this.#readOne(source, from - start, bytes.subarray(from - offset, to - offset), start);
      start = end;
    }
  }

  async #readOne(source: Image, offset: number, bytes: Uint8Array, start: number): Promise<void> {
    try {
      await source.read(offset, SegmentList.over(bytes));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      if (this.#options.onUnreadable === undefined) throw new CopyError("read", start + offset, error);
      await this.#salvage(source, offset, bytes);
    }
  }

  async #salvage(source: Image, offset: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.byteLength; at += SECTOR_BYTES) {
      const sector = bytes.subarray(at, Math.min(at + SECTOR_BYTES, bytes.byteLength));
      try {
        await source.read(offset + at, SegmentList.over(sector));
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        sector.fill(0);
        this.#options.onUnreadable!(offset + at, error);
      }
    }
  }

  async *#map(source: Image, start: number): AsyncGenerator<ChainExtent[]> {
    const layers = this.#options.behindTargetBytes === undefined ? undefined : 1;
    let done = 0;
    try {
      for await (const window of mapChain(source, 0, source.sizeBytes, { layers })) {
        yield window;
        done += window.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
      }
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      if (this.#options.onUnreadable === undefined) throw new CopyError("map", start + done, error);
      // What nobody knows is read, as far as it can be.
      yield [unknown(source, done)];
    }
  }

  #runsOf({ guestOffset, lengthBytes, zero, data }: ChainExtent, start: number): CopyRun[] {
    const offset = start + guestOffset;
    const behindBytes = this.#options.behindTargetBytes;
    if (!zero) return [{ offset, lengthBytes, kind: data ? "data" : "behind" }];
    // Behind the end of the image that is behind the target, zeros are read anyway.
    const inside = behindBytes === undefined ? lengthBytes : Math.min(lengthBytes, Math.max(0, behindBytes - offset));
    const runs: CopyRun[] = [];
    if (inside > 0) runs.push({ offset, lengthBytes: inside, kind: "zero" });
    if (inside < lengthBytes) runs.push({ offset: offset + inside, lengthBytes: lengthBytes - inside, kind: "behind" });
    return runs;
  }
}

/** Turns a failed write into the copy's failure. */
export async function writing(offset: number, action: () => void | Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    throw error instanceof BlockError ? new CopyError("write", offset, error) : error;
  }
}

/** The rest of a disk whose map cannot be had. */
function unknown(image: Image, guestOffset: number): ChainExtent {
  const lengthBytes = image.sizeBytes - guestOffset;
  const kind = { present: true, pastBacking: false, zero: false, data: true, compressed: false };
  return { guestOffset, lengthBytes, depth: 0, ...kind, image };
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
