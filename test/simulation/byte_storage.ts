/**
 * A storage that is one byte array: quick to copy, to compare and to hand to a program. What is discarded is filled with
 * junk, since a storage promises nothing about it.
 */

import type { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import type { Completion, Storage } from "../../src/storage/storage.ts";

const JUNK = 0xd5;
/** Nothing that is tested here makes a file larger; what does is out of its mind. */
const MOST_BYTES = 64 << 20;

/** Bytes in memory. */
export class ByteStorage implements Storage {
  readonly name: string;
  readonly readOnly = false;
  readonly canUnmap = true;
  #room: Uint8Array<ArrayBuffer>;
  #sizeBytes: number;

  /** Starts with a copy of `bytes`. */
  constructor(bytes: Uint8Array, name = "disk.qcow2") {
    this.name = name;
    this.#room = bytes.slice();
    this.#sizeBytes = bytes.byteLength;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** What the file holds now, as a view. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#room.subarray(0, this.#sizeBytes);
  }

  read(offset: number, into: SegmentList): Completion {
    if (!(offset >= 0 && offset + into.byteLength <= this.#sizeBytes)) {
      throw new BlockError({ kind: "truncated", path: this.name, operation: "read", offset });
    }
    into.copyFrom(this.#room.subarray(offset, offset + into.byteLength));
  }

  write(offset: number, from: SegmentList): Completion {
    this.#grow(offset + from.byteLength);
    from.copyTo(this.#room.subarray(offset, offset + from.byteLength));
  }

  flush(): Completion {}

  zero(offset: number, lengthBytes: number): Completion {
    this.#grow(offset + lengthBytes);
    this.#room.fill(0, offset, offset + lengthBytes);
  }

  discard(offset: number, lengthBytes: number): Completion {
    this.#room.fill(JUNK, Math.min(offset, this.#sizeBytes), Math.min(offset + lengthBytes, this.#sizeBytes));
  }

  truncate(sizeBytes: number): Completion {
    this.#grow(sizeBytes);
    this.#room.fill(0, sizeBytes, this.#sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  close(): void {}

  #grow(end: number): void {
    if (!(end >= 0 && end <= MOST_BYTES)) {
      throw new BlockError({ kind: "no-space", path: this.name, operation: "write", offset: end });
    }
    if (end > this.#room.byteLength) {
      const room = new Uint8Array(Math.max(end, Math.min(2 * this.#room.byteLength, MOST_BYTES)));
      room.set(this.#room);
      this.#room = room;
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, end);
  }
}
