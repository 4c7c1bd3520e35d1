/**
 * A storage that fails or waits when it is told to. Tests and users compose it with any other storage.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import { after, type Completion, type Storage } from "./storage.ts";

/** An operation that is about to be carried out. */
export interface StorageOperation {
  /** Counts the operations of this storage from 0. */
  readonly index: number;
  /** Which method was called. */
  readonly kind: "read" | "write" | "flush" | "zero" | "discard" | "truncate";
  /** In bytes; 0 for a flush or a truncate. */
  readonly offset: number;
  /** Length in bytes, or the new size for a truncate. */
  readonly lengthBytes: number;
}

/**
 * Looks at an operation before it is carried out. It throws (or rejects with) a `BlockError` to make the operation
 * fail, and returns a promise to hold it back.
 */
export type FaultHook = (operation: StorageOperation) => Completion;

/** Looks at an event that the image raises (see {@link Storage}). What it throws, the image meets as a failure. */
export type EventHook = (name: string) => Completion;

/** Passes everything on to `inner`, after asking `hook`. */
export class FaultStorage implements Storage {
  /** Asked before each operation; may be replaced at any time. */
  hook: FaultHook;
  /** Told each event of the image; may be replaced at any time. */
  eventHook: EventHook = () => {};
  readonly #inner: Storage;
  #index = 0;

  /** Takes `inner` over: it is closed with this one. */
  constructor(inner: Storage, hook: FaultHook = () => {}) {
    this.#inner = inner;
    this.hook = hook;
  }

  get name(): string {
    return this.#inner.name;
  }

  /** Whether the inner storage is read-only. */
  get readOnly(): boolean {
    return this.#inner.readOnly;
  }

  get canUnmap(): boolean {
    return this.#inner.canUnmap;
  }

  /** The same for all names of one file, as the inner storage has it. */
  get identity(): string | null {
    return (this.#inner as { identity?: string | null }).identity ?? null;
  }

  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#pass("read", offset, into.byteLength, () => this.#inner.read(offset, into));
  }

  write(offset: number, from: SegmentList): Completion {
    return this.#pass("write", offset, from.byteLength, () => this.#inner.write(offset, from));
  }

  flush(): Completion {
    return this.#pass("flush", 0, 0, () => this.#inner.flush());
  }

  zero(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    return this.#pass("zero", offset, lengthBytes, () => this.#inner.zero(offset, lengthBytes, mayUnmap));
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.#pass("discard", offset, lengthBytes, () => this.#inner.discard(offset, lengthBytes));
  }

  truncate(sizeBytes: number): Completion {
    return this.#pass("truncate", 0, sizeBytes, () => this.#inner.truncate(sizeBytes));
  }

  /** Tells `eventHook`. An event is for the nearest storage that listens, as in QEMU: the inner one does not hear of it. */
  event(name: string): Completion {
    return this.eventHook(name);
  }

  close(): void {
    this.#inner.close();
  }

  #pass(
    kind: StorageOperation["kind"],
    offset: number,
    lengthBytes: number,
    action: () => Completion,
  ): Completion {
    return after(this.hook({ index: this.#index++, kind, offset, lengthBytes }), action);
  }
}
