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
import { FirstSectorGuard } from "./first_sector.ts";

/** Choices for a raw image. */
export interface RawOptions {
  /** That it is raw was guessed from its first bytes: the guest may not make them look like something else. */
  readonly probed?: boolean;
  /** Where the disk starts in its file, in bytes, for the map only: the storage begins with the disk. Default: 0. */
  readonly fileOffset?: number;
  /** What the map says of all of it. Default: `data`. */
  readonly extentKind?: "data" | "zero" | "unallocated";
}

/** A raw image on a storage. */
export class RawImage implements Image {
  readonly format = "raw";
  /** Whether its format was guessed, so that some writes to its first sector are refused. */
  readonly probed: boolean;
  readonly #storage: Storage;
  readonly #guard: FirstSectorGuard | null;
  readonly #event: ((name: string) => Completion) | null;
  readonly #fileOffset: number;
  readonly #extentKind: "data" | "zero" | "unallocated";
  #sizeBytes: number;
  /** Where the storage ends, when that is not at the end of the last sector; `#sizeBytes` otherwise. */
  #tail: number;

  /** Takes the storage over: it is closed with the image. */
  constructor(storage: Storage, options: RawOptions = {}) {
    this.#storage = storage;
    this.probed = options.probed ?? false;
    this.#fileOffset = options.fileOffset ?? 0;
    this.#extentKind = options.extentKind ?? "data";
    this.#event = storage.event === undefined ? null : (name) => storage.event!(name);
    this.#guard = this.probed
      ? new FirstSectorGuard(
        storage.name,
        () => this.#tail,
        (offset, into) => storage.read(offset, into),
        (offset, from) => this.#write(offset, from),
      )
      : null;
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
    if (this.#event !== null) return after(this.#event("read_aio"), () => this.#read(offset, into));
    return this.#read(offset, into);
  }

  #read(offset: number, into: SegmentList): Completion {
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
    if (this.#guard !== null && offset < SECTOR_BYTES && from.byteLength > 0) return this.#guard.write(offset, from);
    return this.#write(offset, from);
  }

  #write(offset: number, from: SegmentList): Completion {
    if (this.#event !== null) return after(this.#event("write_aio"), () => this.#store(offset, from));
    return this.#store(offset, from);
  }

  #store(offset: number, from: SegmentList): Completion {
    const end = offset + from.byteLength;
    if (end <= this.#tail) return this.#storage.write(offset, from);
    return after(this.#storage.write(offset, from), () => this.#grow(end));
  }

  flush(): Completion {
    const event = this.#event;
    if (event === null) return this.#storage.flush();
    return after(after(event("flush_to_os"), () => event("flush_to_disk")), () => this.#storage.flush());
  }

  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    // As in QEMU: what may be unmapped does not make the file longer; behind its end it reads as zeros already.
    const end = mayUnmap ? Math.min(offset + lengthBytes, this.#tail) : offset + lengthBytes;
    if (end <= offset) return;
    const head = Math.min(end, SECTOR_BYTES) - offset;
    if (this.#guard !== null && head > 0 && head < SECTOR_BYTES) {
      // Zeros too can complete what another format begins with.
      return after(
        this.#guard.write(offset, SegmentList.over(new Uint8Array(head))),
        () => this.#zero(offset + head, end, mayUnmap),
      );
    }
    return this.#zero(offset, end, mayUnmap);
  }

  #zero(offset: number, end: number, mayUnmap: boolean): Completion {
    if (end <= offset) return;
    return after(this.#storage.zero(offset, end - offset, mayUnmap), () => this.#grow(end));
  }

  discard(offset: number, lengthBytes: number): Completion {
    const end = offset + lengthBytes;
    const isPart = offset > 0 || end < SECTOR_BYTES;
    // A part of a sector that must not change unseen stays as it is.
    const from = this.#guard !== null && offset < SECTOR_BYTES && isPart ? Math.min(end, SECTOR_BYTES) : offset;
    if (from < end) return this.#storage.discard(from, end - from);
  }

  map(offset: number, lengthBytes: number): Extent[] {
    if (lengthBytes === 0) return [];
    const kind = this.#extentKind;
    return [
      kind === "data"
        ? { guestOffset: offset, lengthBytes, kind, hostOffset: this.#fileOffset + offset }
        : { guestOffset: offset, lengthBytes, kind },
    ];
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
