/**
 * Gives an image another one behind it, without a change of what its disk holds: what the two backing images have
 * different, and the image itself has not, is copied into it. The name in the image changes afterwards.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type Image } from "./image.ts";
import { backingOf, mapChain } from "./map_chain.ts";
import { isZeros } from "./zeros.ts";

/** What to compare. */
export interface RebaseOptions {
  /** What will be behind the image; `null` for nothing, which reads as zeros. */
  readonly newBacking: Image | null;
  /**
   * Set when the new backing image is in the image's chain already, as the so-manieth behind it: what no image before
   * that one has is the same with either.
   */
  readonly depth?: number;
  /** Unit of allocation: what is copied is copied in whole units. */
  readonly unitBytes: number;
  /** Whether the image can say that a unit reads as zeros, whatever is behind it. */
  readonly hasZeroUnits: boolean;
  /** Told how far the comparison has come; both in bytes. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** Which of the images failed. */
export class RebaseError extends Error {
  override readonly name = "RebaseError";
  readonly side: "map" | "old" | "new" | "write";
  override readonly cause: BlockError;

  constructor(side: "map" | "old" | "new" | "write", cause: BlockError) {
    super(cause.message);
    this.side = side;
    this.cause = cause;
  }
}

const CHUNK_BYTES = 2 << 20;

/**
 * Copies into `image` what differs. Nothing that the disk holds changes, so this may be interrupted at any moment. The
 * copies are not flushed.
 *
 * @throws RebaseError
 */
export async function copyDifferences(image: Image, options: RebaseOptions): Promise<void> {
  const { depth, onProgress } = options;
  const differ = new Comparison(image, options);
  const total = image.sizeBytes;
  const windows = mapChain(image, 0, total, { layers: depth ?? 1 });
  for (;;) {
    const { value: window, done } = await failing("map", () => windows.next());
    if (done) return;
    for (const { guestOffset, lengthBytes, depth: at, present, pastBacking, zero } of window) {
      const end = guestOffset + lengthBytes;
      const isOwn = at === 0 && present;
      // Neither here nor in those that are dropped; but where one of those ends early, zeros were read.
      const isSame = depth !== undefined && !present && !pastBacking && !zero;
      if (!isOwn && !isSame) await differ.copy(guestOffset, end);
      onProgress?.(end, total);
    }
  }
}

class Comparison {
  readonly #image: Image;
  readonly #options: RebaseOptions;
  readonly #old: NonZeros;
  readonly #new: NonZeros;
  readonly #chunkBytes: number;
  readonly #oldBytes: Uint8Array<ArrayBuffer>;
  readonly #newBytes: Uint8Array<ArrayBuffer>;

  constructor(image: Image, options: RebaseOptions) {
    this.#image = image;
    this.#options = options;
    this.#old = new NonZeros(backingOf(image), "old");
    this.#new = new NonZeros(options.newBacking, "new");
    this.#chunkBytes = Math.max(CHUNK_BYTES, options.unitBytes);
    this.#oldBytes = new Uint8Array(this.#chunkBytes);
    this.#newBytes = new Uint8Array(this.#chunkBytes);
  }

  /** Compares a range, and copies what differs; the caller asks for ranges in order. */
  async copy(from: number, to: number): Promise<void> {
    const { unitBytes } = this.#options;
    for (let at = from; at < to;) {
      const some = Math.min(await this.#old.next(at), await this.#new.next(at));
      if (some >= to) return;
      at = Math.max(at, some - some % unitBytes);
      const take = Math.min(this.#chunkBytes - at % this.#chunkBytes, to - at);
      await this.#copyChunk(at, take);
      at += take;
    }
  }

  async #copyChunk(offset: number, lengthBytes: number): Promise<void> {
    const old = this.#oldBytes.subarray(0, lengthBytes);
    const fresh = this.#newBytes.subarray(0, lengthBytes);
    await this.#old.read(offset, old);
    await this.#new.read(offset, fresh);
    const units = unitsOf(offset, old, fresh, this.#options.unitBytes);
    for (let i = 0; i < units.length;) {
      let last = i;
      while (last + 1 < units.length && isNeighbour(units[last], units[last + 1])) last++;
      const [from, to] = [units[i].from, units[last].to];
      await failing("write", async () => {
        if (units[i].isZero && this.#options.hasZeroUnits) {
          await this.#image.writeZeroes(offset + from, to - from, true);
        } else await this.#image.write(offset + from, SegmentList.over(old.subarray(from, to)));
      });
      i = last + 1;
    }
  }
}

/** A unit that differs; zeros are told apart, as they need no space. */
interface Unit {
  readonly from: number;
  readonly to: number;
  readonly isZero: boolean;
}

function isNeighbour(one: Unit, next: Unit): boolean {
  return one.to === next.from && one.isZero === next.isZero;
}

function unitsOf(offset: number, old: Uint8Array, fresh: Uint8Array, unitBytes: number): Unit[] {
  const units: Unit[] = [];
  for (let from = 0; from < old.byteLength;) {
    const to = Math.min(old.byteLength, from + unitBytes - (offset + from) % unitBytes);
    if (!isEqual(old, fresh, from, to)) units.push({ from, to, isZero: isZeros(old, from, to) });
    from = to;
  }
  return units;
}

/** The buffers begin with their memory, and ranges are whole sectors. */
function isEqual(a: Uint8Array, b: Uint8Array, from: number, to: number): boolean {
  const x = new Int32Array(a.buffer, from, (to - from) / 4);
  const y = new Int32Array(b.buffer, from, (to - from) / 4);
  for (let i = 0; i < x.length; i++) {
    if (x[i] !== y[i]) return false;
  }
  return true;
}

/** A backing image, and where it has something else than zeros. Behind its end are zeros. */
class NonZeros {
  readonly #image: Image | null;
  readonly #side: "old" | "new";
  #runs: AsyncGenerator<{ from: number; to: number }> | null = null;
  #from = 0;
  #to = 0;

  constructor(image: Image | null, side: "old" | "new") {
    this.#image = image;
    this.#side = side;
  }

  /** The first place from `at` on that may be no zero; infinite when there is none. Never asked for less than before. */
  async next(at: number): Promise<number> {
    if (this.#image === null) return Infinity;
    this.#runs ??= nonZeroRuns(this.#image);
    while (this.#to <= at) {
      const { value, done } = await failing(this.#side, () => this.#runs!.next());
      if (done) {
        this.#from = this.#to = Infinity;
        break;
      }
      this.#from = value.from;
      this.#to = value.to;
    }
    return Math.max(at, this.#from);
  }

  async read(offset: number, into: Uint8Array<ArrayBuffer>): Promise<void> {
    const has = Math.min(into.byteLength, Math.max(0, (this.#image?.sizeBytes ?? 0) - offset));
    into.fill(0, has);
    if (has > 0) {
      await failing(this.#side, async () => await this.#image!.read(offset, SegmentList.over(into.subarray(0, has))));
    }
  }
}

async function* nonZeroRuns(image: Image): AsyncGenerator<{ from: number; to: number }> {
  for await (const window of mapChain(image, 0, image.sizeBytes)) {
    for (const { guestOffset, lengthBytes, zero } of window) {
      if (!zero) yield { from: guestOffset, to: guestOffset + lengthBytes };
    }
  }
}

async function failing<T>(side: RebaseError["side"], action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw error instanceof BlockError ? new RebaseError(side, error) : error;
  }
}
