/**
 * The block device's configuration space (VIRTIO 1.4 §5.2.4): little-endian bytes that the driver reads at any
 * width, of which only `writeback` can be written.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { hasFeature } from "../virtio/features.ts";
import {
  CONFIG_FIELDS,
  CONFIG_SIZE,
  configField,
  type ConfigFieldName,
  SECTOR_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
} from "./blk_layout.ts";
import type { BlkOptions } from "./options.ts";

const WRITEBACK = configField("writeback").offset;

/** The bytes of the configuration space. */
export class BlkConfigSpace {
  readonly #bytes = new Uint8Array(CONFIG_SIZE);
  readonly #view = new DataView(this.#bytes.buffer);
  readonly #features: bigint;
  #generation = 0;

  /**
   * @param features the offered features: a field exists when its feature is offered (§2.5.2)
   * @param image what the device serves
   */
  constructor(options: BlkOptions, features: bigint, image: Image) {
    this.#features = features;
    const geometry = geometryOf(image.sizeBytes);
    const values: Record<ConfigFieldName, number> = {
      capacity: image.sizeBytes / SECTOR_SIZE,
      size_max: options.sizeMax,
      seg_max: options.segMax,
      ...geometry,
      blk_size: options.blockSize,
      physical_block_exp: Math.log2(options.physicalBlockSize / options.blockSize),
      alignment_offset: 0,
      min_io_size: Math.floor(options.minIoSize / options.blockSize),
      opt_io_size: Math.floor(options.optIoSize / options.blockSize),
      writeback: options.writeback ? 1 : 0,
      num_queues: options.queues,
      max_discard_sectors: options.maxRangeSectors,
      max_discard_seg: options.maxRanges,
      discard_sector_alignment: options.blockSize / SECTOR_SIZE,
      max_write_zeroes_sectors: options.maxRangeSectors,
      max_write_zeroes_seg: options.maxRanges,
      // §5.2.6.2: set if and only if such a request can give space back.
      write_zeroes_may_unmap: image.canUnmap ? 1 : 0,
      max_secure_erase_sectors: options.maxRangeSectors,
      max_secure_erase_seg: options.maxRanges,
      secure_erase_sector_alignment: options.blockSize / SECTOR_SIZE,
    };
    for (const { name } of CONFIG_FIELDS) this.#set(name, values[name]);
  }

  /** Changes whenever the device changes a field. */
  get generation(): number {
    return this.#generation;
  }

  /** Whether the cache is in writeback mode, as far as the field says. */
  get writeback(): boolean {
    return this.#bytes[WRITEBACK] !== 0;
  }

  /** Copies bytes out; what lies behind the end reads as zeros. */
  read(offset: number, target: Uint8Array): void {
    target.fill(0);
    if (offset < CONFIG_SIZE) target.set(this.#bytes.subarray(offset, offset + target.byteLength));
  }

  /** Whether a range holds nothing but what a driver may write. */
  writable(offset: number, lengthBytes: number): boolean {
    return hasFeature(this.#features, VIRTIO_BLK_F_CONFIG_WCE) && offset === WRITEBACK && lengthBytes === 1;
  }

  /**
   * A write by the driver.
   *
   * @returns whether it hit `writeback`, the only writable field; all else is ignored
   */
  write(offset: number, source: Uint8Array): boolean {
    const at = WRITEBACK - offset;
    if (at < 0 || at >= source.byteLength) return false;
    this.setWriteback(source[at] !== 0);
    return true;
  }

  /** Sets the cache mode field. */
  setWriteback(writeback: boolean): void {
    if (hasFeature(this.#features, VIRTIO_BLK_F_CONFIG_WCE)) this.#bytes[WRITEBACK] = writeback ? 1 : 0;
  }

  /** The disk has a new size. */
  setCapacity(capacityBytes: number): void {
    this.#set("capacity", capacityBytes / SECTOR_SIZE);
    const geometry = geometryOf(capacityBytes);
    for (const name of ["cylinders", "heads", "sectors"] as const) this.#set(name, geometry[name]);
    this.#generation = (this.#generation + 1) >>> 0;
  }

  #set(name: ConfigFieldName, value: number): void {
    const { offset, width, feature } = configField(name);
    if (feature !== undefined && !hasFeature(this.#features, feature)) return;
    switch (width) {
      case 1:
        return this.#view.setUint8(offset, value);
      case 2:
        return this.#view.setUint16(offset, value, true);
      case 4:
        return this.#view.setUint32(offset, value, true);
      case 8:
        return this.#view.setBigUint64(offset, BigInt(value), true);
    }
  }
}

/** The usual LBA-assisted geometry: 16 heads, 63 sectors, as many cylinders as fit 16 bits of the ATA limit. */
function geometryOf(capacityBytes: number): { cylinders: number; heads: number; sectors: number } {
  const cylinders = Math.floor(capacityBytes / SECTOR_SIZE / (16 * 63));
  return { cylinders: Math.max(2, Math.min(16383, cylinders)), heads: 16, sectors: 63 };
}
