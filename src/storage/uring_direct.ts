/**
 * O_DIRECT: past the page cache, which only whole blocks at round addresses can go. What is not like that goes through
 * buffers that are, and a block of which only a part is written is read first.
 *
 * @module
 */

import { OP } from "../host/io_uring_layout.ts";
import { EINTR } from "../host/errno.ts";
import { lastErrno, libc, pageSizeBytes } from "../host/libc.ts";
import { addressOf, Mapping } from "../host/mapping.ts";
import type { SegmentList } from "../memory/segment_list.ts";
import type { UringEngine } from "./uring_engine.ts";
import { failure } from "./uring_transfer.ts";

/** What a file wants of direct operations, in bytes. */
export interface Alignment {
  /** Of offsets and lengths. */
  readonly blockBytes: number;
  /** Of addresses. */
  readonly memoryBytes: number;
}

const BUFFER_BYTES = 256 << 10;
const MOST_BUFFERS = 16;
/** What is right everywhere, for a file that does not say: it may be empty, or a hole. */
const SAFE_BYTES = 4096;

/**
 * Finds out by trying, as QEMU does. A file system that takes a length of 1 has looked at no block, so it has said
 * nothing.
 */
export function probeAlignment(descriptor: number): Alignment {
  const most = Math.max(SAFE_BYTES, pageSizeBytes());
  using memory = Mapping.anonymous(2 * most);
  const reads = (from: number, lengthBytes: number): boolean => {
    for (;;) {
      const into = memory.bytes.subarray(from, from + lengthBytes);
      if (libc().pread(descriptor, into, BigInt(lengthBytes), 0n) >= 0) return true;
      if (lastErrno() !== EINTR) return false;
    }
  };
  const smallest = (fits: (bytes: number) => boolean): number => {
    if (fits(1)) return most;
    return [512, 1024, 2048, 4096].find(fits) ?? most;
  };
  const blockBytes = smallest((bytes) => reads(0, bytes));
  // A page is right for any device; less saves copies. One that looks at no address takes any that a driver gives.
  const memoryBytes = [512, 1024, 2048, 4096].find((bytes) => reads(bytes, most)) ?? most;
  return { blockBytes, memoryBytes };
}

/** Buffers for what is not aligned, and the operations that need them. */
export class DirectAccess {
  /** What the file wants. */
  readonly alignment: Alignment;
  readonly #name: string;
  readonly #descriptor: number;
  readonly #engine: UringEngine;
  readonly #free: Mapping[] = [];
  #made = 0;
  #waiting: (() => void)[] = [];

  /** Finds out what an open file wants. */
  constructor(name: string, descriptor: number, engine: UringEngine) {
    this.#name = name;
    this.#descriptor = descriptor;
    this.#engine = engine;
    this.alignment = probeAlignment(descriptor);
  }

  /** Whether a range is made of whole blocks. */
  isWhole(offset: number, lengthBytes: number): boolean {
    const { blockBytes } = this.alignment;
    return offset % blockBytes === 0 && lengthBytes % blockBytes === 0;
  }

  /** Whether an operation can go as it is. */
  isAligned(offset: number, list: SegmentList): boolean {
    if (!this.isWhole(offset, list.byteLength)) return false;
    const { blockBytes, memoryBytes } = this.alignment;
    for (let i = 0; i < list.count; i++) {
      const { buffer, byteOffset } = list.regionOf(i).bytes;
      const address = addressOf(buffer) + byteOffset + list.offsetOf(i);
      if (address % memoryBytes !== 0 || list.lengthOf(i) % blockBytes !== 0) return false;
    }
    return true;
  }

  /** Reads through buffers. */
  async read(offset: number, into: SegmentList): Promise<void> {
    await this.#pieces(offset, into.byteLength, async (buffer, start, lengthBytes, from, take) => {
      const found = await this.#move(OP.READ, buffer, start, lengthBytes, offset);
      const skip = offset + from - start;
      if (found < skip + take) throw failure(this.#name, "read", offset, "read", 0);
      into.copyFrom(buffer.bytes.subarray(skip, skip + take), from);
    });
  }

  /**
   * Writes through buffers. Nobody else may write meanwhile unless the range is made of whole blocks. The file may get
   * longer than it should by less than a block.
   */
  async write(offset: number, data: SegmentList): Promise<void> {
    await this.#pieces(offset, data.byteLength, async (buffer, start, lengthBytes, from, take) => {
      const skip = offset + from - start;
      if (skip > 0 || take < lengthBytes) {
        const found = await this.#move(OP.READ, buffer, start, lengthBytes, offset);
        buffer.bytes.fill(0, found, lengthBytes);
      }
      data.copyTo(buffer.bytes.subarray(skip, skip + take), from);
      const done = await this.#move(OP.WRITE, buffer, start, lengthBytes, offset);
      if (done < lengthBytes) throw failure(this.#name, "write", offset, "write", 0);
    });
  }

  /** Gives the buffers back. Nothing may be under way. */
  close(): void {
    for (const buffer of this.#free.splice(0)) buffer.unmap();
  }

  /**
   * Walks over the whole blocks around a range, a buffer at a time.
   *
   * @param visit is given a buffer, the blocks that it stands for, and what part of the range is in them
   */
  async #pieces(
    offset: number,
    totalBytes: number,
    visit: (buffer: Mapping, start: number, lengthBytes: number, from: number, take: number) => Promise<void>,
  ): Promise<void> {
    const { blockBytes } = this.alignment;
    const end = offset + totalBytes;
    const buffer = await this.#takeBuffer();
    try {
      for (let from = 0; from < totalBytes;) {
        const start = Math.floor((offset + from) / blockBytes) * blockBytes;
        const stop = Math.min(start + BUFFER_BYTES, Math.ceil(end / blockBytes) * blockBytes);
        const take = Math.min(stop, end) - (offset + from);
        await visit(buffer, start, stop - start, from, take);
        from += take;
      }
    } finally {
      this.#giveBuffer(buffer);
    }
  }

  /** Moves blocks until it is done or the file ends; returns how many bytes. */
  async #move(op: number, buffer: Mapping, start: number, lengthBytes: number, offset: number): Promise<number> {
    const operation = op === OP.READ ? "read" : "write";
    for (let done = 0;;) {
      const address = buffer.address + done;
      const result = await this.#engine.call(op, this.#descriptor, address, lengthBytes - done, start + done);
      if (result < 0) throw failure(this.#name, operation, offset, operation, result);
      done += result;
      // The end of a file need not be that of a block, and there is nothing behind it.
      if (done === lengthBytes || result === 0 || done % this.alignment.blockBytes !== 0) return done;
    }
  }

  async #takeBuffer(): Promise<Mapping> {
    for (;;) {
      const free = this.#free.pop();
      if (free !== undefined) return free;
      if (this.#made < MOST_BUFFERS) {
        this.#made++;
        return Mapping.anonymous(BUFFER_BYTES);
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  #giveBuffer(buffer: Mapping): void {
    this.#free.push(buffer);
    this.#waiting.shift()?.();
  }
}
