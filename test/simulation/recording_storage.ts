/**
 * A storage that records what is done to it: every write, zero, discard, truncate and flush, with the data and with when
 * it began and ended. Several storages (an image and its data file) share one recorder, and so one clock.
 */

import type { SegmentList } from "../../src/memory/segment_list.ts";
import { after, type Completion, type Storage } from "../../src/storage/storage.ts";
import type { ByteStorage } from "./byte_storage.ts";

/** One operation that changed a file, or flushed it. */
export interface Recorded {
  /** Which of the recorder's files. */
  readonly file: number;
  readonly kind: "write" | "zero" | "discard" | "truncate" | "flush";
  /** In bytes; 0 for a truncate or a flush. */
  readonly offset: number;
  /** In bytes; the new size for a truncate. */
  readonly lengthBytes: number;
  /** Of a write. */
  readonly data?: Uint8Array;
  /** Ticks of the recorder's clock. */
  readonly begun: number;
  /** Infinity until it has ended. */
  ended: number;
}

/** The operations of all files, and the clock that orders them. */
export class Recorder {
  readonly operations: Recorded[] = [];
  #now = 0;

  /** The time of the last event. */
  get now(): number {
    return this.#now;
  }

  /** Time goes on. */
  tick(): number {
    return ++this.#now;
  }

  add(operation: Omit<Recorded, "begun" | "ended">): Recorded {
    const recorded = { ...operation, begun: this.tick(), ended: Infinity };
    this.operations.push(recorded);
    return recorded;
  }
}

/** How to record. */
export interface RecordingOptions {
  /** Holds each operation back, before it is carried out. */
  wait?: () => Completion;
  /**
   * For canaries: the flushes of the storage are recorded as nothing; those that `recordFlush` tells of are kept. So the
   * barriers inside an operation are lost, but not what it promises at its end.
   */
  dropBarriers?: boolean;
}

/** Passes everything on to `inner`, and records it. */
export class RecordingStorage implements Storage {
  readonly readOnly = false;
  readonly inner: ByteStorage;
  readonly recorder: Recorder;
  readonly #file: number;
  readonly #options: RecordingOptions;

  constructor(inner: ByteStorage, recorder: Recorder, file = 0, options: RecordingOptions = {}) {
    this.inner = inner;
    this.recorder = recorder;
    this.#file = file;
    this.#options = options;
  }

  get name(): string {
    return this.inner.name;
  }

  get canUnmap(): boolean {
    return this.inner.canUnmap;
  }

  get sizeBytes(): number {
    return this.inner.sizeBytes;
  }

  read(offset: number, into: SegmentList): Completion {
    return after(this.#options.wait?.(), () => this.inner.read(offset, into));
  }

  write(offset: number, from: SegmentList): Completion {
    const data = new Uint8Array(from.byteLength);
    from.copyTo(data);
    return this.#record("write", offset, data.byteLength, () => this.inner.write(offset, from), data);
  }

  zero(offset: number, lengthBytes: number): Completion {
    return this.#record("zero", offset, lengthBytes, () => this.inner.zero(offset, lengthBytes));
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.#record("discard", offset, lengthBytes, () => this.inner.discard(offset, lengthBytes));
  }

  truncate(sizeBytes: number): Completion {
    return this.#record("truncate", 0, sizeBytes, () => this.inner.truncate(sizeBytes));
  }

  flush(): Completion {
    if (!this.#options.dropBarriers) return this.#record("flush", 0, 0, () => {});
  }

  /** Records a flush, whatever the options say. */
  recordFlush(): void {
    this.recorder.add({ file: this.#file, kind: "flush", offset: 0, lengthBytes: 0 }).ended = this.recorder.tick();
  }

  close(): void {
    this.inner.close();
  }

  #record(
    kind: Recorded["kind"],
    offset: number,
    lengthBytes: number,
    action: () => Completion,
    data?: Uint8Array,
  ): Completion {
    const recorded = this.recorder.add({ file: this.#file, kind, offset, lengthBytes, data });
    return after(this.#options.wait?.(), () => {
      action();
      recorded.ended = this.recorder.tick();
    });
  }
}
