/**
 * What a copy reads: disks, one behind the other, as one.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type Image, SECTOR_BYTES } from "./image.ts";
import { type ChainExtent, mapChain } from "./map_chain.ts";

/** How to read. */
export interface CopySourceOptions {
  /**
   * What the first image of a source's chain does not have is left out: the target has the rest behind it. The number
   * is where that ends, in bytes; zeros are read from there on.
   */
  readonly behindTargetBytes?: number;
  /** What cannot be read is zeros, sector by sector, and told to this function. */
  readonly onUnreadable?: (offset: number, error: BlockError) => void;
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

/** Disks that are one behind the other. */
export class CopySource {
  readonly totalBytes: number;
  readonly #sources: readonly Image[];
  readonly #options: CopySourceOptions;

  constructor(sources: readonly Image[], options: CopySourceOptions) {
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

/** The rest of a disk whose map cannot be had. */
function unknown(image: Image, guestOffset: number): ChainExtent {
  const lengthBytes = image.sizeBytes - guestOffset;
  const kind = { present: true, pastBacking: false, zero: false, data: true, compressed: false };
  return { guestOffset, lengthBytes, depth: 0, ...kind, image };
}
