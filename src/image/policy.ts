/**
 * An image that leaves out some of what it is asked to do: QEMU's `cache=unsafe` and `discard=ignore`, for any format.
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
    return this.#inner.write(offset, from);
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

  close(): void {
    this.#inner.close();
  }
}
