/**
 * Register layout of virtio-mmio, version 2 (VIRTIO 1.4 §4.2.2), shared by driver and device.
 *
 * @module
 */

/** "virt", little-endian. */
export const VIRTIO_MMIO_MAGIC = 0x74726976;
/** Version that is not the legacy one. */
export const VIRTIO_MMIO_VERSION_2 = 2;

/** Offsets of the control registers; all are 32 bits wide. */
export const MMIO = {
  MagicValue: 0x000,
  Version: 0x004,
  DeviceID: 0x008,
  VendorID: 0x00c,
  DeviceFeatures: 0x010,
  DeviceFeaturesSel: 0x014,
  DriverFeatures: 0x020,
  DriverFeaturesSel: 0x024,
  QueueSel: 0x030,
  QueueSizeMax: 0x034,
  QueueSize: 0x038,
  QueueReady: 0x044,
  QueueNotify: 0x050,
  InterruptStatus: 0x060,
  InterruptACK: 0x064,
  Status: 0x070,
  QueueDescLow: 0x080,
  QueueDescHigh: 0x084,
  QueueDriverLow: 0x090,
  QueueDriverHigh: 0x094,
  QueueDeviceLow: 0x0a0,
  QueueDeviceHigh: 0x0a4,
  SHMSel: 0x0ac,
  SHMLenLow: 0x0b0,
  SHMLenHigh: 0x0b4,
  SHMBaseLow: 0x0b8,
  SHMBaseHigh: 0x0bc,
  QueueReset: 0x0c0,
  ConfigGeneration: 0x0fc,
  /** The device-specific configuration space starts here, at any width. */
  Config: 0x100,
} as const;

/** Name of a control register. */
export type MmioRegister = keyof typeof MMIO;

/** Bits of InterruptStatus and InterruptACK. */
export const VIRTIO_MMIO_INT_VRING = 1;
/** InterruptStatus: the configuration changed (§4.2.2). */
export const VIRTIO_MMIO_INT_CONFIG = 2;

/** The value that names no shared memory region: its length is -1, its base all ones (§4.2.2). */
export const NO_SHARED_MEMORY = 0xffffffff;

/**
 * What a driver needs of a machine to reach a device: loads and stores in its register window. A transport
 * implements it; so does whoever maps the window of a real one.
 */
export interface RegisterWindow {
  /** Reads `width` bytes at `offset`. */
  read(offset: number, width: 1 | 2 | 4): number;
  /** Writes the low `width` bytes of `value` at `offset`. */
  write(offset: number, width: 1 | 2 | 4, value: number): void;
}
