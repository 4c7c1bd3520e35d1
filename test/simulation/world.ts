/**
 * A disk under test beside its model: carries out actions on both, and compares.
 */

import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import type { Completion } from "../../src/storage/storage.ts";
import type { Change, ModelDisk } from "./model_disk.ts";
import { NOISY, SECTOR, sectorsOf, tagsOf } from "./sectors.ts";

/** What is asked of an image here. */
export interface TestImage {
  readonly sizeBytes: number;
  read(offset: number, into: SegmentList): Completion;
  write(offset: number, from: SegmentList): Completion;
  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion;
  discard(offset: number, lengthBytes: number): Completion;
  flush(): Completion;
  resize(sizeBytes: number): Completion;
  writeCompressed?(offset: number, from: SegmentList): Completion;
  createSnapshot?(name: string): unknown;
  applySnapshot?(name: string): unknown;
  deleteSnapshot?(name: string): unknown;
  close(): Completion;
}

/** Something to do to a disk. */
export type Action =
  | { kind: "write" | "compressed"; offset: number; lengthBytes: number; noisy?: boolean }
  | { kind: "zeroes"; offset: number; lengthBytes: number; mayUnmap: boolean }
  | { kind: "discard"; offset: number; lengthBytes: number }
  /** With `racing`, while others change the same bytes: what was there before or after is right. */
  | { kind: "read"; offset: number; lengthBytes: number; racing?: boolean }
  | { kind: "resize"; sizeBytes: number }
  | { kind: "snapshot" | "apply" | "delete"; name: string }
  | { kind: "flush" | "reopen" };

/** What surrounds a disk under test. */
export interface WorldOptions {
  /** Opens the disk, again and again. */
  readonly open: () => Promise<TestImage>;
  readonly model: ModelDisk;
  /** What a discarded sector may hold beside zeros and what it had. */
  readonly discarded?: (sector: number) => readonly number[];
  /** Called when the image says that all is safe. */
  readonly afterFlush?: () => void;
  readonly afterClose?: () => void;
  /** Which failures are answers like any other. Default: none. */
  readonly mayFail?: (error: BlockError) => boolean;
}

/** A disk and its model. */
export class World {
  /** What was done, to repeat it by hand. */
  readonly story: string[] = [];
  /** Failures that were reported, when they may be. */
  readonly failures: BlockError[] = [];
  readonly model: ModelDisk;
  image!: TestImage;
  /** Whether the image is open: a close that fails leaves nothing to use. */
  isOpen = false;
  readonly #options: WorldOptions;

  private constructor(options: WorldOptions) {
    this.#options = options;
    this.model = options.model;
  }

  static async open(options: WorldOptions): Promise<World> {
    const world = new World(options);
    await world.#trying(() => world.#open());
    return world;
  }

  /** Carries out one action; those that other actions must not overlap with are the caller's business. */
  async run(action: Action): Promise<void> {
    this.story.push(JSON.stringify(action));
    await this.#trying(() => this.#run(action));
  }

  /** Reads a range and compares it. */
  async check(offset = 0, lengthBytes = this.image.sizeBytes - offset): Promise<void> {
    if (lengthBytes > 0) this.model.check(offset, await readTags(this.image, offset, lengthBytes), { settle: true });
  }

  /** Closes the disk, which is no flush; when that fails, what was not flushed may be lost. */
  async close(): Promise<void> {
    await this.#trying(() => this.#close());
  }

  /** Runs an action that may fail; in which way, the options say. */
  async #trying(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof BlockError && this.#options.mayFail?.(error))) throw error;
      this.story.push(`  ${error.message}`);
      this.failures.push(error);
      if (this.isOpen) this.model.settleSize(this.image.sizeBytes);
    }
  }

  async #close(): Promise<void> {
    if (!this.isOpen) return;
    this.isOpen = false;
    try {
      await this.image.close();
    } catch (error) {
      this.model.crash();
      throw error;
    }
    this.#options.afterClose?.();
  }

  async #open(): Promise<void> {
    this.image = await this.#options.open();
    this.isOpen = true;
    this.model.settleSize(this.image.sizeBytes);
  }

  async #run(action: Action): Promise<void> {
    if (!this.isOpen) await this.#open();
    const { image, model } = this;
    switch (action.kind) {
      case "write":
      case "compressed": {
        const { offset, lengthBytes } = action;
        const first = (action.noisy ? NOISY : 0) + model.newTags(lengthBytes / SECTOR);
        const list = SegmentList.over(sectorsOf(Array.from({ length: lengthBytes / SECTOR }, (_, i) => first + i)));
        const write = action.kind === "write" ? image.write : image.writeCompressed!;
        return await ending(model.change(offset, lengthBytes, (i) => [first + i]), write.call(image, offset, list));
      }
      case "zeroes": {
        const { offset, lengthBytes, mayUnmap } = action;
        return await ending(
          model.change(offset, lengthBytes, () => [0]),
          image.writeZeroes(offset, lengthBytes, mayUnmap),
        );
      }
      case "discard": {
        const { offset, lengthBytes } = action;
        await ending(model.discard(offset, lengthBytes, this.#options.discarded), image.discard(offset, lengthBytes));
        return await this.check(offset, lengthBytes);
      }
      case "read":
        if (action.racing) return await this.#race(action.offset, action.lengthBytes);
        return await this.check(action.offset, action.lengthBytes);
      case "resize":
        return await this.#safely(model.resize(action.sizeBytes), () => image.resize(action.sizeBytes));
      case "snapshot":
        return await this.#safely(model.createSnapshot(action.name), () => image.createSnapshot!(action.name));
      case "apply":
        return await this.#safely(model.applySnapshot(action.name), () => image.applySnapshot!(action.name));
      case "delete":
        return await this.#safely(model.deleteSnapshot(action.name), () => image.deleteSnapshot!(action.name));
      case "flush": {
        const flushed = model.flush();
        await image.flush();
        this.#options.afterFlush?.();
        return flushed.end();
      }
      case "reopen":
        await this.#close();
        return await this.#open();
    }
  }

  async #race(offset: number, lengthBytes: number): Promise<void> {
    const { model, image } = this;
    const expected = (i: number) => model.expected(offset / SECTOR + i);
    const before = Array.from({ length: lengthBytes / SECTOR }, (_, i) => expected(i));
    const tags = await readTags(image, offset, lengthBytes);
    tags.forEach((tag, i) => {
      if (before[i].includes(tag) || expected(i).includes(tag)) return;
      throw new Error(`a read at ${offset + i * SECTOR} found 0x${tag.toString(16)}, which is neither old nor new`);
    });
  }

  /** What changes the tables as a whole flushes before, and is certain when it ends. */
  async #safely(change: Change, action: () => unknown): Promise<void> {
    const flushed = this.model.flush();
    await action();
    this.#options.afterFlush?.();
    flushed.end();
    change.end();
    this.model.flush().end();
    this.model.settleSize(this.image.sizeBytes);
  }
}

async function ending(change: Change, completion: Completion): Promise<void> {
  await completion;
  change.end();
}

/** The tags of a range of a disk. */
export async function readTags(image: TestImage, offset: number, lengthBytes: number): Promise<Int32Array> {
  // Not zeros, so that bytes which were never filled show.
  const bytes = new Uint8Array(lengthBytes).fill(0xee);
  await image.read(offset, SegmentList.over(bytes));
  return tagsOf(bytes);
}
