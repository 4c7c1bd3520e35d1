/**
 * A driver's queue in a memory of its own, and the device's side of it by hand: bytes, through the layout files. So
 * the driver's half is held against the specification, and not against the device in src/virtio.
 *
 * @module
 */

import { GuestAllocator } from "../../src/guest/allocator.ts";
import type { BufferElement, DriverQueue } from "../../src/guest/driver_queue.ts";
import { PackedDriverQueue } from "../../src/guest/packed_driver_queue.ts";
import { SplitDriverQueue } from "../../src/guest/split_driver_queue.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import * as P from "../../src/virtio/virtqueue/packed_layout.ts";
import * as S from "../../src/virtio/virtqueue/split_layout.ts";

export type Layout = "split" | "packed";
export const LAYOUTS: readonly Layout[] = ["split", "packed"];

export interface QueueRigOptions {
  size?: number;
  eventIdx?: boolean;
  inOrder?: boolean;
  indirect?: boolean;
  ramBytes?: number;
}

/** A descriptor as it stands in memory. */
export interface Found {
  address: number;
  length: number;
  flags: number;
  /** Split: the next field; packed: the buffer ID. */
  link: number;
  /** Where it is: index in the table or ring. */
  index: number;
}

const RAM_AT = 0x10_0000;

/** A driver's queue under test. */
export class QueueRig {
  readonly layout: Layout;
  readonly ram: MemoryRegion;
  readonly allocator: GuestAllocator;
  readonly driver: DriverQueue;
  readonly size: number;
  /** Somewhere to point at. */
  readonly buffer: number;
  /** Split: position in the available and used ring; packed: slot of the next available and used descriptor. */
  #avail = 0;
  #used = 0;
  #availWrap = true;
  #usedWrap = true;

  constructor(layout: Layout, options: QueueRigOptions = {}) {
    const { size = 8, eventIdx = false, inOrder = false, indirect = false, ramBytes = 0x8000 + size * 64 } = options;
    this.layout = layout;
    this.size = size;
    // Memory that was in use before: a driver that relies on zeros finds none.
    this.ram = new MemoryRegion(RAM_AT, new Uint8Array(ramBytes).fill(0xa5));
    this.allocator = new GuestAllocator(this.ram);
    this.buffer = this.allocator.allocate(4096);
    const Queue = layout === "split" ? SplitDriverQueue : PackedDriverQueue;
    this.driver = new Queue(this.allocator, { size, eventIdx, inOrder, indirect });
  }

  /** A list of elements: so many readable ones, then so many writable ones. */
  elements(readable: number, writable: number): BufferElement[] {
    return Array.from({ length: readable + writable }, (_, i) => ({
      address: this.buffer + 16 * i,
      length: 8 + i,
      writable: i >= readable,
    }));
  }

  /** Adds one buffer of `count` readable elements; says whether it fitted. */
  add(count: number, token: number): boolean {
    return this.driver.add(this.elements(count, 0), count, token);
  }

  u16(address: number): number {
    return this.ram.view.getUint16(address - RAM_AT, true);
  }

  setU16(address: number, value: number): void {
    this.ram.view.setUint16(address - RAM_AT, value, true);
  }

  u32(address: number): number {
    return this.ram.view.getUint32(address - RAM_AT, true);
  }

  setU32(address: number, value: number): void {
    this.ram.view.setUint32(address - RAM_AT, value, true);
  }

  /** The descriptor at an address. */
  descriptor(address: number, index: number): Found {
    const at = address + 16 * index - RAM_AT;
    const { view } = this.ram;
    const [first, second] = [view.getUint16(at + 12, true), view.getUint16(at + 14, true)];
    const [flags, link] = this.layout === "split" ? [first, second] : [second, first];
    return { address: Number(view.getBigUint64(at, true)), length: view.getUint32(at + 8, true), flags, link, index };
  }

  /** The descriptors of the next available buffer, or `null`. */
  takeAvailable(): Found[] | null {
    return this.layout === "split" ? this.#takeSplit() : this.#takePacked();
  }

  #takeSplit(): Found[] | null {
    const { desc, driver } = this.driver.addresses;
    if (this.u16(driver + S.AVAIL_IDX) === this.#avail) return null;
    const list = [this.descriptor(desc, this.u16(driver + S.AVAIL_RING + (this.#avail % this.size) * 2))];
    this.#avail = (this.#avail + 1) & 0xffff;
    while (list[list.length - 1].flags & S.VIRTQ_DESC_F_NEXT) {
      list.push(this.descriptor(desc, list[list.length - 1].link));
    }
    return list;
  }

  #takePacked(): Found[] | null {
    const list: Found[] = [];
    for (let slot = this.#avail, wrap = this.#availWrap;;) {
      const found = this.descriptor(this.driver.addresses.desc, slot);
      const [avail, used] = [found.flags & P.PVIRTQ_DESC_F_AVAIL, found.flags & P.PVIRTQ_DESC_F_USED];
      if (!(wrap ? avail && !used : !avail && used)) {
        if (list.length === 0) return null;
        throw new Error(`slot ${slot} of a list is not available`);
      }
      list.push(found);
      if (++slot === this.size) [slot, wrap] = [0, !wrap];
      if (found.flags & P.PVIRTQ_DESC_F_NEXT) continue;
      [this.#avail, this.#availWrap] = [slot, wrap];
      return list;
    }
  }

  /** What names a buffer that `takeAvailable` returned: its head, or the ID in its last descriptor. */
  idOf(list: readonly Found[]): number {
    return this.layout === "split" ? list[0].index : list[list.length - 1].link;
  }

  /** Writes one used entry, for a batch of `lists` of which `last` is named; alone, that is one buffer. */
  use(lists: readonly (readonly Found[])[], length: number, flags = P.PVIRTQ_DESC_F_WRITE): void {
    const id = this.idOf(lists[lists.length - 1]);
    if (this.layout === "split") this.useSplit(id, length, lists.length);
    else this.usePacked(id, length, flags, lists.reduce((sum, list) => sum + list.length, 0));
  }

  /** Writes a used entry with any ID, and moves the index by `count`. */
  useSplit(id: number, length: number, count = 1): void {
    const { device } = this.driver.addresses;
    const at = device + S.USED_RING + (this.#used % this.size) * 8;
    this.setU32(at, id);
    this.setU32(at + 4, length);
    this.#used = (this.#used + count) & 0xffff;
    this.setU16(device + S.USED_IDX, this.#used);
  }

  /** Writes a used descriptor with any ID, and skips `slots`. */
  usePacked(id: number, length: number, flags: number, slots: number): void {
    const at = this.driver.addresses.desc + this.#used * 16;
    this.setU32(at + P.PVIRTQ_DESC_LEN, length);
    this.setU16(at + P.PVIRTQ_DESC_ID, id);
    const mark = this.#usedWrap ? P.PVIRTQ_DESC_F_AVAIL | P.PVIRTQ_DESC_F_USED : 0;
    this.setU16(at + P.PVIRTQ_DESC_FLAGS, mark | flags);
    this.#used += slots;
    if (this.#used >= this.size) [this.#used, this.#usedWrap] = [this.#used - this.size, !this.#usedWrap];
  }

  /** Takes and uses everything that is available, a used entry each; returns how many. */
  useAll(length = 0): number {
    let count = 0;
    for (let list; (list = this.takeAvailable()) !== null; count++) this.use([list], length);
    return count;
  }

  /** The tokens of all buffers that the driver takes back. */
  takeAll(): number[] {
    const tokens: number[] = [];
    for (let token; (token = this.driver.take()) >= 0;) tokens.push(token);
    return tokens;
  }
}
