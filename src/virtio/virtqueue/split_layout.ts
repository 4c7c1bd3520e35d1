/**
 * Memory layout of the split virtqueue (VIRTIO 1.4 §2.7), shared by driver and device.
 *
 * @module
 */

/** Size of a descriptor: le64 addr, le32 len, le16 flags, le16 next. */
export const VIRTQ_DESC_SIZE = 16;
/** The chain continues at `next`. */
export const VIRTQ_DESC_F_NEXT = 1;
/** The buffer is device-writable; otherwise device-readable. */
export const VIRTQ_DESC_F_WRITE = 2;
/** The buffer holds a table of descriptors. */
export const VIRTQ_DESC_F_INDIRECT = 4;
/** In the available ring's flags: the driver wants no used buffer notifications. */
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
/** In the used ring's flags: the device wants no available buffer notifications. */
export const VIRTQ_USED_F_NO_NOTIFY = 1;
/** The largest queue (§2.7): a free-running 16-bit index must tell full from empty. */
export const VIRTQ_MAX_SIZE = 32768;

/** Alignment of the descriptor table, the available ring and the used ring, in bytes (§2.7). */
export const SPLIT_ALIGNMENT = { desc: 16, driver: 2, device: 4 } as const;

/** Sizes of the three parts for a queue of `size` descriptors, in bytes (§2.7). */
export function splitSizes(size: number): { desc: number; driver: number; device: number } {
  return { desc: VIRTQ_DESC_SIZE * size, driver: 6 + 2 * size, device: 6 + 8 * size };
}

/** Offsets in the available ring: flags, idx, ring[], used_event. */
export const AVAIL_FLAGS = 0;
export const AVAIL_IDX = 2;
export const AVAIL_RING = 4;
/** Offsets in the used ring: flags, idx, ring[] of (le32 id, le32 len), avail_event. */
export const USED_FLAGS = 0;
export const USED_IDX = 2;
export const USED_RING = 4;

/** Offset of `used_event`, which the driver writes behind the available ring. */
export function usedEventOffset(size: number): number {
  return AVAIL_RING + 2 * size;
}

/** Offset of `avail_event`, which the device writes behind the used ring. */
export function availEventOffset(size: number): number {
  return USED_RING + 8 * size;
}
