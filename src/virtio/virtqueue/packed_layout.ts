/**
 * Memory layout of the packed virtqueue (VIRTIO 1.4 §2.8), shared by driver and device.
 *
 * @module
 */

/** Size of a descriptor: le64 addr, le32 len, le16 id, le16 flags. */
export const PVIRTQ_DESC_SIZE = 16;
export const PVIRTQ_DESC_F_NEXT = 1;
export const PVIRTQ_DESC_F_WRITE = 2;
export const PVIRTQ_DESC_F_INDIRECT = 4;
/** Equal to the driver's wrap counter in an available descriptor. */
export const PVIRTQ_DESC_F_AVAIL = 1 << 7;
/** Equal to the device's wrap counter in a used descriptor. */
export const PVIRTQ_DESC_F_USED = 1 << 15;

/** Offsets in a descriptor. */
export const PVIRTQ_DESC_LEN = 8;
export const PVIRTQ_DESC_ID = 12;
export const PVIRTQ_DESC_FLAGS = 14;

/** Values of the event suppression flags (§2.8.10). */
export const RING_EVENT_FLAGS_ENABLE = 0;
export const RING_EVENT_FLAGS_DISABLE = 1;
/** Only when the descriptor at the given offset and wrap counter is reached; valid with VIRTIO_F_EVENT_IDX. */
export const RING_EVENT_FLAGS_DESC = 2;
/** Offsets in an event suppression structure. */
export const EVENT_OFF_WRAP = 0;
export const EVENT_FLAGS = 2;

/** The largest queue (§2.8). Any size up to it is allowed, not only powers of two. */
export const PVIRTQ_MAX_SIZE = 32768;

/** Alignment of the descriptor ring and the two event suppression structures, in bytes (§2.8.10.1). */
export const PACKED_ALIGNMENT = { desc: 16, driver: 4, device: 4 } as const;

/** Sizes of the three parts for a queue of `size` descriptors, in bytes (§2.8.10.1). */
export function packedSizes(size: number): { desc: number; driver: number; device: number } {
  return { desc: PVIRTQ_DESC_SIZE * size, driver: 4, device: 4 };
}
