/**
 * Guest-physical memory: a sorted set of regions, and the only place where a guest address becomes host bytes.
 *
 * Addresses arrive as 64-bit fields written by the guest and are hostile: they may point between regions, past
 * the last one, or so high that adding the length wraps 2^64. All arithmetic here is relative to a region that
 * was found first, so nothing can wrap; an address of 2^53 and more is simply not mapped.
 *
 * @module
 */

import { MemoryRegion } from "./region.ts";
import type { SegmentList } from "./segment_list.ts";

/** A region that holds no address, for memory without regions. */
const NOWHERE = new MemoryRegion(0, new Uint8Array(0));

/** The memory that a driver and a device share. */
export class GuestMemory {
  #regions: MemoryRegion[] = [];
  /** The region that satisfied the last lookup: guests have one to three, and neighbours in time are neighbours in space. */
  #last: MemoryRegion = NOWHERE;

  /**
   * Puts regions together.
   *
   * @param regions the regions, in any order; at least one
   * @throws RangeError when two of them overlap
   */
  constructor(regions: MemoryRegion[]) {
    if (regions.length === 0) throw new RangeError("guest memory needs at least one region");
    this.setRegions(regions);
  }

  /** Memory without any region, for a transport that learns of them one by one. */
  static empty(): GuestMemory {
    const memory = new GuestMemory([NOWHERE]);
    memory.setRegions([]);
    return memory;
  }

  /** One zeroed region of `sizeBytes` that starts at `guestAddress`. */
  static allocate(sizeBytes: number, guestAddress = 0): GuestMemory {
    return new GuestMemory([new MemoryRegion(guestAddress, new Uint8Array(sizeBytes))]);
  }

  /**
   * Replaces the regions, in any order. Whoever takes one away has made sure that no queue lies in it and that no
   * request that refers to it is in flight.
   *
   * @throws RangeError when two of them overlap
   */
  setRegions(regions: readonly MemoryRegion[]): void {
    const sorted = [...regions].sort((a, b) => a.guestAddress - b.guestAddress);
    for (let i = 1; i < sorted.length; i++) {
      const before = sorted[i - 1];
      if (before.guestAddress + before.sizeBytes > sorted[i].guestAddress) {
        throw new RangeError(`guest memory regions overlap at address 0x${sorted[i].guestAddress.toString(16)}`);
      }
    }
    this.#regions = sorted;
    this.#last = sorted[0] ?? NOWHERE;
  }

  /** The regions, by address. */
  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** The region that holds `address`, or `null`. */
  regionAt(address: number): MemoryRegion | null {
    const last = this.#last;
    const offset = address - last.guestAddress;
    if (offset >= 0 && offset < last.sizeBytes) return last;
    for (const region of this.#regions) {
      const from = address - region.guestAddress;
      if (from >= 0 && from < region.sizeBytes) {
        this.#last = region;
        return region;
      }
    }
    return null;
  }

  /**
   * The region that holds all of `[address, address + lengthBytes)`, or `null`. The parts of a virtqueue must be
   * physically contiguous (VIRTIO 1.4 §2.7), so they are looked up with this.
   */
  regionHolding(address: number, lengthBytes: number): MemoryRegion | null {
    const region = this.regionAt(address);
    if (region === null) return null;
    return lengthBytes <= region.sizeBytes - (address - region.guestAddress) ? region : null;
  }

  /**
   * Translates `[address, address + lengthBytes)` and appends it to `list`. A range that runs over the border of two
   * adjacent regions becomes two segments.
   *
   * @returns `false`, with the list as it was, when any byte of the range is not mapped
   */
  translate(list: SegmentList, address: number, lengthBytes: number): boolean {
    const first = this.regionAt(address);
    if (first === null) return lengthBytes === 0;
    const offset = address - first.guestAddress;
    if (lengthBytes <= first.sizeBytes - offset) {
      list.append(first, offset, lengthBytes);
      return true;
    }
    // Check the whole range before touching the list.
    for (let at = first.guestAddress + first.sizeBytes; at < address + lengthBytes;) {
      const region = this.regionAt(at);
      if (region === null) return false;
      at = region.guestAddress + region.sizeBytes;
    }
    for (let at = address, left = lengthBytes; left > 0;) {
      const region = this.regionAt(at)!;
      const from = at - region.guestAddress;
      const take = Math.min(left, region.sizeBytes - from);
      list.append(region, from, take);
      at += take;
      left -= take;
    }
    return true;
  }

  /**
   * Copies `target.byteLength` bytes at `address` into `target`.
   *
   * @returns `false` when any of them is not mapped
   */
  read(address: number, target: Uint8Array): boolean {
    return this.#walk(address, target.byteLength, (region, from, take, done) => {
      target.set(region.bytes.subarray(from, from + take), done);
    });
  }

  /**
   * Copies `source` to `address`.
   *
   * @returns `false`, with nothing written, when any byte of the range is not mapped
   */
  write(address: number, source: Uint8Array): boolean {
    if (!this.#walk(address, source.byteLength, () => {})) return false;
    return this.#walk(address, source.byteLength, (region, from, take, done) => {
      region.bytes.set(source.subarray(done, done + take), from);
    });
  }

  #walk(
    address: number,
    lengthBytes: number,
    visit: (region: MemoryRegion, from: number, take: number, done: number) => void,
  ): boolean {
    for (let done = 0; done < lengthBytes;) {
      const region = this.regionAt(address + done);
      if (region === null) return false;
      const from = address + done - region.guestAddress;
      const take = Math.min(lengthBytes - done, region.sizeBytes - from);
      visit(region, from, take, done);
      done += take;
    }
    return true;
  }
}

/** High words above this make an address or a sector number that a JavaScript number cannot hold. */
const MAX_HIGH_WORD = 0x1fffff;

/**
 * Joins the two halves of a little-endian 64-bit field into a number.
 *
 * @returns the value, or `Infinity` for 2^53 and more: larger than any region or disk, so every bounds check refuses it
 */
export function checkedU64(low: number, high: number): number {
  return high > MAX_HIGH_WORD ? Infinity : high * 0x1_0000_0000 + low;
}
