/**
 * An image that leaves out some of what it is asked to do, or does it in another way: QEMU's `cache=unsafe`,
 * `discard=ignore` and `detect-zeroes`, for any format.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import type { Completion, Extent, Image, ImageDetails } from "./image.ts";

/** What to leave out. */
export interface ImagePolicy {
  /** Flushes end at once and reach nothing. What was written is lost when the host crashes. */
  readonly ignoreFlush?: boolean;
  /** Discards change nothing, and zeros are written without giving space back. */
  readonly ignoreDiscard?: boolean;
  /** Writes of nothing but zeros become zeroing; with `unmap` their space may be given back. */
  readonly detectZeroes?: "on" | "unmap";
}

/** Passes on to `inner` what the policy does not leave out. */
export class PolicyImage implements Image {
  readonly #inner: Image;
  readonly #policy: ImagePolicy;

  constructor(inner: Image, policy: ImagePolicy) {
    this.#inner = inner;
    this.#policy = policy;
  }

  get name(): string {
    return this.#inner.name;
  }

  get format(): string {
    return this.#inner.format;
  }

  /** Whether the format was guessed, so that some writes are refused. */
  get probed(): boolean {
    return (this.#inner as { probed?: boolean }).probed ?? false;
  }

  /** What a qcow2 image says of its tables in memory. */
  get tableLookups(): { hits: number; misses: number } | undefined {
    return (this.#inner as { tableLookups?: { hits: number; misses: number } }).tableLookups;
  }

  get readOnly(): boolean {
    return this.#inner.readOnly;
  }

  get canUnmap(): boolean {
    return this.#inner.canUnmap && !this.#policy.ignoreDiscard;
  }

  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#inner.read(offset, into);
  }

  write(offset: number, from: SegmentList): Completion {
    const { detectZeroes } = this.#policy;
    if (detectZeroes === undefined || !isZero(from)) return this.#inner.write(offset, from);
    return this.writeZeroes(offset, from.byteLength, detectZeroes === "unmap");
  }

  /** The inner image's, which may have none. */
  get writeCompressed(): Image["writeCompressed"] {
    return this.#inner.writeCompressed?.bind(this.#inner);
  }

  flush(): Completion {
    if (!this.#policy.ignoreFlush) return this.#inner.flush();
  }

  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    return this.#inner.writeZeroes(offset, lengthBytes, mayUnmap && !this.#policy.ignoreDiscard);
  }

  discard(offset: number, lengthBytes: number): Completion {
    if (!this.#policy.ignoreDiscard) return this.#inner.discard(offset, lengthBytes);
  }

  map(offset: number, lengthBytes: number): Extent[] | Promise<Extent[]> {
    return this.#inner.map(offset, lengthBytes);
  }

  /** The inner image's, which may have none. */
  get details(): (() => Promise<ImageDetails>) | undefined {
    return this.#inner.details?.bind(this.#inner);
  }

  resize(sizeBytes: number): Completion {
    return this.#inner.resize(sizeBytes);
  }

  close(): Completion {
    return this.#inner.close();
  }
}

function isZero(list: SegmentList): boolean {
  for (let i = 0; i < list.count; i++) {
    const view = list.viewOf(i);
    for (let at = 0; at < view.byteLength; at++) {
      if (view[at] !== 0) return false;
    }
  }
  return true;
}
