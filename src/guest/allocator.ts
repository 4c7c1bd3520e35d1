/**
 * The guest's memory manager: pieces of its RAM for rings and buffers.
 *
 * First fit over a list of free ranges, merged when freed. A guest has few, long-lived pieces, so nothing better is
 * needed.
 *
 * @module
 */

import type { MemoryRegion } from "../memory/region.ts";

/** Smallest unit, so that every piece is aligned for any ring part and pieces merge again. */
const GRAIN_BYTES = 64;

/** The guest has no memory left for a request. */
export class GuestMemoryError extends Error {
  /** Always `"GuestMemoryError"`: what a stack trace begins with. */
  override readonly name = "GuestMemoryError";
}

/** Hands out guest-physical addresses of one region. */
export class GuestAllocator {
  /** The memory that is handed out. */
  readonly ram: MemoryRegion;
  /** Free ranges by offset, neither touching nor overlapping. */
  readonly #free: { offset: number; sizeBytes: number }[];
  readonly #used = new Map<number, number>();

  /**
   * Hands out all of `ram` but its start.
   *
   * @param reservedBytes how much at the start is never handed out, so that address 0 is nobody's
   */
  constructor(ram: MemoryRegion, reservedBytes = 4096) {
    this.ram = ram;
    this.#free = [{ offset: reservedBytes, sizeBytes: ram.sizeBytes - reservedBytes }];
  }

  /** Bytes that are not in use. */
  get freeBytes(): number {
    return this.#free.reduce((sum, range) => sum + range.sizeBytes, 0);
  }

  /**
   * Takes a piece; its contents are whatever was there.
   *
   * @param alignment a power of two
   * @returns its guest-physical address, a multiple of `alignment`
   * @throws GuestMemoryError when there is none
   */
  allocate(sizeBytes: number, alignment: number = GRAIN_BYTES): number {
    const size = Math.max(GRAIN_BYTES, Math.ceil(sizeBytes / GRAIN_BYTES) * GRAIN_BYTES);
    const { guestAddress } = this.ram;
    for (const [i, range] of this.#free.entries()) {
      const start = Math.ceil((guestAddress + range.offset) / alignment) * alignment - guestAddress;
      const before = start - range.offset;
      const rest = range.sizeBytes - before - size;
      if (rest < 0) continue;
      const pieces = [{ offset: range.offset, sizeBytes: before }, { offset: start + size, sizeBytes: rest }];
      this.#free.splice(i, 1, ...pieces.filter((piece) => piece.sizeBytes > 0));
      this.#used.set(start, size);
      return guestAddress + start;
    }
    throw new GuestMemoryError(
      `the guest has no ${sizeBytes} bytes of memory left (${this.freeBytes} free); give it more RAM`,
    );
  }

  /** Takes a piece and fills it with zeros. */
  allocateZeroed(sizeBytes: number, alignment: number = GRAIN_BYTES): number {
    const address = this.allocate(sizeBytes, alignment);
    this.bytes(address, sizeBytes).fill(0);
    return address;
  }

  /** Gives a piece back. */
  free(address: number): void {
    const offset = address - this.ram.guestAddress;
    const sizeBytes = this.#used.get(offset);
    if (sizeBytes === undefined) throw new RangeError(`guest address 0x${address.toString(16)} was not allocated`);
    this.#used.delete(offset);
    let i = this.#free.findIndex((range) => range.offset > offset);
    if (i < 0) i = this.#free.length;
    this.#free.splice(i, 0, { offset, sizeBytes });
    this.#merge(i);
    this.#merge(i - 1);
  }

  /** The bytes at a guest-physical address, as a view. */
  bytes(address: number, sizeBytes: number): Uint8Array {
    return this.ram.slice(address - this.ram.guestAddress, sizeBytes);
  }

  #merge(i: number): void {
    const range = this.#free[i];
    const next = this.#free[i + 1];
    if (range === undefined || next === undefined || range.offset + range.sizeBytes !== next.offset) return;
    range.sizeBytes += next.sizeBytes;
    this.#free.splice(i + 1, 1);
  }
}
