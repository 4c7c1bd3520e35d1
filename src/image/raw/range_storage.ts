/**
 * A part of a storage: what `offset` and `size` of QEMU's raw driver make of a file.
 *
 * @module
 */

import type { SegmentList } from "../../memory/segment_list.ts";
import { BlockError, type BlockOperation, BlockOptionError } from "../../storage/block_error.ts";
import type { Completion, Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";

/** Shows the bytes of `inner` from an offset on. */
export class RangeStorage implements Storage {
  readonly event?: (name: string) => Completion;
  readonly #inner: Storage;
  readonly #offset: number;
  /** `null` when it ends where the inner one does. */
  readonly #sizeBytes: number | null;

  /**
   * Takes `inner` over, unless it fails: it is closed with this one.
   *
   * @param path what the user called the image, for messages
   * @throws BlockOptionError
   */
  constructor(inner: Storage, offset: number, sizeBytes: number | null, path: string) {
    const realBytes = inner.sizeBytes;
    if (offset > realBytes) {
      const reason = `Offset (${offset}) cannot be greater than size of the containing file (${realBytes})`;
      throw new BlockOptionError(path, reason);
    }
    if (sizeBytes !== null && realBytes - offset < sizeBytes) {
      const reason = `The sum of offset (${offset}) and size (${sizeBytes}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${realBytes})`;
      throw new BlockOptionError(path, reason);
    }
    // The last sector would reach over the end of what may be touched.
    if (sizeBytes !== null && sizeBytes % SECTOR_BYTES !== 0) {
      throw new BlockOptionError(path, `Specified size is not multiple of ${SECTOR_BYTES}`);
    }
    this.#inner = inner;
    this.#offset = offset;
    this.#sizeBytes = sizeBytes;
    if (inner.event !== undefined) this.event = (name) => inner.event!(name);
  }

  get name(): string {
    return this.#inner.name;
  }

  get readOnly(): boolean {
    return this.#inner.readOnly;
  }

  get canUnmap(): boolean {
    return this.#inner.canUnmap;
  }

  get sizeBytes(): number {
    const left = Math.max(0, this.#inner.sizeBytes - this.#offset);
    return this.#sizeBytes === null ? left : Math.min(left, this.#sizeBytes);
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#inner.read(this.#offset + offset, into);
  }

  write(offset: number, from: SegmentList): Completion {
    this.#checkEnd("write", offset, from.byteLength);
    return this.#inner.write(this.#offset + offset, from);
  }

  flush(): Completion {
    return this.#inner.flush();
  }

  zero(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    this.#checkEnd("zero", offset, lengthBytes);
    return this.#inner.zero(this.#offset + offset, lengthBytes, mayUnmap);
  }

  discard(offset: number, lengthBytes: number): Completion {
    this.#checkEnd("discard", offset, lengthBytes);
    return this.#inner.discard(this.#offset + offset, lengthBytes);
  }

  truncate(sizeBytes: number): Completion {
    if (this.#sizeBytes !== null) {
      const reason = "Cannot resize fixed-size raw disks";
      throw new BlockError({ kind: "unsupported", path: this.name, operation: "resize", reason });
    }
    return this.#inner.truncate(this.#offset + sizeBytes);
  }

  close(): void {
    this.#inner.close();
  }

  #checkEnd(operation: BlockOperation, offset: number, lengthBytes: number): void {
    if (this.#sizeBytes === null || offset + lengthBytes <= this.#sizeBytes) return;
    const reason = "It would go beyond the end of the part of the file that is the disk";
    throw new BlockError({ kind: "no-space", path: this.name, operation, offset, reason });
  }
}
