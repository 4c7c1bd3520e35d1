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
  SECTOR_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
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
import type { RawDescriptor } from "./driver_queue.ts";
import { GuestIoError, GuestRangeError } from "./guest_error.ts";
import { GuestRequests } from "./guest_requests.ts";
import { sendRanges, transfer } from "./guest_transfers.ts";
import { WriteOrder } from "./write_order.ts";

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
  readonly #requests: GuestRequests;
  readonly #order = new WriteOrder();
  /** The configuration as it was read last: at the start, and whenever the device said that it changed (§3.2). */
  #config: Partial<Record<ConfigFieldName, number>> = {};
  /** The reset that is under way. */
  #resetting: Promise<void> | null = null;

  private constructor(driver: BlockDriver, allocator: GuestAllocator) {
    this.driver = driver;
    this.#allocator = allocator;
    this.#requests = new GuestRequests(driver, allocator);
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
    await transfer(
      this,
      this.#requests,
      "read",
      VIRTIO_BLK_T_IN,
      start,
      result,
      aligned ? options : { queue: options.queue },
    );
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
      if (aligned) return await transfer(this, this.#requests, "write", VIRTIO_BLK_T_OUT, offset, data, options);
      const { queue } = options;
      const merged = new Uint8Array(end - start);
      merged.set(await this.read(start, SECTOR_SIZE, { queue }));
      if (end - SECTOR_SIZE > start) {
        merged.set(await this.read(end - SECTOR_SIZE, SECTOR_SIZE, { queue }), end - SECTOR_SIZE - start);
      }
      merged.set(data, offset - start);
      await transfer(this, this.#requests, "write", VIRTIO_BLK_T_OUT, start, merged, { queue });
    });
  }

  /**
   * Ends when everything written before is on stable storage. Without VIRTIO_BLK_F_FLUSH that is so already.
   *
   * @throws GuestIoError
   */
  async flush(options: RequestOptions = {}): Promise<void> {
    if (!hasFeature(this.features, VIRTIO_BLK_F_FLUSH)) return;
    await this.#requests.send("flush", VIRTIO_BLK_T_FLUSH, 0, [], options.queue);
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
    const bytes = await this.#requests.readBytes("identify", VIRTIO_BLK_T_GET_ID, ID_SIZE, options);
    const end = bytes.indexOf(0);
    return new TextDecoder("latin1").decode(end < 0 ? bytes : bytes.subarray(0, end));
  }

  /** Wear of the medium (GET_LIFETIME). */
  async lifetime(options: RequestOptions = {}): Promise<{ preEolInfo: number; typA: number; typB: number }> {
    const bytes = await this.#requests.readBytes("lifetime", VIRTIO_BLK_T_GET_LIFETIME, LIFETIME_SIZE, options);
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
    return this.#requests.chain(descriptors, options);
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
    this.#requests.plug();
  }

  /** Makes everything available that was held back since `plug`. */
  unplug(): void {
    this.#requests.unplug();
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
    this.#requests.deviceStopped();
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
    this.#requests.deviceStarted();
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
    const run = () => sendRanges(this, this.#requests, { operation, type, offset, lengthBytes, flags, limit }, options);
    await this.#order.run(offset, offset + lengthBytes, false, run);
  }
}
