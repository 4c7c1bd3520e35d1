/**
 * The driver's half of the split virtqueue (VIRTIO 1.4 §2.7).
 *
 * @module
 */

import { flagNames } from "../trace/descriptors.ts";
import { passesEvent } from "../virtio/virtqueue/notification_layout.ts";
import {
  AVAIL_FLAGS,
  AVAIL_IDX,
  AVAIL_RING,
  availEventOffset,
  SPLIT_ALIGNMENT,
  splitSizes,
  USED_FLAGS,
  USED_IDX,
  USED_RING,
  usedEventOffset,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_DESC_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "../virtio/virtqueue/split_layout.ts";
import type { GuestAllocator } from "./allocator.ts";
import {
  type BufferElement,
  DeviceMisbehaved,
  DriverQueue,
  type DriverQueueOptions,
  type QueueAddresses,
  type RawDescriptor,
} from "./driver_queue.ts";

/** A split virtqueue, as the driver sees it. */
export class SplitDriverQueue extends DriverQueue {
  /** Where the three areas are. */
  readonly addresses: QueueAddresses;

  readonly #mask: number;
  readonly #ram: DataView;
  readonly #words: Uint16Array;
  /** Offsets of the three parts in RAM, in bytes. */
  readonly #desc: number;
  readonly #avail: number;
  readonly #used: number;
  /** By descriptor: the one that is free after it. With IN_ORDER that is always the next of the table. */
  readonly #nextFree: Uint16Array;
  #firstFree = 0;
  /** Free-running: the available index as published plus what was added since. */
  #availIdx = 0;
  /** Free-running: the next used entry to look at. */
  #usedIdx = 0;
  /** With IN_ORDER: heads by available position, to find what a batch of used buffers covers (§2.7.9). */
  readonly #heads: Uint16Array;
  /** With IN_ORDER: the used index behind the batch that the last used entry stands for, and that entry. */
  #batchEnd = 0;
  #batchId = 0;
  #batchLength = 0;

  /** Allocates the ring, empty. */
  constructor(allocator: GuestAllocator, options: DriverQueueOptions) {
    super(allocator, options);
    this.addresses = this.allocateAreas(splitSizes(options.size), SPLIT_ALIGNMENT);
    const { guestAddress, view, words } = allocator.ram;
    this.#ram = view;
    this.#words = words;
    this.#desc = this.addresses.desc - guestAddress;
    this.#avail = this.addresses.driver - guestAddress;
    this.#used = this.addresses.device - guestAddress;
    this.#mask = options.size - 1;
    this.#nextFree = Uint16Array.from({ length: options.size }, (_, i) => (i + 1) & this.#mask);
    this.#heads = new Uint16Array(options.size);
  }

  /** Adds a buffer, not yet visible to the device; returns whether there was room. */
  override add(elements: readonly BufferElement[], count: number, token: number): boolean {
    this.checkBuffer(elements, count);
    const slots = this.slotsFor(count);
    if (slots > this.free) return false;
    const head = this.#firstFree;
    if (slots === 1 && count > 1) {
      const table = this.indirectTable(head, count);
      const base = table - this.allocator.ram.guestAddress;
      for (let i = 0; i < count; i++) {
        const more = i + 1 < count ? VIRTQ_DESC_F_NEXT : 0;
        const { address, length, writable } = elements[i];
        this.#put(
          base + i * VIRTQ_DESC_SIZE,
          address,
          length,
          more | (writable ? VIRTQ_DESC_F_WRITE : 0),
          more ? i + 1 : 0,
        );
      }
      this.#put(this.#desc + head * VIRTQ_DESC_SIZE, table, count * VIRTQ_DESC_SIZE, VIRTQ_DESC_F_INDIRECT, 0);
    } else {
      let index = head;
      for (let i = 0; i < count; i++) {
        const more = i + 1 < count ? VIRTQ_DESC_F_NEXT : 0;
        const { address, length, writable } = elements[i];
        // §2.7.5.2: the links of free descriptors are the order in which they are used, so with IN_ORDER, where
        // they are never reordered, next is always x + 1, or 0 at the end.
        const next = this.#nextFree[index];
        this.#put(
          this.#desc + index * VIRTQ_DESC_SIZE,
          address,
          length,
          more | (writable ? VIRTQ_DESC_F_WRITE : 0),
          next,
        );
        index = next;
      }
    }
    this.#expose(head, slots, token);
    return true;
  }

  /** Adds descriptors exactly as given; returns whether there was room. */
  override addRaw(descriptors: readonly RawDescriptor[], indirect: boolean, token: number): boolean {
    const slots = indirect ? 1 : descriptors.length;
    if (slots > this.free || slots === 0) return false;
    const head = this.#firstFree;
    if (indirect) {
      const table = this.indirectTable(head, descriptors.length);
      const base = table - this.allocator.ram.guestAddress;
      descriptors.forEach((descriptor, i) => this.#putRaw(base + i * VIRTQ_DESC_SIZE, descriptor, i + 1));
      const bytes = descriptors.length * VIRTQ_DESC_SIZE;
      this.#put(this.#desc + head * VIRTQ_DESC_SIZE, table, bytes, VIRTQ_DESC_F_INDIRECT, 0);
    } else {
      let index = head;
      for (const descriptor of descriptors) {
        const next = this.#nextFree[index];
        this.#putRaw(this.#desc + index * VIRTQ_DESC_SIZE, descriptor, next);
        index = next;
      }
    }
    this.#expose(head, slots, token);
    return true;
  }

  /** Makes what was added available; returns whether the device wants a notification. */
  override publish(): boolean {
    const { added } = this;
    if (added === 0) return false;
    this.added = 0;
    // §2.7.13.3.1: descriptors and ring entries are written before the index that exposes them; §2.7.13.4.1: the
    // index before the device's wish is read. A sequentially consistent store is both barriers.
    Atomics.store(this.#words, (this.#avail + AVAIL_IDX) / 2, this.#availIdx);
    if (this.eventIdx) {
      const event = Atomics.load(this.#words, (this.#used + availEventOffset(this.size)) / 2);
      return passesEvent(event, this.#availIdx, (this.#availIdx - added) & 0xffff);
    }
    return (Atomics.load(this.#words, (this.#used + USED_FLAGS) / 2) & VIRTQ_USED_F_NO_NOTIFY) === 0;
  }

  /** Takes a used buffer and returns its token; -1 when there is none. */
  override take(): number {
    if (this.inOrder) return this.#takeInOrder();
    if (Atomics.load(this.#words, (this.#used + USED_IDX) / 2) === this.#usedIdx) return -1;
    const at = this.#used + USED_RING + (this.#usedIdx & this.#mask) * 8;
    const head = this.#ram.getUint32(at, true);
    this.usedLength = this.#ram.getUint32(at + 4, true);
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    return this.#reclaim(head);
  }

  /** §2.7.9: one used entry may stand for a batch that ends with the buffer that it names. */
  #takeInOrder(): number {
    if (this.#batchEnd === this.#usedIdx) {
      const idx = Atomics.load(this.#words, (this.#used + USED_IDX) / 2);
      if (idx === this.#usedIdx) return -1;
      const at = this.#used + USED_RING + (this.#usedIdx & this.#mask) * 8;
      this.#batchId = this.#ram.getUint32(at, true);
      this.#batchLength = this.#ram.getUint32(at + 4, true);
      let end = this.#usedIdx;
      while (this.#heads[end & this.#mask] !== this.#batchId) {
        end = (end + 1) & 0xffff;
        if (end === idx) throw new DeviceMisbehaved(`the device used buffer ${this.#batchId} out of order`);
      }
      this.#batchEnd = (end + 1) & 0xffff;
    }
    const head = this.#heads[this.#usedIdx & this.#mask];
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    // Of the buffers before the last one it is known only that they were used completely.
    this.usedLength = head === this.#batchId ? this.#batchLength : 0xffffffff;
    return this.#reclaim(head);
  }

  /** Asks the device for no notifications. */
  override disableInterrupts(): void {
    // With EVENT_IDX the flags stay 0 (§2.7.7.1), and a used_event that is behind asks for nothing.
    if (!this.eventIdx) this.#storeWord(this.#avail + AVAIL_FLAGS, VIRTQ_AVAIL_F_NO_INTERRUPT);
  }

  /** Asks the device for notifications; returns whether a buffer was used meanwhile. */
  override enableInterrupts(): boolean {
    if (this.eventIdx) this.#storeWord(this.#avail + usedEventOffset(this.size), this.#usedIdx);
    else this.#storeWord(this.#avail + AVAIL_FLAGS, 0);
    return Atomics.load(this.#words, (this.#used + USED_IDX) / 2) !== this.#usedIdx;
  }

  /** Where the next buffer goes, as NOTIFICATION_DATA wants it. */
  override get position(): number {
    return this.#availIdx;
  }

  /** The ring, in lines to print. */
  override describe(): string[] {
    const word = (offset: number) => Atomics.load(this.#words, offset / 2);
    const usedIdx = word(this.#used + USED_IDX);
    const lines = [
      `split ring, ${this.size} descriptors, ${this.free} free`,
      `  avail  flags ${word(this.#avail + AVAIL_FLAGS)}  idx ${word(this.#avail + AVAIL_IDX)}` +
      `  used_event ${word(this.#avail + usedEventOffset(this.size))}`,
      `  used   flags ${word(this.#used + USED_FLAGS)}  idx ${usedIdx}` +
      `  avail_event ${word(this.#used + availEventOffset(this.size))}`,
    ];
    const recent = Math.min(8, this.size, usedIdx);
    for (let i = usedIdx - recent; i < usedIdx; i++) {
      const at = this.#used + USED_RING + (i & this.#mask) * 8;
      const [id, length] = [this.#ram.getUint32(at, true), this.#ram.getUint32(at + 4, true)];
      lines.push(`  used[${i & this.#mask}]  id ${id}  len ${length}`);
    }
    for (let i = 0; i < this.size; i++) {
      const at = this.#desc + i * VIRTQ_DESC_SIZE;
      const address = this.#ram.getBigUint64(at, true);
      if (address === 0n) continue;
      const flags = this.#ram.getUint16(at + 12, true);
      lines.push(
        `  desc[${i}]  addr 0x${address.toString(16)}  len ${this.#ram.getUint32(at + 8, true)}` +
          `  flags ${flagNames(flags)}  next ${this.#ram.getUint16(at + 14, true)}`,
      );
    }
    return lines;
  }

  #expose(head: number, slots: number, token: number): void {
    let last = head;
    for (let i = 1; i < slots; i++) last = this.#nextFree[last];
    this.#firstFree = this.#nextFree[last];
    this.free -= slots;
    this.lengths[head] = slots;
    this.tokens[head] = token;
    this.#heads[this.#availIdx & this.#mask] = head;
    this.#storeWord(this.#avail + AVAIL_RING + (this.#availIdx & this.#mask) * 2, head);
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
    this.added++;
  }

  #reclaim(head: number): number {
    const token = this.claim(head);
    const slots = this.lengths[head];
    this.free += slots;
    if (!this.inOrder) {
      let last = head;
      for (let i = 1; i < slots; i++) last = this.#nextFree[last];
      this.#nextFree[last] = this.#firstFree;
      this.#firstFree = head;
    }
    return token;
  }

  #put(at: number, address: number, length: number, flags: number, next: number): void {
    this.#ram.setUint32(at, address >>> 0, true);
    this.#ram.setUint32(at + 4, Math.floor(address / 0x1_0000_0000), true);
    this.#ram.setUint32(at + 8, length, true);
    this.#ram.setUint16(at + 12, flags, true);
    this.#ram.setUint16(at + 14, next, true);
  }

  #putRaw(at: number, descriptor: RawDescriptor, next: number): void {
    this.#ram.setBigUint64(at, BigInt.asUintN(64, descriptor.address), true);
    this.#ram.setUint32(at + 8, descriptor.length, true);
    this.#ram.setUint16(at + 12, descriptor.flags, true);
    this.#ram.setUint16(at + 14, descriptor.next ?? next, true);
  }

  #storeWord(offset: number, value: number): void {
    Atomics.store(this.#words, offset / 2, value);
  }
}
