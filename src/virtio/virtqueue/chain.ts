/**
 * A buffer that the driver made available, after its descriptors were copied out of guest memory.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Violation } from "../violation.ts";

/** One descriptor as it was read: a plain value, for printing. */
export interface DescriptorRecord {
  /** Index in the descriptor table or ring, or in the indirect table. */
  readonly index: number;
  /** Whether it was read from an indirect table. */
  readonly indirect: boolean;
  /** Guest-physical address; `Infinity` for 2^53 and more. */
  readonly address: number;
  /** Length in bytes. */
  readonly length: number;
  /** The flags as read. */
  readonly flags: number;
}

/**
 * A descriptor chain. The object is reused for many requests; everything in it is the device's own copy, so a
 * driver that changes a descriptor after making it available changes nothing.
 */
export class DescriptorChain {
  /** What the driver knows the buffer by: index of the first descriptor (split) or buffer ID (packed). */
  head = 0;
  /** How many ring descriptors the buffer occupies. */
  descriptorCount = 0;
  /** Position in the order in which buffers were made available; modulo 2^32. */
  sequence = 0;
  /** The device-readable bytes. */
  readonly readable: SegmentList = new SegmentList();
  /** The device-writable bytes. */
  readonly writable: SegmentList = new SegmentList();
  /**
   * A rule that this buffer breaks although its descriptors could be walked. The request must fail, but its
   * status byte, the last device-writable byte, can be written when `writable` is not empty.
   */
  violation: Violation | null = null;
  /** Device-writable bytes came before those in `writable`, which a used length would have to cover and cannot. */
  writablePrefixLost = false;

  #count = 0;
  readonly #indexes: number[] = [];
  readonly #indirect: boolean[] = [];
  readonly #addresses: number[] = [];
  readonly #lengths: number[] = [];
  readonly #flags: number[] = [];

  /** Empties the chain for the next buffer. */
  clear(): void {
    this.descriptorCount = 0;
    this.readable.clear();
    this.writable.clear();
    this.violation = null;
    this.writablePrefixLost = false;
    this.#count = 0;
  }

  /** Notes a descriptor that was read. */
  record(index: number, indirect: boolean, address: number, length: number, flags: number): void {
    const i = this.#count++;
    this.#indexes[i] = index;
    this.#indirect[i] = indirect;
    this.#addresses[i] = address;
    this.#lengths[i] = length;
    this.#flags[i] = flags;
  }

  /** Copies descriptor `i`, as it was read, to `at` in the form that both layouts begin with: le64 addr, le32 len. */
  copyRecord(i: number, view: DataView, addressAt: number, lengthAt: number): void {
    const address = this.#addresses[i];
    // An address that no number holds is nowhere in memory, and so is the last one.
    view.setUint32(addressAt, address === Infinity ? 0xffffffff : address >>> 0, true);
    view.setUint32(addressAt + 4, address === Infinity ? 0xffffffff : Math.floor(address / 0x1_0000_0000), true);
    view.setUint32(lengthAt, this.#lengths[i], true);
  }

  /** The flags of descriptor `i`, as they were read. */
  recordFlags(i: number): number {
    return this.#flags[i];
  }

  /** The descriptors that were read, in order. Allocates: for printing only. */
  get descriptors(): DescriptorRecord[] {
    return Array.from({ length: this.#count }, (_, i) => ({
      index: this.#indexes[i],
      indirect: this.#indirect[i],
      address: this.#addresses[i],
      length: this.#lengths[i],
      flags: this.#flags[i],
    }));
  }
}
