/**
 * A storage whose writes go to memory and are forgotten at the end (`-s` in qemu-io).
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { MemoryStorage, PAGE_BYTES } from "./memory.ts";
import { after, type Completion, type Storage } from "./storage.ts";

/** Reads from `base` what was never written, and from memory what was. */
export class OverlayStorage implements Storage {
  readonly name: string;
  /** Whether whoever writes should be refused. */
  readonly readOnly: boolean;
  /** What is written over the base stays, even zeros. */
  readonly canUnmap = false;
  readonly #base: Storage;
  readonly #top: MemoryStorage;
  /** Bytes at and above this are not the base's any more. */
  #baseEnd: number;

  /**
   * Takes the base over: it is closed with this one.
   *
   * @param readOnly whether to refuse what could be written anyway
   */
  constructor(base: Storage, readOnly = false) {
    this.readOnly = readOnly;
    this.name = base.name;
    this.#base = base;
    this.#baseEnd = base.sizeBytes;
    this.#top = new MemoryStorage(base.sizeBytes);
  }

  get sizeBytes(): number {
    return this.#top.sizeBytes;
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#eachRun(offset, into.byteLength, 0, (at, length, inTop) => {
      const part = new SegmentList();
      part.appendRange(into, at - offset, length);
      return inTop ? this.#top.read(at, part) : this.#base.read(at, part);
    });
  }

  write(offset: number, from: SegmentList): Completion {
    return after(this.#copyUp(offset, from.byteLength), () => this.#top.write(offset, from));
  }

  flush(): Completion {}

  zero(offset: number, lengthBytes: number): Completion {
    // A page must exist, or the base would show through: zeros are kept, not cleared.
    return after(this.#copyUp(offset, lengthBytes), () => this.#top.cover(offset, lengthBytes));
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.zero(offset, Math.min(lengthBytes, this.sizeBytes - offset));
  }

  truncate(sizeBytes: number): Completion {
    this.#baseEnd = Math.min(this.#baseEnd, sizeBytes);
    return this.#top.truncate(sizeBytes);
  }

  close(): void {
    this.#top.close();
    this.#base.close();
  }

  /** Brings the first and last page of a range up from the base, where the range covers them in part only. */
  #copyUp(offset: number, lengthBytes: number): Completion {
    const end = offset + lengthBytes;
    let completion: Completion = undefined;
    for (const edge of offset % PAGE_BYTES ? [offset, end] : [end]) {
      const page = edge - (edge % PAGE_BYTES);
      if (edge === page || this.#top.hasPage(page) || page >= this.#baseEnd) continue;
      const bytes = new Uint8Array(Math.min(PAGE_BYTES, this.#baseEnd - page));
      const list = SegmentList.over(bytes);
      completion = after(completion, () => {
        if (this.#top.hasPage(page)) return;
        return after(this.#base.read(page, list), () => {
          // While the base was slow another write may have brought the page up, and changed it.
          if (!this.#top.hasPage(page)) return this.#top.write(page, list);
        });
      });
    }
    return completion;
  }

  /** Visits the runs of a range that lie in one of the two storages, in order. */
  #eachRun(
    offset: number,
    lengthBytes: number,
    from: number,
    visit: (at: number, length: number, inTop: boolean) => Completion,
  ): Completion {
    for (let done = from; done < lengthBytes;) {
      const at = offset + done;
      const inTop = this.#inTop(at);
      let length = 0;
      while (done + length < lengthBytes && this.#inTop(at + length) === inTop) {
        const next = at + length;
        const border = Math.min(
          PAGE_BYTES - (next % PAGE_BYTES),
          next < this.#baseEnd ? this.#baseEnd - next : Infinity,
        );
        length += Math.min(border, lengthBytes - done - length);
      }
      const completion = visit(at, length, inTop);
      done += length;
      const rest = done;
      if (completion !== undefined) return completion.then(() => this.#eachRun(offset, lengthBytes, rest, visit));
    }
  }

  #inTop(offset: number): boolean {
    return offset >= this.#baseEnd || this.#top.hasPage(offset);
  }
}
