/**
 * How a driver finds a virtio-mmio device, agrees with it on features and sets its queues up: the driver's half of
 * VIRTIO 1.4 §3.1.1 and §4.2.
 *
 * @module
 */

import {
  MMIO,
  type MmioRegister,
  type RegisterWindow,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_VERSION_2,
} from "../transport/mmio/mmio_layout.ts";
import { featureBits, hasFeature, VIRTIO_F_VERSION_1 } from "../virtio/features.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from "../virtio/status_layout.ts";
import type { QueueAddresses } from "./driver_queue.ts";

/** The driver gave up on a device. */
export class ProbeError extends Error {
  /** Always `"ProbeError"`: what a stack trace begins with. */
  override readonly name = "ProbeError";
}

/** A virtio-mmio register window, with the driver's procedures. */
export class MmioProbe {
  readonly #window: RegisterWindow;

  /** Looks at the device behind `window` when told to. */
  constructor(window: RegisterWindow) {
    this.#window = window;
  }

  /** Reads a control register. */
  read(register: MmioRegister): number {
    return this.#window.read(MMIO[register], 4);
  }

  /** Writes a control register. */
  write(register: MmioRegister, value: number): void {
    this.#window.write(MMIO[register], 4, value);
  }

  /**
   * Looks at the identity registers (§4.2.3.1.1).
   *
   * @returns the device ID; 0 when no device is there, which is no error
   * @throws ProbeError when this is not a device that the driver can talk to
   */
  identify(): number {
    const magic = this.read("MagicValue");
    if (magic !== VIRTIO_MMIO_MAGIC) throw new ProbeError(`no virtio-mmio device: magic 0x${magic.toString(16)}`);
    const version = this.read("Version");
    if (version !== VIRTIO_MMIO_VERSION_2) throw new ProbeError(`virtio-mmio version ${version}, not 2`);
    return this.read("DeviceID");
  }

  /** Resets the device and waits until nothing of it is in flight (§2.4.2). */
  async reset(): Promise<void> {
    this.write("Status", 0);
    while (this.read("Status") !== 0) await turn();
  }

  /** Adds bits to the device status. */
  addStatus(bits: number): void {
    this.write("Status", this.read("Status") | bits);
  }

  /**
   * Steps 2 to 6 of §3.1.1.
   *
   * @param choose picks from what the device offers
   * @returns the negotiated features
   * @throws ProbeError when the device refuses them
   */
  negotiate(choose: (offered: bigint) => bigint): bigint {
    this.addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    this.addStatus(VIRTIO_CONFIG_S_DRIVER);
    const offered = this.#offered();
    if (!hasFeature(offered, VIRTIO_F_VERSION_1)) {
      this.fail();
      throw new ProbeError("the device is a legacy one: it does not offer VERSION_1");
    }
    const accepted = choose(offered);
    for (let word = 0; word < 2; word++) {
      this.write("DriverFeaturesSel", word);
      this.write("DriverFeatures", Number((accepted >> BigInt(32 * word)) & 0xffffffffn));
    }
    this.addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
    if (!(this.read("Status") & VIRTIO_CONFIG_S_FEATURES_OK)) {
      this.fail();
      throw new ProbeError(`the device refused the features ${featureBits(accepted).join(", ")}`);
    }
    return accepted;
  }

  /**
   * Largest size of a queue.
   *
   * @returns 0 when there is no such queue
   * @throws ProbeError when the queue is in use already
   */
  queueSizeMax(index: number): number {
    this.write("QueueSel", index);
    if (this.read("QueueReady") !== 0) throw new ProbeError(`queue ${index} is in use already`);
    return this.read("QueueSizeMax");
  }

  /** Tells the device where a queue is, and makes it ready (§4.2.3.2). */
  setUpQueue(index: number, size: number, addresses: QueueAddresses): void {
    this.write("QueueSel", index);
    this.write("QueueSize", size);
    const halves = (address: number) => [address >>> 0, Math.floor(address / 0x1_0000_0000)];
    const rows = [["Desc", addresses.desc], ["Driver", addresses.driver], ["Device", addresses.device]] as const;
    for (const [name, address] of rows) {
      const [low, high] = halves(address);
      this.write(`Queue${name}Low`, low);
      this.write(`Queue${name}High`, high);
    }
    this.write("QueueReady", 1);
  }

  /** Resets one queue and waits until it is at rest (§2.6.1.1.2). */
  async resetQueue(index: number): Promise<void> {
    this.write("QueueSel", index);
    this.write("QueueReset", 1);
    while (this.read("QueueReset") !== 0) {
      await turn();
      // Another queue may have been selected meanwhile.
      this.write("QueueSel", index);
    }
    if (this.read("QueueReady") !== 0) throw new ProbeError(`queue ${index} did not stop`);
  }

  /** The driver gives up on the device (§3.1.1); only a reset makes it usable again. */
  fail(): void {
    this.addStatus(VIRTIO_CONFIG_S_FAILED);
  }

  /** Step 8 of §3.1.1: the device is live. */
  goLive(): void {
    this.addStatus(VIRTIO_CONFIG_S_DRIVER_OK);
  }

  /** Reads a field of the configuration space, with accesses of its own width (§4.2.2.2). */
  readConfig(offset: number, width: 1 | 2 | 4 | 8): number {
    const at = MMIO.Config + offset;
    if (width !== 8) return this.#window.read(at, width);
    return this.#window.read(at, 4) + this.#window.read(at + 4, 4) * 0x1_0000_0000;
  }

  /** Writes a field of the configuration space. */
  writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#window.write(MMIO.Config + offset, width, value);
  }

  /** Runs `action`, which reads several fields, until the device did not change them meanwhile (§2.5.1). */
  consistently<T>(action: () => T): T {
    for (;;) {
      const before = this.read("ConfigGeneration");
      const result = action();
      if (this.read("ConfigGeneration") === before) return result;
    }
  }

  #offered(): bigint {
    let features = 0n;
    for (let word = 0; word < 2; word++) {
      this.write("DeviceFeaturesSel", word);
      features |= BigInt(this.read("DeviceFeatures")) << BigInt(32 * word);
    }
    return features;
  }
}

/** Lets the event loop go round once. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
