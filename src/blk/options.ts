/**
 * What a block device offers: the choices of a driver author, checked once, when the device is made.
 *
 * @module
 */

import {
  featureSet,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../virtio/features.ts";
import {
  ID_SIZE,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_GEOMETRY,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from "./blk_layout.ts";

/** Wear of the medium, as GET_LIFETIME reports it (§5.2.6). */
export interface Lifetime {
  /** Reserved blocks used up: 0 undefined, 1 normal, 2 warning (80 %), 3 urgent (90 %). */
  readonly preEolInfo: number;
  /** Wear of SLC cells in steps of 10 %: 0 undefined, 1 to 10, 11 exceeded. */
  readonly typA: number;
  /** Wear of MLC cells, likewise. */
  readonly typB: number;
}

/** Choices for a block device. Every one has a default. */
export interface BlkOptions {
  /** Number of request queues, 1 to 1024; more than one offers VIRTIO_BLK_F_MQ. */
  readonly queues: number;
  /** Largest size of each queue: a power of two from 1 to 32768. */
  readonly queueSize: number;
  /** The device refuses to write. An image opened for reading makes it so too. */
  readonly readOnly: boolean;
  /** String that GET_ID returns: up to 20 bytes of ASCII. */
  readonly serial: string;
  /** Logical block size in bytes: a power of two from 512 to 32768. A hint; requests are still counted in sectors. */
  readonly blockSize: number;
  /** Physical block size in bytes: a power of two, not below `blockSize`. */
  readonly physicalBlockSize: number;
  /** Suggested smallest request in bytes; 0 says nothing. */
  readonly minIoSize: number;
  /** Suggested largest request in bytes; 0 says nothing. */
  readonly optIoSize: number;
  /** Largest segment in bytes; 0 does not offer VIRTIO_BLK_F_SIZE_MAX. */
  readonly sizeMax: number;
  /** Most segments in a request; 0 stands for two less than `queueSize`, but at least 1. */
  readonly segMax: number;
  /** Whether completed writes may wait in a cache for a FLUSH, as long as the driver can send one. */
  readonly writeback: boolean;
  /** Most sectors in one range, of the three kinds of request that carry ranges. */
  readonly maxRangeSectors: number;
  /** Most ranges in one request (`max_discard_seg` and its like). */
  readonly maxRanges: number;
  /** What GET_LIFETIME reports; `null` does not offer it. */
  readonly lifetime: Lifetime | null;
  /** Offer VIRTIO_BLK_F_FLUSH. */
  readonly flush: boolean;
  /** Offer VIRTIO_BLK_F_CONFIG_WCE: the driver may switch the write cache. */
  readonly configWce: boolean;
  /** Offer VIRTIO_BLK_F_DISCARD. */
  readonly discard: boolean;
  /** Offer VIRTIO_BLK_F_WRITE_ZEROES. */
  readonly writeZeroes: boolean;
  /** Offer VIRTIO_BLK_F_SECURE_ERASE. */
  readonly secureErase: boolean;
  /** Offer VIRTIO_BLK_F_GEOMETRY: cylinders, heads and sectors. */
  readonly geometry: boolean;
  /** Offer VIRTIO_BLK_F_TOPOLOGY: physical block and I/O sizes. */
  readonly topology: boolean;
  /** Offer VIRTIO_BLK_F_SEG_MAX. */
  readonly segMaxOffered: boolean;
  /** Offer VIRTIO_BLK_F_BLK_SIZE. */
  readonly blkSizeOffered: boolean;
  /** Offer VIRTIO_F_INDIRECT_DESC. */
  readonly indirect: boolean;
  /** Offer VIRTIO_F_EVENT_IDX. */
  readonly eventIdx: boolean;
  /** Offer VIRTIO_F_RING_PACKED. */
  readonly packed: boolean;
  /** Offer VIRTIO_F_IN_ORDER. */
  readonly inOrder: boolean;
  /** Offer VIRTIO_F_RING_RESET. */
  readonly ringReset: boolean;
  /** Offer VIRTIO_F_NOTIFICATION_DATA. */
  readonly notificationData: boolean;
}

/** What a device has when nothing is said: what Linux, QEMU's defaults and a first driver get on with. */
export const BLK_DEFAULTS: BlkOptions = {
  queues: 1,
  queueSize: 256,
  readOnly: false,
  serial: "vblk",
  blockSize: 512,
  physicalBlockSize: 512,
  minIoSize: 0,
  optIoSize: 0,
  sizeMax: 0,
  segMax: 0,
  writeback: true,
  // As QEMU: the most sectors whose bytes fit 31 bits with an aligned end.
  maxRangeSectors: 4194303,
  maxRanges: 16,
  lifetime: null,
  flush: true,
  configWce: true,
  discard: true,
  writeZeroes: true,
  secureErase: false,
  geometry: false,
  topology: true,
  segMaxOffered: true,
  blkSizeOffered: true,
  indirect: true,
  eventIdx: true,
  packed: false,
  inOrder: false,
  ringReset: true,
  notificationData: false,
};

/**
 * Completes and checks the choices.
 *
 * @throws RangeError that names the option and what it may be
 */
export function blkOptions(given: Partial<BlkOptions>): BlkOptions {
  const merged = { ...BLK_DEFAULTS, ...given };
  const options = {
    ...merged,
    physicalBlockSize: given.physicalBlockSize ?? merged.blockSize,
    segMax: merged.segMax || Math.max(1, merged.queueSize - 2),
  };
  check("queues", options.queues, within(1, 1024)(options.queues), "a number from 1 to 1024");
  check(
    "queueSize",
    options.queueSize,
    within(1, 32768)(options.queueSize) && isPowerOfTwo(options.queueSize),
    "a power of two from 1 to 32768",
  );
  check(
    "blockSize",
    options.blockSize,
    within(512, 32768)(options.blockSize) && isPowerOfTwo(options.blockSize),
    "a power of two from 512 to 32768",
  );
  check(
    "physicalBlockSize",
    options.physicalBlockSize,
    within(options.blockSize, 1 << 24)(options.physicalBlockSize) && isPowerOfTwo(options.physicalBlockSize),
    "a power of two, not below the logical block size",
  );
  check("minIoSize", options.minIoSize, within(0, 0xffff * options.blockSize)(options.minIoSize), "0 to 65535 blocks");
  check("optIoSize", options.optIoSize, within(0, 2 ** 31)(options.optIoSize), "0 to 2 GiB");
  check(
    "sizeMax",
    options.sizeMax,
    options.sizeMax === 0 || within(512, 0xffffffff)(options.sizeMax),
    "512 or more, or 0 to offer no limit (a device that offers 0 makes Linux cut requests to pieces)",
  );
  check("segMax", options.segMax, within(1, 0xffffffff)(options.segMax), "a number from 1");
  check("maxRangeSectors", options.maxRangeSectors, within(1, 0xffffffff)(options.maxRangeSectors), "a number from 1");
  check("maxRanges", options.maxRanges, within(1, 1 << 16)(options.maxRanges), "a number from 1 to 65536");
  check(
    "serial",
    JSON.stringify(options.serial),
    // deno-lint-ignore no-control-regex -- any ASCII but NUL, which pads the string
    /^[\x01-\x7f]*$/.test(options.serial) && options.serial.length <= ID_SIZE,
    "up to 20 ASCII characters",
  );
  check(
    "configWce",
    options.configWce,
    !options.configWce || options.flush || given.configWce === undefined,
    "off when flush is off (VIRTIO 1.4 §5.2.5.2)",
  );
  const { lifetime } = options;
  if (lifetime !== null) {
    // §5.2.6.2: no reserved value is ever sent.
    const good = within(0, 3)(lifetime.preEolInfo) && within(0, 11)(lifetime.typA) && within(0, 11)(lifetime.typB);
    check("lifetime", JSON.stringify(lifetime), good, "preEolInfo 0 to 3, typA and typB 0 to 11");
  }
  return options;
}

/** The features that a device with these options offers. */
export function offeredFeatures(options: BlkOptions): bigint {
  const writable = !options.readOnly;
  const table: readonly (readonly [boolean, number])[] = [
    [true, VIRTIO_F_VERSION_1],
    [options.indirect, VIRTIO_F_INDIRECT_DESC],
    [options.eventIdx, VIRTIO_F_EVENT_IDX],
    [options.packed, VIRTIO_F_RING_PACKED],
    [options.inOrder, VIRTIO_F_IN_ORDER],
    [options.ringReset, VIRTIO_F_RING_RESET],
    [options.notificationData, VIRTIO_F_NOTIFICATION_DATA],
    [options.sizeMax > 0, VIRTIO_BLK_F_SIZE_MAX],
    [options.segMaxOffered, VIRTIO_BLK_F_SEG_MAX],
    [options.geometry, VIRTIO_BLK_F_GEOMETRY],
    [options.readOnly, VIRTIO_BLK_F_RO],
    [options.blkSizeOffered, VIRTIO_BLK_F_BLK_SIZE],
    [options.flush, VIRTIO_BLK_F_FLUSH],
    [options.topology, VIRTIO_BLK_F_TOPOLOGY],
    // §5.2.5.2: CONFIG_WCE must not be offered without FLUSH.
    [options.configWce && options.flush, VIRTIO_BLK_F_CONFIG_WCE],
    [options.queues > 1, VIRTIO_BLK_F_MQ],
    [options.discard && writable, VIRTIO_BLK_F_DISCARD],
    [options.writeZeroes && writable, VIRTIO_BLK_F_WRITE_ZEROES],
    [options.lifetime !== null, VIRTIO_BLK_F_LIFETIME],
    [options.secureErase && writable, VIRTIO_BLK_F_SECURE_ERASE],
  ];
  return featureSet(...table.filter(([on]) => on).map(([, bit]) => bit));
}

function check(name: string, value: unknown, good: boolean, wanted: string): void {
  if (!good) throw new RangeError(`device option ${name}: ${value} is not ${wanted}`);
}

function within(low: number, high: number): (value: number) => boolean {
  return (value) => Number.isInteger(value) && value >= low && value <= high;
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(Math.log2(value));
}
