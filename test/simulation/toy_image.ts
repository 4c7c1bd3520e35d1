/**
 * The smallest image with an order to keep: a map of one sector, and slots that are never overwritten while the map on
 * the disk points to them. It shows that the explorer finds wrong orders.
 */

import { SegmentList } from "../../src/memory/segment_list.ts";
import { after, type Completion, type Storage } from "../../src/storage/storage.ts";
import { SECTOR } from "./sectors.ts";
import type { TestImage } from "./world.ts";

/** What to do wrong. */
export type Mistake = "none" | "map before data" | "slots reused early" | "flush without a barrier";

export const TOY_SECTORS = 16;

/** Sector 0 of the storage holds 16 slot numbers; 0 stands for zeros. */
export class ToyImage implements TestImage {
  readonly sizeBytes = TOY_SECTORS * SECTOR;
  readonly #storage: Storage;
  readonly #mistake: Mistake;
  readonly #sector = new Uint8Array(SECTOR);
  readonly #map = new Uint16Array(this.#sector.buffer, 0, TOY_SECTORS);
  /** What the map on the disk points to, and what it may point to after a crash. */
  #onDisk: number[] = [];

  private constructor(storage: Storage, mistake: Mistake) {
    this.#storage = storage;
    this.#mistake = mistake;
  }

  static async open(storage: Storage, mistake: Mistake = "none"): Promise<ToyImage> {
    const image = new ToyImage(storage, mistake);
    await storage.read(0, SegmentList.over(image.#sector));
    image.#onDisk = [...image.#map];
    return image;
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#each(offset, into.byteLength, (index, done) => {
      const slot = this.#map[index];
      if (slot === 0) return into.fill(0, done, SECTOR);
      const part = new SegmentList();
      part.appendRange(into, done, SECTOR);
      return this.#storage.read(slot * SECTOR, part);
    });
  }

  write(offset: number, from: SegmentList): Completion {
    return this.#each(offset, from.byteLength, (index, done) => {
      const slot = this.#freeSlot();
      this.#map[index] = slot;
      const part = new SegmentList();
      part.appendRange(from, done, SECTOR);
      return this.#storage.write(slot * SECTOR, part);
    });
  }

  writeZeroes(offset: number, lengthBytes: number): Completion {
    return this.#each(offset, lengthBytes, (index) => void (this.#map[index] = 0));
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.writeZeroes(offset, lengthBytes);
  }

  async flush(): Promise<void> {
    if (this.#mistake !== "map before data") await this.#storage.flush();
    await this.#storage.write(0, SegmentList.over(this.#sector));
    if (this.#mistake !== "flush without a barrier") await this.#storage.flush();
    this.#onDisk = [...this.#map];
  }

  resize(): Completion {}

  async close(): Promise<void> {
    await this.flush();
  }

  #freeSlot(): number {
    const taken = new Set([...this.#map, ...(this.#mistake === "slots reused early" ? [] : this.#onDisk)]);
    let slot = 1;
    while (taken.has(slot)) slot++;
    return slot;
  }

  #each(offset: number, lengthBytes: number, action: (index: number, done: number) => Completion): Completion {
    const next = (done: number): Completion => {
      if (done < lengthBytes) return after(action((offset + done) / SECTOR, done), () => next(done + SECTOR));
    };
    return next(0);
  }
}
