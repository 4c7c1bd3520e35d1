/**
 * Bits of the device status field (VIRTIO 1.4 §2.1), shared by driver and device.
 *
 * @module
 */

/** The driver has found the device. */
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 1;
/** The driver knows how to drive it. */
export const VIRTIO_CONFIG_S_DRIVER = 2;
/** The driver is ready: the device is live. */
export const VIRTIO_CONFIG_S_DRIVER_OK = 4;
/** Negotiation is complete; the device leaves the bit clear when it refuses. */
export const VIRTIO_CONFIG_S_FEATURES_OK = 8;
/** The device is suspended (needs VIRTIO_F_SUSPEND, which vblk does not offer). */
export const VIRTIO_CONFIG_S_SUSPEND = 16;
/** The device met an error that only a reset can mend. */
export const VIRTIO_CONFIG_S_NEEDS_RESET = 64;
/** The driver has given up. */
export const VIRTIO_CONFIG_S_FAILED = 128;

const NAMES: readonly (readonly [number, string])[] = [
  [VIRTIO_CONFIG_S_ACKNOWLEDGE, "ACKNOWLEDGE"],
  [VIRTIO_CONFIG_S_DRIVER, "DRIVER"],
  [VIRTIO_CONFIG_S_FEATURES_OK, "FEATURES_OK"],
  [VIRTIO_CONFIG_S_DRIVER_OK, "DRIVER_OK"],
  [VIRTIO_CONFIG_S_SUSPEND, "SUSPEND"],
  [VIRTIO_CONFIG_S_NEEDS_RESET, "DEVICE_NEEDS_RESET"],
  [VIRTIO_CONFIG_S_FAILED, "FAILED"],
];

/** The names of the bits set in `status`, in the order in which a driver sets them; `"0"` for a device after reset. */
export function statusNames(status: number): string {
  const names = NAMES.filter(([bit]) => status & bit).map(([, name]) => name);
  return names.length === 0 ? "0" : names.join(" ");
}
