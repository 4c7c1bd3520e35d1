/**
 * The scriptable guest: a disk as its driver sees it, with promises.
 *
 * Requests made in one turn of the event loop are made available together and cost one notification; so do
 * `Promise.all` of many reads, and a loop that does not wait.
 *
 * @module
 */

import {
  configField,
  type ConfigFieldName,
  ID_SIZE,
  LIFETIME_SIZE,
  RANGE_F_UNMAP,
  RANGE_SIZE,
  SECTOR_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from "../blk/blk_layout.ts";
import type { MemoryRegion } from "../memory/region.ts";
import type { RegisterWindow } from "../transport/mmio/mmio_layout.ts";
import { hasFeature } from "../virtio/features.ts";
import { GuestAllocator } from "./allocator.ts";
import { BlockDriver, type BlockDriverOptions } from "./block_driver.ts";
import { LOST, type RequestSlot } from "./request_slot.ts";
import type { RawDescriptor } from "./driver_queue.ts";
import { GuestIoError, GuestRangeError } from "./guest_error.ts";
import { WriteOrder } from "./write_order.ts";

/** Largest piece into which a long transfer is cut, in bytes; as big as Linux makes its requests. */
const MAX_TRANSFER_BYTES = 1 << 20;

/** Choices for one request. */
export interface RequestOptions {
  /** Queue to use; by default they take turns. */
  queue?: number;
}

/** Choices for one read or write. */
export interface TransferOptions extends RequestOptions {
  /** Cut the data into elements of these lengths; by default as few as the device allows. */
  segments?: readonly number[];
}

/** What came back for a chain made by hand. */
export interface ChainResult {
  /** The status byte, if the chain had one that the device covered; `null` otherwise. */
  readonly status: number | null;
  /** Used length, or `null` when the buffer never came back. */
  readonly bytesWritten: number | null;
}

/** A guest with one virtio disk. */
export class Guest {
  /** The driver, for whatever is not here. */
  readonly driver: BlockDriver;
  readonly #allocator: GuestAllocator;
  readonly #order = new WriteOrder();
  /** The configuration as it was read last: at the start, and whenever the device said that it changed (§3.2). */
  #config: Partial<Record<ConfigFieldName, number>> = {};
  #nextQueue = 0;
  #kickScheduled: boolean[] = [];
  #plugged = false;
  /** Queues that wait for `unplug`. */
  readonly #heldBack = new Set<number>();
  /** Buffers of lost requests that the device may still write to until it is reset. */
  readonly #exposed: number[] = [];
  /** The reset that is under way. */
  #resetting: Promise<void> | null = null;

  private constructor(driver: BlockDriver, allocator: GuestAllocator) {
    this.driver = driver;
    this.#allocator = allocator;
  }

  /**
   * Boots a guest: finds the device behind `window` and sets it up.
   *
   * @param ram the guest's memory, which it has for itself
   * @throws ProbeError
   */
  static async boot(window: RegisterWindow, ram: MemoryRegion, options: BlockDriverOptions = {}): Promise<Guest> {
    const allocator = new GuestAllocator(ram);
    const guest = new Guest(new BlockDriver(window, allocator, options), allocator);
    guest.driver.onConfigChange = () => guest.#readConfig();
    await guest.driver.start();
    guest.#started();
    return guest;
  }

  /** Size of the disk, in bytes. */
  get sizeBytes(): number {
    return (this.#config.capacity ?? 0) * SECTOR_SIZE;
  }

  /** The negotiated features. */
  get features(): bigint {
    return this.driver.features;
  }

  /** Whether the device refuses to write. */
  get readOnly(): boolean {
    return hasFeature(this.features, VIRTIO_BLK_F_RO);
  }

  /** Logical block size, in bytes. */
  get blockSize(): number {
    return this.#config.blk_size ?? SECTOR_SIZE;
  }

  /** Most data elements of one request; 1 when the device does not say (§5.2.4). */
  get segMax(): number {
    return this.#config.seg_max ?? 1;
  }

  /** Longest element of a request, in bytes; no limit when the device does not say. */
  get sizeMax(): number {
    return this.#config.size_max ?? Infinity;
  }

  /** Number of queues. */
  get queueCount(): number {
    return this.driver.queues.length;
  }

  /** The fields of the configuration space. */
  config(): Partial<Record<ConfigFieldName, number>> {
    return this.driver.readAllConfig();
  }

  /**
   * Reads from the disk.
   *
   * @param offset in bytes; any, as is the length: the sectors around are read with it
   * @throws GuestIoError GuestRangeError
   */
  async read(offset: number, lengthBytes: number, options: TransferOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    this.#checkRange(offset, lengthBytes);
    const start = offset - (offset % SECTOR_SIZE);
    const end = Math.ceil((offset + lengthBytes) / SECTOR_SIZE) * SECTOR_SIZE;
    const aligned = start === offset && end === offset + lengthBytes;
    const result = new Uint8Array(end - start);
    await this.#transfer("read", VIRTIO_BLK_T_IN, start, result, aligned ? options : { queue: options.queue });
    return aligned ? result : result.subarray(offset - start, offset - start + lengthBytes);
  }

  /**
   * Writes to the disk. An edge that is not at a sector's border is read first and written back, as a page cache
   * would; meanwhile no other request of this guest changes the sector.
   *
   * @throws GuestIoError GuestRangeError
   */
  async write(offset: number, data: Uint8Array, options: TransferOptions = {}): Promise<void> {
    this.#checkRange(offset, data.byteLength);
    const start = offset - (offset % SECTOR_SIZE);
    const end = Math.ceil((offset + data.byteLength) / SECTOR_SIZE) * SECTOR_SIZE;
    const aligned = start === offset && end === offset + data.byteLength;
    if (!aligned && data.byteLength === 0) return;
    await this.#order.run(start, end, !aligned, async () => {
      if (aligned) return await this.#transfer("write", VIRTIO_BLK_T_OUT, offset, data, options);
      const { queue } = options;
      const merged = new Uint8Array(end - start);
      merged.set(await this.read(start, SECTOR_SIZE, { queue }));
      if (end - SECTOR_SIZE > start) {
        merged.set(await this.read(end - SECTOR_SIZE, SECTOR_SIZE, { queue }), end - SECTOR_SIZE - start);
      }
      merged.set(data, offset - start);
      await this.#transfer("write", VIRTIO_BLK_T_OUT, start, merged, { queue });
    });
  }

  /**
   * Ends when everything written before is on stable storage. Without VIRTIO_BLK_F_FLUSH that is so already.
   *
   * @throws GuestIoError
   */
  async flush(options: RequestOptions = {}): Promise<void> {
    if (!hasFeature(this.features, VIRTIO_BLK_F_FLUSH)) return;
    await this.#request("flush", VIRTIO_BLK_T_FLUSH, 0, [], options.queue);
  }

  /** Says that the contents of a range are not needed any more. Both numbers are multiples of 512. */
  discard(offset: number, lengthBytes: number, options: RequestOptions = {}): Promise<void> {
    return this.#ranges("discard", VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_T_DISCARD, offset, lengthBytes, 0, options);
  }

  /** Makes a range read as zeros. Both numbers are multiples of 512. */
  writeZeroes(
    offset: number,
    lengthBytes: number,
    options: RequestOptions & { unmap?: boolean } = {},
  ): Promise<void> {
    const flags = options.unmap ? RANGE_F_UNMAP : 0;
    const [feature, type] = [VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_WRITE_ZEROES];
    return this.#ranges("writeZeroes", feature, type, offset, lengthBytes, flags, options);
  }

  /** Erases a range for good. Both numbers are multiples of 512. */
  secureErase(offset: number, lengthBytes: number, options: RequestOptions = {}): Promise<void> {
    const [feature, type] = [VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_T_SECURE_ERASE];
    return this.#ranges("secureErase", feature, type, offset, lengthBytes, 0, options);
  }

  /** The device ID string (GET_ID). */
  async identify(options: RequestOptions = {}): Promise<string> {
    const bytes = await this.#readBytes("identify", VIRTIO_BLK_T_GET_ID, ID_SIZE, options);
    const end = bytes.indexOf(0);
    return new TextDecoder("latin1").decode(end < 0 ? bytes : bytes.subarray(0, end));
  }

  /** Wear of the medium (GET_LIFETIME). */
  async lifetime(options: RequestOptions = {}): Promise<{ preEolInfo: number; typA: number; typB: number }> {
    const bytes = await this.#readBytes("lifetime", VIRTIO_BLK_T_GET_LIFETIME, LIFETIME_SIZE, options);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const [preEolInfo, typA, typB] = [0, 2, 4].map((at) => view.getUint16(at, true));
    return { preEolInfo, typA, typB };
  }

  /**
   * Sends a chain of descriptors exactly as given, however broken.
   *
   * @param statusAddress where the chain has its status byte, if it has one: it is set to 0xff before
   */
  chain(
    descriptors: readonly RawDescriptor[],
    options: RequestOptions & { indirect?: boolean; statusAddress?: number } = {},
  ): Promise<ChainResult> {
    const { driver } = this;
    const queue = options.queue ?? 0;
    // A device that needs a reset returns nothing any more.
    if (this.#unusable) return Promise.resolve({ status: null, bytesWritten: null });
    if (driver.queues[queue] === undefined) return Promise.reject(new GuestRangeError(`there is no queue ${queue}`));
    const slot = driver.take();
    slot.raw = { descriptors, indirect: options.indirect ?? false };
    const { statusAddress } = options;
    const byte = statusAddress === undefined ? new Uint8Array(1) : this.memory(statusAddress, 1);
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

  /** Takes a piece of guest memory; returns its guest-physical address. */
  allocate(sizeBytes: number, alignment?: number): number {
    return this.#allocator.allocate(sizeBytes, alignment);
  }

  /**
   * Holds notifications back until `unplug`, so that requests made over several turns of the event loop are still
   * made available together: what Linux calls a plug. A full ring is not waited for with the plug in.
   */
  plug(): void {
    this.#plugged = true;
  }

  /** Makes everything available that was held back since `plug`. */
  unplug(): void {
    this.#plugged = false;
    this.#heldBack.forEach((queue) => this.driver.kick(queue));
    this.#heldBack.clear();
  }

  /** Gives a piece of guest memory back. */
  release(address: number): void {
    this.#allocator.free(address);
  }

  /** The guest memory at `address`, as a view. */
  memory(address: number, sizeBytes: number): Uint8Array {
    return this.#allocator.bytes(address, sizeBytes);
  }

  /** Resets the device and sets it up again. Requests in flight fail. */
  reset(): Promise<void> {
    // One that comes while another is under way would find the device half set up: they are one and the same.
    this.#resetting ??= this.#restart().finally(() => this.#resetting = null);
    return this.#resetting;
  }

  async #restart(): Promise<void> {
    await this.driver.stop();
    for (const address of this.#exposed.splice(0)) this.release(address);
    await this.driver.start();
    this.#started();
  }

  /** Resets one queue and sets it up again (VIRTIO_F_RING_RESET). Its requests in flight fail. */
  resetQueue(queue: number, size?: number): Promise<void> {
    return this.driver.resetQueue(queue, size);
  }

  /**
   * Switches between writeback (`true`) and writethrough (VIRTIO_BLK_F_CONFIG_WCE).
   *
   * @throws GuestIoError when that was not negotiated
   */
  setWriteback(writeback: boolean): void {
    // §2.5.1: without the feature there is no such field.
    if (!hasFeature(this.features, VIRTIO_BLK_F_CONFIG_WCE)) {
      throw new GuestIoError("setWriteback", VIRTIO_BLK_S_UNSUPP);
    }
    this.driver.registers.writeConfig(configField("writeback").offset, 1, writeback ? 1 : 0);
  }

  #started(): void {
    this.#readConfig();
    this.#kickScheduled = this.driver.queues.map(() => false);
    this.#nextQueue = 0;
  }

  #readConfig(): void {
    this.#config = this.driver.readAllConfig();
  }

  #checkRange(offset: number, lengthBytes: number): void {
    const good = Number.isSafeInteger(offset) && Number.isSafeInteger(lengthBytes) && offset >= 0 && lengthBytes >= 0;
    // §5.2.6.1: a driver must not submit what would go beyond the capacity.
    if (!good || offset + lengthBytes > this.sizeBytes) {
      throw new GuestRangeError(
        `${lengthBytes} bytes at offset ${offset} are not inside the disk of ${this.sizeBytes} bytes`,
      );
    }
  }

  /** Moves `data` to or from the disk in as few requests as the device and the guest's memory allow. */
  async #transfer(
    operation: string,
    type: number,
    offset: number,
    data: Uint8Array,
    options: TransferOptions,
  ): Promise<void> {
    const limit = this.#transferLimit(options.segments);
    const pieces: Promise<void>[] = [];
    for (let done = 0; done === 0 || done < data.byteLength; done += limit) {
      const piece = data.subarray(done, done + limit);
      pieces.push(this.#transferPiece(operation, type, offset + done, piece, options));
      // A long transfer must not take all of the guest's memory at once.
      if (pieces.length >= 8) await settle(pieces.splice(0));
    }
    await settle(pieces);
  }

  #transferLimit(segments: readonly number[] | undefined): number {
    // Who names the segments wants exactly one request.
    if (segments !== undefined) return Infinity;
    const { sizeMax } = this;
    if (sizeMax === Infinity) return MAX_TRANSFER_BYTES;
    // §2.7.5.3.1: no chain is longer than the queue, indirect or not; two elements are header and status.
    const room = Math.min(...this.driver.queues.map((queue) => queue.size)) - 2;
    const segMax = Math.max(1, Math.min(this.segMax, room));
    const perRequest = Math.floor(Math.min(MAX_TRANSFER_BYTES, sizeMax * segMax) / SECTOR_SIZE) * SECTOR_SIZE;
    return Math.max(SECTOR_SIZE, perRequest);
  }

  async #transferPiece(
    operation: string,
    type: number,
    offset: number,
    data: Uint8Array,
    options: TransferOptions,
  ): Promise<void> {
    const address = this.allocate(data.byteLength, 4096);
    try {
      const writable = type === VIRTIO_BLK_T_IN;
      if (!writable) this.memory(address, data.byteLength).set(data);
      const elements = [];
      let at = address;
      for (const length of this.#segmentLengths(data.byteLength, options.segments)) {
        elements.push({ address: at, length, writable });
        at += length;
      }
      await this.#request(operation, type, offset / SECTOR_SIZE, elements, options.queue);
      if (writable) data.set(this.memory(address, data.byteLength));
    } finally {
      this.#giveBack(address);
    }
  }

  #segmentLengths(total: number, given: readonly number[] | undefined): readonly number[] {
    if (given !== undefined) return given.filter((length) => length > 0);
    if (total === 0) return [];
    const sizeMax = Math.min(total, this.sizeMax);
    const lengths: number[] = [];
    for (let left = total; left > 0; left -= sizeMax) lengths.push(Math.min(left, sizeMax));
    return lengths;
  }

  async #ranges(
    operation: string,
    feature: number,
    type: number,
    offset: number,
    lengthBytes: number,
    flags: number,
    options: RequestOptions,
  ): Promise<void> {
    this.#checkRange(offset, lengthBytes);
    if (offset % SECTOR_SIZE !== 0 || lengthBytes % SECTOR_SIZE !== 0) {
      throw new GuestRangeError(`${operation} works on whole sectors of ${SECTOR_SIZE} bytes`);
    }
    if (!hasFeature(this.features, feature)) throw new GuestIoError(operation, VIRTIO_BLK_S_UNSUPP);
    const field = {
      [VIRTIO_BLK_T_DISCARD]: "max_discard_sectors",
      [VIRTIO_BLK_T_WRITE_ZEROES]: "max_write_zeroes_sectors",
      [VIRTIO_BLK_T_SECURE_ERASE]: "max_secure_erase_sectors",
    }[type] as ConfigFieldName;
    const limit = this.#config[field]! * SECTOR_SIZE;
    await this.#order.run(offset, offset + lengthBytes, false, async () => {
      for (let done = 0; done < lengthBytes; done += limit) {
        const sectors = Math.min(limit, lengthBytes - done) / SECTOR_SIZE;
        const bytes = new Uint8Array(RANGE_SIZE);
        const view = new DataView(bytes.buffer);
        view.setBigUint64(0, BigInt((offset + done) / SECTOR_SIZE), true);
        view.setUint32(8, sectors, true);
        view.setUint32(12, flags, true);
        const address = this.allocate(RANGE_SIZE);
        try {
          this.memory(address, RANGE_SIZE).set(bytes);
          await this.#request(operation, type, 0, [{ address, length: RANGE_SIZE, writable: false }], options.queue);
        } finally {
          this.#giveBack(address);
        }
      }
    });
  }

  async #readBytes(operation: string, type: number, size: number, options: RequestOptions): Promise<Uint8Array> {
    const address = this.allocate(size);
    try {
      await this.#request(operation, type, 0, [{ address, length: size, writable: true }], options.queue);
      return this.memory(address, size).slice();
    } finally {
      this.#giveBack(address);
    }
  }

  #request(
    operation: string,
    type: number,
    sector: number,
    data: readonly { address: number; length: number; writable: boolean }[],
    queue: number = this.#turnOf(),
  ): Promise<void> {
    const { driver } = this;
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

  /** Whether the device needs a reset, or is being reset. */
  get #unusable(): boolean {
    return this.driver.needsReset || this.queueCount === 0;
  }

  /**
   * Gives a request's buffer back. §3.3.1: until the queue is dead the device may still write to the buffer of a
   * request that the driver gave up, so nobody else may have it before the reset.
   */
  #giveBack(address: number): void {
    if (this.driver.needsReset) this.#exposed.push(address);
    else this.release(address);
  }

  #turnOf(): number {
    const queue = this.#nextQueue;
    // During a reset there is no queue to take turns with.
    this.#nextQueue = (queue + 1) % Math.max(1, this.queueCount);
    return queue;
  }

  #scheduleKick(queue: number): void {
    if (this.#plugged && this.driver.waitingCount(queue) === 0) {
      this.#heldBack.add(queue);
      return;
    }
    if (this.#kickScheduled[queue]) return;
    this.#kickScheduled[queue] = true;
    queueMicrotask(() => {
      this.#kickScheduled[queue] = false;
      this.driver.kick(queue);
    });
  }
}

/** Waits for all, then fails with the first failure: no buffer is given back while a request still uses it. */
async function settle(pieces: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pieces)) {
    if (result.status === "rejected") throw result.reason;
  }
}
