/**
 * The raw format: guest offset and storage offset are the same.
 *
 * A disk has whole sectors, a file need not. As in QEMU, the disk's size is the file's rounded up, what lies
 * behind the end of the file reads as zeros, and a write there makes the file longer.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { after, type Completion, type Storage } from "../../storage/storage.ts";
import { type Extent, type Image, SECTOR_BYTES } from "../image.ts";

/** A raw image on a storage. */
export class RawImage implements Image {
  readonly format = "raw";
  readonly #storage: Storage;
  #sizeBytes: number;
  /** Where the storage ends, when that is not at the end of the last sector; `#sizeBytes` otherwise. */
  #tail: number;

  /** Takes the storage over: it is closed with the image. */
  constructor(storage: Storage) {
    this.#storage = storage;
    this.#tail = storage.sizeBytes;
    this.#sizeBytes = Math.ceil(this.#tail / SECTOR_BYTES) * SECTOR_BYTES;
  }

  get name(): string {
    return this.#storage.name;
  }

  /** Whether the storage was opened for reading only. */
  get readOnly(): boolean {
    return this.#storage.readOnly;
  }

  get canUnmap(): boolean {
    return this.#storage.canUnmap;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  read(offset: number, into: SegmentList): Completion {
    const end = offset + into.byteLength;
    if (end <= this.#tail) return this.#storage.read(offset, into);
    // Only the last, incomplete sector gets here.
    const stored = Math.max(0, this.#tail - offset);
    into.fill(0, stored);
    if (stored === 0) return;
    const part = new SegmentList();
    part.appendRange(into, 0, stored);
    return this.#storage.read(offset, part);
  }

  write(offset: number, from: SegmentList): Completion {
    const end = offset + from.byteLength;
    if (end <= this.#tail) return this.#storage.write(offset, from);
    return after(this.#storage.write(offset, from), () => this.#grow(end));
  }

  flush(): Completion {
    return this.#storage.flush();
  }

  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    // As in QEMU: what may be unmapped does not make the file longer; behind its end it reads as zeros already.
    const end = mayUnmap ? Math.min(offset + lengthBytes, this.#tail) : offset + lengthBytes;
    if (end <= offset) return;
    return after(this.#storage.zero(offset, end - offset, mayUnmap), () => this.#grow(end));
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.#storage.discard(offset, lengthBytes);
  }

  map(offset: number, lengthBytes: number): Extent[] {
    return lengthBytes === 0 ? [] : [{ guestOffset: offset, lengthBytes, kind: "data", hostOffset: offset }];
  }

  resize(sizeBytes: number): Completion {
    return after(this.#storage.truncate(sizeBytes), () => {
      this.#tail = sizeBytes;
      this.#sizeBytes = Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
    });
  }

  close(): void {
    this.#storage.close();
  }

  #grow(end: number): void {
    if (end > this.#tail) this.#tail = end;
  }
}
