/**
 * The persistent bitmaps of an image (QEMU's docs/interop/qcow2, "Bitmaps"): which parts of the disk were written.
 *
 * Before the first change of the disk all bitmaps that it concerns are marked in the file as in use, with a barrier
 * behind it. From then on they change in memory only. When the image is closed they are stored (bitmap_store.ts), and
 * are not in use any more. So at any moment a bitmap in the file is right, or is marked.
 *
 * A bitmap that is disabled stays as it is, unless the size of the disk changes, which is its size too. One that was in
 * use when the image was opened was not closed: nobody knows what should be in it. It stays as it is, until somebody
 * removes it.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import { Bitmap } from "./bitmap.ts";
import {
  BITMAP_FLAG,
  BITMAP_LIMIT,
  bitmapBytes,
  type BitmapEntry,
  directoryBytes,
  entryFault,
  isUsable,
  newEntry,
  readDirectory,
  setInUse,
} from "./bitmap_directory.ts";
import type { Qcow2Header } from "./header.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import { BITMAP_DIRECTORY_MAX_BYTES, BITMAPS_MAX } from "./qcow2_layout.ts";
import { corrupt, unsupported } from "./refuse.ts";

/** Most memory that all bitmaps together may take that note changes; QEMU takes half as much for one. */
const ENABLED_MAX_BYTES = 1 << 30;

/** Tables of bitmaps that are resized are in memory; of so many entries at most, which is far beyond what anybody has. */
const TABLES_MAX_ENTRIES = 8 << 20;

/** A bitmap of the image; without `bitmap` it is kept as it is. */
export interface BitmapSlot {
  /** As it is in the file, if it is there. */
  entry: BitmapEntry;
  readonly bitmap: Bitmap | null;
  /** Whether the file says that it is in use, because this program uses it. */
  marked: boolean;
  inFile: boolean;
}

/** All bitmaps of one image, in the order of the directory. */
export class PersistentBitmaps {
  readonly storage: Storage;
  readonly #version: number;
  readonly #clusterBytes: number;
  #diskBytes: number;
  #slots: BitmapSlot[];
  #enabled: readonly Bitmap[] = [];
  /** Whether all enabled bitmaps are marked. */
  #ready = false;
  #changed = false;
  /** What the file has and these have not any more. */
  readonly removed: BitmapEntry[] = [];

  private constructor(storage: Storage, header: Qcow2Header, slots: BitmapSlot[]) {
    this.storage = storage;
    this.#version = header.version;
    this.#clusterBytes = 2 ** header.clusterBits;
    this.#diskBytes = header.sizeBytes;
    this.#slots = slots;
    this.#choose();
  }

  /**
   * Reads and checks the directory of an image.
   *
   * @throws BlockError when it breaks the format
   */
  static async open(storage: Storage, header: Qcow2Header): Promise<PersistentBitmaps> {
    const entries = await readDirectory(storage, header.bitmaps);
    const names = new Set<string>();
    const slots = entries.map((entry) => {
      const fault = names.has(entry.name) ? `Bitmap already exists: ${entry.name}` : entryFault(entry, header);
      if (fault !== null) throw corrupt(storage.name, "open", fault, header.bitmaps!.offset + entry.position);
      names.add(entry.name);
      const bitmap = isUsable(entry) ? new Bitmap(storage, entry, 2 ** header.clusterBits, header.sizeBytes) : null;
      return { entry, bitmap, marked: false, inFile: true };
    });
    return new PersistentBitmaps(storage, header, slots);
  }

  /**
   * Sees to it that the disk can be written: all bitmaps that must note changes can do so.
   *
   * @throws BlockError
   */
  async prepareForWriting(): Promise<void> {
    const { auto, inUse } = BITMAP_FLAG;
    for (const { entry, bitmap } of this.#slots) {
      if (bitmap === null && (entry.flags & auto) !== 0 && (entry.flags & inUse) === 0) {
        const reason = `Bitmap '${entry.name}' must note every write, but has extra data that vblk does not know`;
        throw unsupported(this.storage.name, reason, "remove the bitmap with the program that made it");
      }
    }
    this.#checkMemory(0);
    for (const bitmap of this.#enabled) await bitmap.load();
  }

  get slots(): readonly BitmapSlot[] {
    return this.#slots;
  }

  /** Whether there is something to store. */
  get isChanged(): boolean {
    return this.#changed;
  }

  /** Notes that a range of the disk is about to change; `false` when `mark` has to come first. */
  note(offset: number, lengthBytes: number): boolean {
    if (!this.#ready) return false;
    for (const bitmap of this.#enabled) bitmap.set(offset, lengthBytes);
    return true;
  }

  /** Notes that a range of the disk is about to change. The lock is held. */
  async noteWaiting(file: Qcow2File, offset: number, lengthBytes: number): Promise<void> {
    if (this.note(offset, lengthBytes)) return;
    await this.#mark(file, ({ bitmap }) => bitmap?.enabled ?? false);
    this.#ready = true;
    this.note(offset, lengthBytes);
  }

  /**
   * To be called before the disk gets another size, or is replaced by another one. The lock is held.
   *
   * @throws BlockError when a bitmap would be too large; nothing has changed then
   */
  async beforeResize(file: Qcow2File, diskBytes: number): Promise<void> {
    const isConcerned = ({ bitmap }: BitmapSlot) =>
      bitmap !== null && (bitmap.enabled || diskBytes !== this.#diskBytes);
    let entries = 0;
    for (const slot of this.#slots) {
      const { bitmap } = slot;
      if (bitmap === null || !isConcerned(slot)) continue;
      entries += bitmap.pages;
      if (entries > TABLES_MAX_ENTRIES) throw this.#refused("There are too many bitmaps to give them another size");
      this.#checkSize(bitmap.granularityBits, diskBytes, `Bitmap '${bitmap.name}' doesn't satisfy the constraints: `);
      await bitmap.load();
    }
    await this.#mark(file, isConcerned);
    this.#ready = true;
  }

  /** The disk has another size. */
  resized(diskBytes: number): void {
    this.#diskBytes = diskBytes;
    for (const { bitmap } of this.#slots) bitmap?.resize(diskBytes);
  }

  /** The disk is another one. */
  replaced(diskBytes: number): void {
    if (diskBytes !== this.#diskBytes) this.resized(diskBytes);
    for (const bitmap of this.#enabled) bitmap.setAll();
  }

  /**
   * Adds an enabled bitmap, with no bit set.
   *
   * @param granularityBytes how much of the disk a bit stands for; QEMU's default when not given
   * @throws BlockError
   */
  add(name: string, granularityBytes?: number, enabled = true): Bitmap {
    if (name === "") throw this.#refused("Bitmap name cannot be empty");
    const granule = granularityBytes ?? Math.min(65536, Math.max(4096, this.#clusterBytes));
    // QEMU takes no more than 32 bits, so what is larger is no power of two to it.
    if (granule < 512 || granule >= 2 ** 32 || !Number.isInteger(Math.log2(granule))) {
      throw this.#refused("Granularity must be power of 2 and at least 512");
    }
    if (this.#slots.some(({ entry }) => entry.name === name)) throw this.#refused(`Bitmap already exists: ${name}`);
    const prefix = `Can't make bitmap '${name}' persistent in '${this.storage.name}': `;
    if (this.#version < 3) throw this.#refused(`${prefix}Cannot store dirty bitmaps in qcow2 v2 files`);
    const entry = newEntry(name, Math.log2(granule), enabled ? BITMAP_FLAG.auto : 0);
    this.#checkSize(entry.granularityBits, this.#diskBytes, prefix);
    if (new TextEncoder().encode(name).byteLength > BITMAP_LIMIT.nameBytes) {
      throw this.#refused(`${prefix}Name length exceeds maximum (${BITMAP_LIMIT.nameBytes} characters)`);
    }
    if (this.#slots.length >= BITMAPS_MAX) {
      throw this.#refused(`${prefix}Maximum number of persistent bitmaps is already reached`);
    }
    if (directoryBytes([...this.#slots.map((slot) => slot.entry), entry]) > BITMAP_DIRECTORY_MAX_BYTES) {
      throw this.#refused(`${prefix}Not enough space in the bitmap directory`);
    }
    const bitmap = new Bitmap(this.storage, entry, this.#clusterBytes, this.#diskBytes);
    if (enabled) this.#checkMemory(bitmap.memoryBytes);
    // As in QEMU, the last that is new comes first.
    const stored = this.#slots.findLastIndex(({ inFile }) => inFile) + 1;
    this.#slots.splice(stored, 0, { entry, bitmap, marked: false, inFile: false });
    this.#edited();
    return bitmap;
  }

  /** Removes a bitmap, whatever its state. */
  remove(name: string): void {
    const slot = this.find(name);
    this.#slots = this.#slots.filter((other) => other !== slot);
    if (slot.inFile) this.removed.push(slot.entry);
    this.#edited();
  }

  /** Clears all bits of a bitmap. */
  clear(name: string): void {
    this.use(name).clear();
    this.#edited();
  }

  /** Has a bitmap note changes, or not. */
  enable(name: string, enabled: boolean): void {
    const bitmap = this.use(name);
    if (enabled && !bitmap.enabled) this.#checkMemory(bitmap.memoryBytes);
    bitmap.enabled = enabled;
    this.#edited();
  }

  /** Sets all bits of a bitmap that stand for what another one, of the same image or not, has set. */
  async merge(name: string, source: Bitmap): Promise<void> {
    const bitmap = this.use(name);
    if (bitmap.diskBytes !== source.diskBytes) {
      throw this.#refused(
        `Bitmaps are of different sizes (destination size is ${bitmap.diskBytes}, ` +
          `source size is ${source.diskBytes}) and can't be merged`,
      );
    }
    this.#edited();
    if (bitmap === source) return;
    for await (const { offset, lengthBytes } of source.ranges()) bitmap.set(offset, lengthBytes);
  }

  /** A bitmap, whether it can be used or not. */
  find(name: string): BitmapSlot {
    const slot = this.#slots.find(({ entry }) => entry.name === name);
    if (slot === undefined) throw this.#refused(`Dirty bitmap '${name}' not found`);
    return slot;
  }

  /** A bitmap that can be used. */
  use(name: string): Bitmap {
    const { bitmap } = this.find(name);
    if (bitmap !== null) return bitmap;
    throw this.#refused(`Bitmap '${name}' is inconsistent and cannot be used`, "remove it, and add it again");
  }

  /** Everything is in the file as it is here, and nothing is marked. */
  stored(entries: readonly BitmapEntry[]): void {
    this.#slots.forEach((slot, i) => {
      slot.entry = entries[i];
      slot.marked = false;
      slot.inFile = true;
    });
    this.removed.length = 0;
    this.#changed = false;
    this.#choose();
  }

  #edited(): void {
    this.#changed = true;
    this.#choose();
  }

  #choose(): void {
    this.#enabled = this.#slots.flatMap(({ bitmap }) => bitmap?.enabled ? [bitmap] : []);
    this.#ready = this.#slots.every(({ bitmap, marked }) => !bitmap?.enabled || marked);
  }

  /** Says in the file that bitmaps are in use: a flag of each, in a place of its own, so that no crash tears it. */
  async #mark(file: Qcow2File, which: (slot: BitmapSlot) => boolean): Promise<void> {
    const slots = this.#slots.filter((slot) => slot.inFile && !slot.marked && which(slot));
    if (slots.length === 0) return;
    const { offset, lengthBytes } = file.header.bitmaps!;
    const bytes = new Uint8Array(lengthBytes);
    await file.storage.read(offset, SegmentList.over(bytes));
    setInUse(bytes, slots.map(({ entry }) => entry));
    // Whatever comes of it: they are marked no more when they have been stored.
    this.#changed = true;
    await file.write("bitmap directory", offset, bytes);
    await file.barrier();
    for (const slot of slots) slot.marked = true;
  }

  #checkSize(granularityBits: number, diskBytes: number, prefix: string): void {
    const { least, most } = BITMAP_LIMIT.granularityBits;
    if (granularityBits > most) throw this.#refused(`${prefix}Granularity exceeds maximum (${2 ** most} bytes)`);
    if (granularityBits < least) throw this.#refused(`${prefix}Granularity is under minimum (${2 ** least} bytes)`);
    if (diskBytes === 0) throw this.#refused(`${prefix}A disk without size has no bitmaps`);
    if (bitmapBytes(diskBytes, granularityBits) <= BITMAP_LIMIT.bytes) return;
    throw this.#refused(`${prefix}Too much space will be occupied by the bitmap. Use larger granularity`);
  }

  #checkMemory(more: number): void {
    const all = this.#enabled.reduce((sum, { memoryBytes }) => sum + memoryBytes, more);
    if (all <= ENABLED_MAX_BYTES) return;
    const reason = `The enabled bitmaps would take ${all} bytes of memory, more than ${ENABLED_MAX_BYTES}`;
    throw unsupported(this.storage.name, reason, "'vblk bitmap' removes or disables some");
  }

  #refused(reason: string, hint?: string): BlockError {
    return new BlockError({ kind: "invalid", path: this.storage.name, operation: "write", reason, hint });
  }
}
