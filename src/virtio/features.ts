/**
 * Feature bits that belong to no device type (VIRTIO 1.4 §6), and the rules of negotiation (§2.2).
 *
 * Feature sets are `bigint`: they have 64 bits (128 in later transports) and are looked at only while a device
 * is set up, never on the way of a request.
 *
 * @module
 */

/** The driver may use descriptors that point to a table of descriptors (§2.7.5.3, §2.8.7). */
export const VIRTIO_F_INDIRECT_DESC = 28;
/** `used_event` and `avail_event` replace the notification flags (§2.7.7, §2.8.10). */
export const VIRTIO_F_EVENT_IDX = 29;
/** The device follows the standard, not the drafts before it. */
export const VIRTIO_F_VERSION_1 = 32;
/** Packed virtqueues (§2.8) instead of split ones (§2.7). */
export const VIRTIO_F_RING_PACKED = 34;
/** The device uses buffers in the order in which they were made available. */
export const VIRTIO_F_IN_ORDER = 35;
/** Notifications from the driver carry the ring position (§2.9). */
export const VIRTIO_F_NOTIFICATION_DATA = 38;
/** Notifications from the driver carry a value that the device chose (§2.9); only PCI defines where it is read. */
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39;
/** A queue can be reset alone (§2.6.1). */
export const VIRTIO_F_RING_RESET = 40;

const NAMES: Record<number, string> = {
  24: "NOTIFY_ON_EMPTY",
  27: "ANY_LAYOUT",
  [VIRTIO_F_INDIRECT_DESC]: "INDIRECT_DESC",
  [VIRTIO_F_EVENT_IDX]: "EVENT_IDX",
  [VIRTIO_F_VERSION_1]: "VERSION_1",
  33: "ACCESS_PLATFORM",
  [VIRTIO_F_RING_PACKED]: "RING_PACKED",
  [VIRTIO_F_IN_ORDER]: "IN_ORDER",
  36: "ORDER_PLATFORM",
  37: "SR_IOV",
  [VIRTIO_F_NOTIFICATION_DATA]: "NOTIFICATION_DATA",
  [VIRTIO_F_NOTIF_CONFIG_DATA]: "NOTIF_CONFIG_DATA",
  [VIRTIO_F_RING_RESET]: "RING_RESET",
  41: "ADMIN_VQ",
  43: "SUSPEND",
};

/** The set that holds the given bits. */
export function featureSet(...bits: number[]): bigint {
  return bits.reduce((set, bit) => set | (1n << BigInt(bit)), 0n);
}

/** Whether `features` holds `bit`. */
export function hasFeature(features: bigint, bit: number): boolean {
  return (features >> BigInt(bit) & 1n) === 1n;
}

/** The bits of `features`, lowest first. */
export function featureBits(features: bigint): number[] {
  const bits: number[] = [];
  for (let bit = 0, rest = features; rest > 0n; bit++, rest >>= 1n) {
    if (rest & 1n) bits.push(bit);
  }
  return bits;
}

/**
 * The names of the bits of `features`, lowest first.
 *
 * @param deviceNames names of the bits that belong to the device type
 */
export function featureNames(features: bigint, deviceNames: Readonly<Record<number, string>> = {}): string[] {
  return featureBits(features).map((bit) => NAMES[bit] ?? deviceNames[bit] ?? `BIT_${bit}`);
}
