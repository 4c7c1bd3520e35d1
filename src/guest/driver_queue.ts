/**
 * The driver's half of a virtqueue, whatever its layout, written from the driver's clauses of VIRTIO 1.4 §2.7 and
 * §2.8. It shares nothing with the device's half but the layout files, so that each tests the other.
 *
 * @module
 */

import type { GuestAllocator } from "./allocator.ts";

/** One element of a buffer: physically contiguous guest memory. */
export interface BufferElement {
  /** Guest-physical address. */
  address: number;
  /** Length in bytes. */
  length: number;
  /** Whether the device writes it; otherwise it reads it. */
  writable: boolean;
}

/** A descriptor exactly as it shall stand in memory, for chains that break the rules. */
export interface RawDescriptor {
  /** Any 64-bit value. */
  readonly address: bigint;
  /** Length in bytes. */
  readonly length: number;
  /** VIRTQ_DESC_F_* bits. */
  readonly flags: number;
  /** Split: the next field; by default the index of the descriptor that follows here. Ignored in packed rings. */
  readonly next?: number;
}

/** What was negotiated about a queue. */
export interface DriverQueueOptions {
  /** Number of descriptors. */
  readonly size: number;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIdx: boolean;
  /** VIRTIO_F_IN_ORDER was negotiated. */
  readonly inOrder: boolean;
  /** Put lists of more than one element into an indirect table (VIRTIO_F_INDIRECT_DESC was negotiated). */
  readonly indirect: boolean;
}

/** Guest-physical addresses of the three parts of a queue. */
export interface QueueAddresses {
  /** The descriptor area. */
  readonly desc: number;
  /** The driver area: available ring, or driver event suppression. */
  readonly driver: number;
  /** The device area: used ring, or device event suppression. */
  readonly device: number;
}

/** §2.7.5.2: the most bytes that one buffer may have. */
const MAX_BUFFER_BYTES = 2 ** 32;

/** The device returned something that the driver never gave it. */
export class DeviceMisbehaved extends Error {
  /** Always `"DeviceMisbehaved"`: what a stack trace begins with. */
  override readonly name = "DeviceMisbehaved";
}

/** The driver's half of a virtqueue. */
export abstract class DriverQueue {
  /** Number of descriptors. */
  readonly size: number;
  /** Where the three areas are. */
  abstract readonly addresses: QueueAddresses;
  /** Used length of the buffer that `take` returned last: how many bytes the device says it wrote. */
  usedLength = 0;

  /** The guest's memory. */
  protected readonly allocator: GuestAllocator;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  protected readonly eventIdx: boolean;
  /** VIRTIO_F_IN_ORDER was negotiated. */
  protected readonly inOrder: boolean;
  /** Requests go into indirect tables. */
  protected readonly indirect: boolean;
  /** Descriptors that no buffer occupies. */
  protected free: number;
  /** Buffers added since the last `publish`. */
  protected added = 0;
  /** By head or buffer ID: the caller's token, or -1 when it is not in flight. */
  protected readonly tokens: Int32Array;
  /** By head or buffer ID: how many ring descriptors the buffer occupies. */
  protected readonly lengths: Uint16Array;
  /** By head or buffer ID: address and capacity (in descriptors) of its indirect table, made when first needed. */
  readonly #tables: number[] = [];
  readonly #tableCapacity: number[] = [];

  /** For the two layouts. */
  protected constructor(allocator: GuestAllocator, options: DriverQueueOptions) {
    this.allocator = allocator;
    this.size = options.size;
    this.eventIdx = options.eventIdx;
    this.inOrder = options.inOrder;
    this.indirect = options.indirect;
    this.free = options.size;
    this.tokens = new Int32Array(options.size).fill(-1);
    this.lengths = new Uint16Array(options.size);
  }

  /** Descriptors that are free. */
  get freeCount(): number {
    return this.free;
  }

  /** Buffers added since the last `publish`. */
  get addedCount(): number {
    return this.added;
  }

  /** How many ring descriptors `count` elements take. */
  slotsFor(count: number): number {
    return this.indirect && count > 1 ? 1 : count;
  }

  /**
   * Places a buffer. The device sees it from the next `publish` on.
   *
   * @param elements device-readable ones first (§2.7.4.2); the first `count` are used
   * @param token what `take` returns for it: any number from 0
   * @returns `false` when there are not enough free descriptors
   * @throws RangeError for a buffer that no driver may place
   */
  abstract add(elements: readonly BufferElement[], count: number, token: number): boolean;

  /**
   * Places descriptors exactly as given, for tests of the device.
   *
   * @param indirect put them into an indirect table, and one descriptor that refers to it into the ring
   */
  abstract addRaw(descriptors: readonly RawDescriptor[], indirect: boolean, token: number): boolean;

  /**
   * Makes the buffers added so far available.
   *
   * @returns whether the device asked to be notified of them
   */
  abstract publish(): boolean;

  /**
   * Takes back one buffer that the device has used; `usedLength` is then its used length.
   *
   * @returns its token, or -1 when there is none
   * @throws DeviceMisbehaved
   */
  abstract take(): number;

  /** Tells the device that used buffer notifications are not needed for now. */
  abstract disableInterrupts(): void;

  /**
   * Asks for a used buffer notification again.
   *
   * @returns `true` when buffers were used meanwhile: the caller must look again
   */
  abstract enableInterrupts(): boolean;

  /** The next position in the ring, as VIRTIO_F_NOTIFICATION_DATA puts it: 15 bits of offset, one of wrap (§2.9). */
  abstract get position(): number;

  /** The rings, printed a line an entry. */
  abstract describe(): string[];

  /** Gives the queue's memory back. Only after the device has let go of it. */
  release(): void {
    for (const address of Object.values(this.addresses)) this.allocator.free(address as number);
    this.#tables.forEach((table, id) => {
      if (this.#tableCapacity[id] > 0) this.allocator.free(table);
    });
    this.#tableCapacity.length = 0;
  }

  /**
   * Memory for the three parts, zeroed: that is an empty ring of either layout (§2.7.10.1, §2.8.13).
   *
   * @param sizes of the parts, in bytes; and what their addresses are multiples of
   */
  protected allocateAreas(
    sizes: Readonly<Record<keyof QueueAddresses, number>>,
    alignment: Readonly<Record<keyof QueueAddresses, number>>,
  ): QueueAddresses {
    return {
      desc: this.allocator.allocateZeroed(sizes.desc, alignment.desc),
      driver: this.allocator.allocateZeroed(sizes.driver, alignment.driver),
      device: this.allocator.allocateZeroed(sizes.device, alignment.device),
    };
  }

  /** An indirect table for `count` descriptors that belongs to `id`. */
  protected indirectTable(id: number, count: number): number {
    if ((this.#tableCapacity[id] ?? 0) < count) {
      if (this.#tableCapacity[id] > 0) this.allocator.free(this.#tables[id]);
      // Without a table, should there be no memory for the larger one.
      this.#tableCapacity[id] = 0;
      this.#tables[id] = this.allocator.allocate(count * 16, 16);
      this.#tableCapacity[id] = count;
    }
    return this.#tables[id];
  }

  /** What a driver must not make available (§2.7.4.2, §2.7.5.2, §2.7.5.3.1, §2.8.17): a bug of the caller's. */
  protected checkBuffer(elements: readonly BufferElement[], count: number): void {
    // §2.7.5.3.1: the queue's size bounds the list, and an indirect table does not lift that.
    if (count < 1 || count > this.size) {
      throw new RangeError(`a buffer of ${count} elements does not fit a queue of ${this.size}`);
    }
    let bytes = 0;
    let sawWritable = false;
    for (let i = 0; i < count; i++) {
      const { length, writable } = elements[i];
      if (sawWritable && !writable) {
        throw new RangeError(`element ${i} of a buffer is device-readable but follows a device-writable one`);
      }
      sawWritable = writable;
      bytes += length;
    }
    if (bytes > MAX_BUFFER_BYTES) throw new RangeError(`a buffer of ${bytes} bytes is longer than 2^32`);
  }

  /** Takes the token of a buffer that the device returned. */
  protected claim(id: number): number {
    const token = id < this.size ? this.tokens[id] : -1;
    if (token < 0) throw new DeviceMisbehaved(`the device returned buffer ${id}, which was not in flight`);
    this.tokens[id] = -1;
    return token;
  }
}
