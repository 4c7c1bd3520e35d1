/**
 * Layout of the area that outlives the back-end ("Inflight I/O tracking"): a region for each queue, and behind them a
 * place of vblk's own.
 *
 * The regions are QueueRegionSplit and QueueRegionPacked of the text. How far they lie apart is up to the back-end that
 * made the area; here it is the size of the larger one, so that the area does not depend on the layout of the rings.
 *
 * @module
 */

/** QueueRegionSplit and QueueRegionPacked: u64 features, u16 version, u16 desc_num. */
export const REGION_VERSION = 8;
export const REGION_DESC_NUM = 10;
/** The version that the text describes; 0 stands for an area that holds nothing. */
export const INFLIGHT_VERSION = 1;

/** QueueRegionSplit. */
export const SPLIT_REGION = { lastBatchHead: 12, usedIdx: 14, desc: 16 } as const;
/** DescStateSplit: u8 inflight, u8 padding[5], u16 next, u64 counter. */
export const SPLIT_STATE = { inflight: 0, next: 6, counter: 8, bytes: 16 } as const;

/** QueueRegionPacked; its descriptors start at the next multiple of 8 behind 7 bytes of padding. */
export const PACKED_REGION = {
  freeHead: 12,
  oldFreeHead: 14,
  usedIdx: 16,
  oldUsedIdx: 18,
  usedWrap: 20,
  oldUsedWrap: 21,
  desc: 32,
} as const;
/** DescStatePacked: u8 inflight, padding, u16 next, last, num, u64 counter, u16 id, flags, u32 len, u64 addr. */
export const PACKED_STATE = {
  inflight: 0,
  next: 2,
  last: 4,
  num: 6,
  counter: 8,
  id: 16,
  flags: 18,
  len: 20,
  addr: 24,
  bytes: 32,
} as const;

/** Size of the region of one queue, in bytes. */
export function queueRegionBytes(queueSize: number): number {
  return Math.ceil((PACKED_REGION.desc + queueSize * PACKED_STATE.bytes) / 64) * 64;
}

/**
 * Behind the regions: the last write of the driver to the configuration space. A front-end does not repeat it to a
 * back-end that was started again, and the driver still believes it: a disk whose cache was switched off would lose
 * what it promised to keep. u32 magic, u16 offset, u16 length, bytes.
 */
export const CONFIG_NOTE = { magic: 0, offset: 4, length: 6, data: 8, bytes: 64 } as const;
/** "vblk". */
export const CONFIG_NOTE_MAGIC = 0x6b6c6276;

/** The longest ring that QEMU gives a guest (its VIRTQUEUE_MAX_SIZE). */
const FRONT_END_MAX_SIZE = 1024;

/**
 * How many entries each ring gets in an area that is made here for rings of `queueSize`. QEMU 10 asks for as many as its
 * property queue-size says, and lets the guest have rings of 1024 descriptors all the same. The size of the area is the
 * back-end's to choose, and comes back with it.
 */
export function roomyQueueSize(queueSize: number): number {
  return Math.max(queueSize, FRONT_END_MAX_SIZE);
}

/** Size of the whole area, in bytes. */
export function inflightAreaBytes(queues: number, queueSize: number): number {
  return queues * queueRegionBytes(queueSize) + CONFIG_NOTE.bytes;
}

/** A queue's region, seen in each way it is needed. */
export class QueueRegion {
  /** Size of the array of descriptor states. */
  readonly queueSize: number;
  readonly view: DataView;
  readonly bytes: Uint8Array;
  readonly words: Uint16Array;

  /** @param area the whole area, at an even address */
  constructor(area: Uint8Array, index: number, queueSize: number) {
    const lengthBytes = queueRegionBytes(queueSize);
    const offset = area.byteOffset + index * lengthBytes;
    this.queueSize = queueSize;
    this.view = new DataView(area.buffer, offset, lengthBytes);
    this.bytes = new Uint8Array(area.buffer, offset, lengthBytes);
    this.words = new Uint16Array(area.buffer, offset, lengthBytes / 2);
  }

  /** Whether a back-end has kept a record here that was not closed. */
  get inUse(): boolean {
    return this.version !== 0;
  }

  /** The version field. */
  get version(): number {
    return this.view.getUint16(REGION_VERSION, true);
  }

  /** Fills the region with zeros: nothing is in flight, and nothing is known. */
  clear(): void {
    this.setWord(REGION_VERSION, 0);
    this.bytes.fill(0);
  }

  /** Says that all the rest is filled in. */
  begin(): void {
    this.setWord(REGION_DESC_NUM, this.queueSize);
    this.setWord(REGION_VERSION, INFLIGHT_VERSION);
  }

  /** Says that the ring is at rest: where it goes on is for the front-end to say. */
  end(): void {
    this.setWord(REGION_VERSION, 0);
  }

  /** Reads a 16-bit field. */
  word(at: number): number {
    return Atomics.load(this.words, at / 2);
  }

  /**
   * Writes a 16-bit field. Atomically, not for another reader (there is none before the back-end is gone), but so that
   * no compiler may change the order of these writes.
   */
  setWord(at: number, value: number): void {
    Atomics.store(this.words, at / 2, value);
  }

  /** Reads a byte. */
  byte(at: number): number {
    return Atomics.load(this.bytes, at);
  }

  /** Writes a byte, likewise in order. */
  setByte(at: number, value: number): void {
    Atomics.store(this.bytes, at, value);
  }

  /** Reads a counter. */
  counter(at: number): bigint {
    return this.view.getBigUint64(at, true);
  }

  /** Writes a counter below 2^53. */
  setCounter(at: number, value: number): void {
    this.view.setUint32(at, value >>> 0, true);
    this.view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
  }
}
