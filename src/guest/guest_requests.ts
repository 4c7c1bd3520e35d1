/**
 * Requests as promises: sent in turn to the queues, made available together, and their buffers given back.
 *
 * @module
 */

import { VIRTIO_BLK_S_OK } from "../blk/blk_layout.ts";
import type { GuestAllocator } from "./allocator.ts";
import type { BlockDriver } from "./block_driver.ts";
import type { BufferElement, RawDescriptor } from "./driver_queue.ts";
import type { ChainResult, RequestOptions } from "./guest.ts";
import { GuestIoError, GuestRangeError } from "./guest_error.ts";
import { LOST, type RequestSlot } from "./request_slot.ts";

/** The requests of one guest. */
export class GuestRequests {
  readonly #driver: BlockDriver;
  readonly #allocator: GuestAllocator;
  #nextQueue = 0;
  #kickScheduled: boolean[] = [];
  #plugged = false;
  /** Queues that wait for `unplug`. */
  readonly #heldBack = new Set<number>();
  /** Buffers of lost requests that the device may still write to until it is reset. */
  readonly #exposed: number[] = [];

  constructor(driver: BlockDriver, allocator: GuestAllocator) {
    this.#driver = driver;
    this.#allocator = allocator;
  }

  /** The device has been set up, with the queues that it has now. */
  deviceStarted(): void {
    this.#kickScheduled = this.#driver.queues.map(() => false);
    this.#nextQueue = 0;
  }

  /** The device has been reset, and writes to no buffer any more. */
  deviceStopped(): void {
    for (const address of this.#exposed.splice(0)) this.#allocator.free(address);
  }

  /** Holds notifications back until `unplug`. */
  plug(): void {
    this.#plugged = true;
  }

  /** Makes everything available that was held back since `plug`. */
  unplug(): void {
    this.#plugged = false;
    this.#heldBack.forEach((queue) => this.#driver.kick(queue));
    this.#heldBack.clear();
  }

  /**
   * Sends a request, and ends when it has ended well.
   *
   * @param data what goes between header and status
   * @throws GuestIoError GuestRangeError
   */
  send(
    operation: string,
    type: number,
    sector: number,
    data: readonly BufferElement[],
    queue: number = this.#turnOf(),
  ): Promise<void> {
    const driver = this.#driver;
    if (this.#unusable) return Promise.reject(new GuestIoError(operation, LOST));
    if (driver.queues[queue] === undefined) return Promise.reject(new GuestRangeError(`there is no queue ${queue}`));
    const slot = driver.take();
    driver.begin(slot, type, sector);
    for (const { address, length, writable } of data) slot.addElement(address, length, writable);
    driver.end(slot);
    return new Promise((resolve, reject) => {
      const done = (ended: RequestSlot) => {
        if (ended.status === VIRTIO_BLK_S_OK) resolve();
        else reject(new GuestIoError(operation, ended.status));
      };
      driver.submit(slot, queue, done);
      this.#scheduleKick(queue);
    });
  }

  /** Sends a request that is answered with so many bytes. */
  async readBytes(operation: string, type: number, size: number, options: RequestOptions): Promise<Uint8Array> {
    const address = this.#allocator.allocate(size);
    try {
      await this.send(operation, type, 0, [{ address, length: size, writable: true }], options.queue);
      return this.#allocator.bytes(address, size).slice();
    } finally {
      this.giveBack(address);
    }
  }

  /** Sends a chain of descriptors exactly as given (see `Guest.chain`). */
  chain(
    descriptors: readonly RawDescriptor[],
    options: RequestOptions & { indirect?: boolean; statusAddress?: number },
  ): Promise<ChainResult> {
    const driver = this.#driver;
    const queue = options.queue ?? 0;
    // A device that needs a reset returns nothing any more.
    if (this.#unusable) return Promise.resolve({ status: null, bytesWritten: null });
    if (driver.queues[queue] === undefined) return Promise.reject(new GuestRangeError(`there is no queue ${queue}`));
    const slot = driver.take();
    slot.raw = { descriptors, indirect: options.indirect ?? false };
    const { statusAddress } = options;
    const byte = statusAddress === undefined ? new Uint8Array(1) : this.#allocator.bytes(statusAddress, 1);
    byte[0] = 0xff;
    return new Promise((resolve) => {
      driver.submit(slot, queue, (ended) => {
        if (ended.status === LOST) return resolve({ status: null, bytesWritten: null });
        resolve({
          status: statusAddress === undefined || byte[0] === 0xff ? null : byte[0],
          bytesWritten: ended.usedLength,
        });
      });
      this.#scheduleKick(queue);
    });
  }

  /**
   * Gives a request's buffer back. §3.3.1: until the queue is dead the device may still write to the buffer of a
   * request that the driver gave up, so nobody else may have it before the reset.
   */
  giveBack(address: number): void {
    if (this.#driver.needsReset) this.#exposed.push(address);
    else this.#allocator.free(address);
  }

  /** Whether the device needs a reset, or is being reset. */
  get #unusable(): boolean {
    return this.#driver.needsReset || this.#driver.queues.length === 0;
  }

  #turnOf(): number {
    const queue = this.#nextQueue;
    // During a reset there is no queue to take turns with.
    this.#nextQueue = (queue + 1) % Math.max(1, this.#driver.queues.length);
    return queue;
  }

  #scheduleKick(queue: number): void {
    if (this.#plugged && this.#driver.waitingCount(queue) === 0) {
      this.#heldBack.add(queue);
      return;
    }
    if (this.#kickScheduled[queue]) return;
    this.#kickScheduled[queue] = true;
    queueMicrotask(() => {
      this.#kickScheduled[queue] = false;
      this.#driver.kick(queue);
    });
  }
}
