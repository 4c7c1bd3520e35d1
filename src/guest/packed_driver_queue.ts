/**
 * The driver's half of the packed virtqueue (VIRTIO 1.4 §2.8).
 *
 * @module
 */

import { flagNames } from "../trace/descriptors.ts";
import { passesEvent } from "../virtio/virtqueue/notification_layout.ts";
import {
  EVENT_FLAGS,
  EVENT_OFF_WRAP,
  PACKED_ALIGNMENT,
  packedSizes,
  PVIRTQ_DESC_F_AVAIL,
  PVIRTQ_DESC_F_INDIRECT,
  PVIRTQ_DESC_F_NEXT,
  PVIRTQ_DESC_F_USED,
  PVIRTQ_DESC_F_WRITE,
  PVIRTQ_DESC_FLAGS,
  PVIRTQ_DESC_ID,
  PVIRTQ_DESC_LEN,
  PVIRTQ_DESC_SIZE,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
} from "../virtio/virtqueue/packed_layout.ts";
import type { GuestAllocator } from "./allocator.ts";
import {
  type BufferElement,
  DeviceMisbehaved,
  DriverQueue,
  type DriverQueueOptions,
  type QueueAddresses,
  type RawDescriptor,
} from "./driver_queue.ts";

/** A packed virtqueue, as the driver sees it. */
export class PackedDriverQueue extends DriverQueue {
  /** Where the three areas are. */
  readonly addresses: QueueAddresses;

  readonly #ram: DataView;
  readonly #words: Uint16Array;
  readonly #ring: number;
  readonly #driverEvent: number;
  readonly #deviceEvent: number;
  /** Free buffer IDs, as a stack: any ID that is not in flight will do. */
  readonly #ids: number[];
  /** The next descriptor to make available. */
  #availSlot = 0;
  #availWrap = true;
  /** The next descriptor that the device will use. */
  #usedSlot = 0;
  #usedWrap = true;
  /** Descriptors made available by the buffers added since the last `publish`. */
  #addedSlots = 0;
  /** The first descriptor of the list being added, whose flags are written when the list is complete (§2.8.17). */
  #listAt = -1;
  #listFlags = 0;
  /** The first descriptor of the batch, whose flags expose it all, written by `publish`. */
  #firstAt = -1;
  #firstFlags = 0;
  /** With IN_ORDER: IDs in the order in which they were made available, and the batch being taken (§2.8.8). */
  readonly #order: number[] = [];
  #batchId = -1;
  #batchLength = 0;

  /** Allocates the ring, empty. */
  constructor(allocator: GuestAllocator, options: DriverQueueOptions) {
    super(allocator, options);
    this.addresses = this.allocateAreas(packedSizes(options.size), PACKED_ALIGNMENT);
    const { guestAddress, view, words } = allocator.ram;
    this.#ram = view;
    this.#words = words;
    this.#ring = this.addresses.desc - guestAddress;
    this.#driverEvent = this.addresses.driver - guestAddress;
    this.#deviceEvent = this.addresses.device - guestAddress;
    this.#ids = Array.from({ length: options.size }, (_, i) => options.size - 1 - i);
  }

  /** Adds a buffer, not yet visible to the device; returns whether there was room. */
  override add(elements: readonly BufferElement[], count: number, token: number): boolean {
    this.checkBuffer(elements, count);
    const slots = this.slotsFor(count);
    if (slots > this.free || this.#ids.length === 0) return false;
    const id = this.#ids[this.#ids.length - 1];
    if (slots === 1 && count > 1) {
      const table = this.indirectTable(id, count);
      const base = table - this.allocator.ram.guestAddress;
      for (let i = 0; i < count; i++) {
        const { address, length, writable } = elements[i];
        // §2.8.7: in a table only WRITE has a meaning; the entries follow each other without NEXT.
        this.#put(base + i * PVIRTQ_DESC_SIZE, address, length, 0);
        this.#setFlags(base + i * PVIRTQ_DESC_SIZE, writable ? PVIRTQ_DESC_F_WRITE : 0);
      }
      this.#append(table, count * PVIRTQ_DESC_SIZE, id, PVIRTQ_DESC_F_INDIRECT);
    } else {
      for (let i = 0; i < count; i++) {
        const { address, length, writable } = elements[i];
        const more = i + 1 < count ? PVIRTQ_DESC_F_NEXT : 0;
        this.#append(address, length, id, more | (writable ? PVIRTQ_DESC_F_WRITE : 0));
      }
    }
    this.#finishAdd(id, slots, token);
    return true;
  }

  /** Adds descriptors exactly as given; returns whether there was room. */
  override addRaw(descriptors: readonly RawDescriptor[], indirect: boolean, token: number): boolean {
    const slots = indirect ? 1 : descriptors.length;
    if (slots > this.free || slots === 0 || this.#ids.length === 0) return false;
    const id = this.#ids[this.#ids.length - 1];
    if (indirect) {
      const table = this.indirectTable(id, descriptors.length);
      const base = table - this.allocator.ram.guestAddress;
      descriptors.forEach((descriptor, i) => {
        const at = base + i * PVIRTQ_DESC_SIZE;
        this.#putRaw(at, descriptor, 0);
        this.#setFlags(at, descriptor.flags);
      });
      this.#append(table, descriptors.length * PVIRTQ_DESC_SIZE, id, PVIRTQ_DESC_F_INDIRECT);
    } else {
      for (const descriptor of descriptors) {
        this.#putRaw(this.#ring + this.#availSlot * PVIRTQ_DESC_SIZE, descriptor, id);
        this.#advance(descriptor.flags);
      }
    }
    this.#finishAdd(id, slots, token);
    return true;
  }

  /** Makes what was added available; returns whether the device wants a notification. */
  override publish(): boolean {
    const slots = this.#addedSlots;
    if (this.added === 0) return false;
    this.added = 0;
    this.#addedSlots = 0;
    // §2.8.21.1.1, §2.8.17: everything else is written before the flags of the first descriptor; the device
    // looks at nothing behind it before that. The store is also the barrier of §2.8.21.3.1.
    Atomics.store(this.#words, (this.#firstAt + PVIRTQ_DESC_FLAGS) / 2, this.#firstFlags);
    this.#firstAt = -1;
    const wish = Atomics.load(this.#words, (this.#deviceEvent + EVENT_FLAGS) / 2) & 3;
    if (wish === RING_EVENT_FLAGS_DISABLE) return false;
    if (wish !== RING_EVENT_FLAGS_DESC || !this.eventIdx) return true;
    const offWrap = Atomics.load(this.#words, (this.#deviceEvent + EVENT_OFF_WRAP) / 2);
    let event = offWrap & 0x7fff;
    if ((offWrap >>> 15 === 1) !== this.#availWrap) event -= this.size;
    return passesEvent(event, this.#availSlot, this.#availSlot - slots);
  }

  /** Takes a used buffer and returns its token; -1 when there is none. */
  override take(): number {
    if (this.#batchId < 0) {
      const at = this.#ring + this.#usedSlot * PVIRTQ_DESC_SIZE;
      const flags = Atomics.load(this.#words, (at + PVIRTQ_DESC_FLAGS) / 2);
      if (!this.#isUsed(flags)) return -1;
      const id = this.#ram.getUint16(at + PVIRTQ_DESC_ID, true);
      // §2.8.4: without WRITE the length is reserved.
      const length = flags & PVIRTQ_DESC_F_WRITE ? this.#ram.getUint32(at + PVIRTQ_DESC_LEN, true) : 0;
      if (!this.inOrder) return this.#reclaim(id, length);
      if (!this.#order.includes(id)) throw new DeviceMisbehaved(`the device used buffer ${id} out of order`);
      this.#batchId = id;
      this.#batchLength = length;
    }
    const id = this.#order.shift()!;
    const last = id === this.#batchId;
    if (last) this.#batchId = -1;
    // Of the buffers before the last one it is known only that they were used completely.
    return this.#reclaim(id, last ? this.#batchLength : 0xffffffff);
  }

  /** Asks the device for no notifications. */
  override disableInterrupts(): void {
    this.#storeWord(this.#driverEvent + EVENT_FLAGS, RING_EVENT_FLAGS_DISABLE);
  }

  /** Asks the device for notifications; returns whether a buffer was used meanwhile. */
  override enableInterrupts(): boolean {
    if (this.eventIdx) {
      this.#storeWord(this.#driverEvent + EVENT_OFF_WRAP, this.#usedSlot | (this.#usedWrap ? 0x8000 : 0));
      this.#storeWord(this.#driverEvent + EVENT_FLAGS, RING_EVENT_FLAGS_DESC);
    } else {
      this.#storeWord(this.#driverEvent + EVENT_FLAGS, RING_EVENT_FLAGS_ENABLE);
    }
    const at = this.#ring + this.#usedSlot * PVIRTQ_DESC_SIZE + PVIRTQ_DESC_FLAGS;
    return this.#isUsed(Atomics.load(this.#words, at / 2));
  }

  /** Where the next buffer goes, as NOTIFICATION_DATA wants it. */
  override get position(): number {
    return this.#availSlot | (this.#availWrap ? 0x8000 : 0);
  }

  /** The ring, in lines to print. */
  override describe(): string[] {
    const event = (offset: number) => {
      const [offWrap, flags] = [0, 2].map((field) => Atomics.load(this.#words, (offset + field) / 2));
      return `${["enable", "disable", "desc", "reserved"][flags & 3]}  off ${offWrap & 0x7fff}  wrap ${offWrap >>> 15}`;
    };
    const lines = [
      `packed ring, ${this.size} descriptors, ${this.free} free`,
      `  next available ${this.#availSlot} (wrap ${+this.#availWrap})  next used ${this.#usedSlot} (wrap ${+this
        .#usedWrap})`,
      `  driver events ${event(this.#driverEvent)}`,
      `  device events ${event(this.#deviceEvent)}`,
    ];
    for (let i = 0; i < this.size; i++) {
      const at = this.#ring + i * PVIRTQ_DESC_SIZE;
      const address = this.#ram.getBigUint64(at, true);
      if (address === 0n) continue;
      const flags = this.#ram.getUint16(at + PVIRTQ_DESC_FLAGS, true);
      lines.push(
        `  desc[${i}]  addr 0x${address.toString(16)}  len ${this.#ram.getUint32(at + PVIRTQ_DESC_LEN, true)}` +
          `  id ${this.#ram.getUint16(at + PVIRTQ_DESC_ID, true)}  flags ${flagNames(flags)}`,
      );
    }
    return lines;
  }

  #isUsed(flags: number): boolean {
    return ((flags & PVIRTQ_DESC_F_AVAIL) !== 0) === this.#usedWrap &&
      ((flags & PVIRTQ_DESC_F_USED) !== 0) === this.#usedWrap;
  }

  #append(address: number, length: number, id: number, flags: number): void {
    this.#put(this.#ring + this.#availSlot * PVIRTQ_DESC_SIZE, address, length, id);
    this.#advance(flags);
  }

  /** Writes the flags of the descriptor at the next slot, or keeps them if it is the first of its list, and moves on. */
  #advance(flags: number): void {
    const at = this.#ring + this.#availSlot * PVIRTQ_DESC_SIZE;
    const marked = (flags & ~(PVIRTQ_DESC_F_AVAIL | PVIRTQ_DESC_F_USED)) |
      (this.#availWrap ? PVIRTQ_DESC_F_AVAIL : PVIRTQ_DESC_F_USED);
    if (this.#listAt < 0) {
      this.#listAt = at;
      this.#listFlags = marked;
    } else {
      this.#setFlags(at, marked);
    }
    if (++this.#availSlot === this.size) {
      this.#availSlot = 0;
      this.#availWrap = !this.#availWrap;
    }
  }

  #finishAdd(id: number, slots: number, token: number): void {
    if (this.#firstAt < 0) {
      this.#firstAt = this.#listAt;
      this.#firstFlags = this.#listFlags;
    } else {
      this.#setFlags(this.#listAt, this.#listFlags);
    }
    this.#listAt = -1;
    // Not before: when there is no memory for an indirect table, the ID stays free.
    this.#ids.pop();
    this.free -= slots;
    this.lengths[id] = slots;
    this.tokens[id] = token;
    this.#addedSlots += slots;
    this.added++;
    if (this.inOrder) this.#order.push(id);
  }

  #reclaim(id: number, length: number): number {
    const token = this.claim(id);
    const slots = this.lengths[id];
    this.usedLength = length;
    this.free += slots;
    this.#ids.push(id);
    this.#usedSlot += slots;
    if (this.#usedSlot >= this.size) {
      this.#usedSlot -= this.size;
      this.#usedWrap = !this.#usedWrap;
    }
    return token;
  }

  #put(at: number, address: number, length: number, id: number): void {
    this.#ram.setUint32(at, address >>> 0, true);
    this.#ram.setUint32(at + 4, Math.floor(address / 0x1_0000_0000), true);
    this.#ram.setUint32(at + PVIRTQ_DESC_LEN, length, true);
    this.#ram.setUint16(at + PVIRTQ_DESC_ID, id, true);
  }

  #putRaw(at: number, descriptor: RawDescriptor, id: number): void {
    this.#ram.setBigUint64(at, BigInt.asUintN(64, descriptor.address), true);
    this.#ram.setUint32(at + PVIRTQ_DESC_LEN, descriptor.length, true);
    this.#ram.setUint16(at + PVIRTQ_DESC_ID, id, true);
  }

  #setFlags(at: number, flags: number): void {
    Atomics.store(this.#words, (at + PVIRTQ_DESC_FLAGS) / 2, flags);
  }

  #storeWord(offset: number, value: number): void {
    Atomics.store(this.#words, offset / 2, value);
  }
}
