/**
 * The register file of virtio-mmio, version 2 (VIRTIO 1.4 §4.2): what the driver reads and writes to discover a
 * device, negotiate, set queues up, notify and take interrupts.
 *
 * The registers are a table of rows (name, read, write); the width and direction rules of §4.2.2.2 follow from
 * it. Every access counts: in a virtual machine each would be an exit.
 *
 * @module
 */

import { checkedU64, type GuestMemory } from "../../memory/guest_memory.ts";
import type { TraceSink } from "../../trace/events.ts";
import type { Device } from "../../virtio/device.ts";
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
} from "../../virtio/features.ts";
import { checkAcceptedFeatures } from "../../virtio/negotiation.ts";
import {
  statusNames,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../../virtio/status_layout.ts";
import type { Violation } from "../../virtio/violation.ts";
import { PackedVirtqueue } from "../../virtio/virtqueue/packed_virtqueue.ts";
import { SplitVirtqueue } from "../../virtio/virtqueue/split_virtqueue.ts";
import {
  MMIO,
  type MmioRegister,
  NO_SHARED_MEMORY,
  type RegisterWindow,
  VIRTIO_MMIO_INT_CONFIG,
  VIRTIO_MMIO_INT_VRING,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_VERSION_2,
} from "./mmio_layout.ts";
import { type MmioRule, mmioViolation } from "./rules.ts";

/** "vblk", little-endian. */
const VENDOR_ID = 0x6b6c6276;

/** Features that this transport has no means for: MMIO defines no register for NOTIF_CONFIG_DATA (§2.9 leaves it to the transport). */
const UNSUPPORTED = featureSet(VIRTIO_F_NOTIF_CONFIG_DATA);

/** What happened at the registers; each would be an exit of a virtual machine. */
export interface MmioCounters {
  /** Registers read by the driver. */
  reads: number;
  /** Registers written by the driver. */
  writes: number;
  /** Writes to QueueNotify, which are also among `writes`. */
  notifications: number;
  /** Times that the interrupt line went up. */
  interrupts: number;
}

interface QueueSetup {
  size: number;
  ready: boolean;
  resetting: boolean;
  /** Low and high halves of the three addresses. */
  readonly address: Record<"Desc" | "Driver" | "Device", [low: number, high: number]>;
}

interface Row {
  readonly read?: () => number;
  readonly write?: (value: number) => void;
}

/** The device's end of a virtio-mmio register window. */
export class MmioTransport implements RegisterWindow {
  /** Counts accesses and interrupts since the transport was made. */
  readonly counters: MmioCounters = { reads: 0, writes: 0, notifications: 0, interrupts: 0 };
  /** Called when the interrupt line goes up; set by the machine. */
  onInterrupt: () => void = () => {};

  readonly #device: Device;
  readonly #memory: GuestMemory;
  readonly #trace: TraceSink | undefined;
  readonly #offered: bigint;
  readonly #rows: ReadonlyMap<number, Row & { name: MmioRegister }>;

  #status = 0;
  #resetting = false;
  #accepted = 0n;
  /** VIRTIO_F_NOTIFICATION_DATA was negotiated. */
  #notificationData = false;
  #deviceFeaturesSel = 0;
  #driverFeaturesSel = 0;
  #queueSel = 0;
  #queues: QueueSetup[] = [];
  #interruptStatus = 0;

  /**
   * Puts registers in front of a device.
   *
   * @param memory the driver's memory, which the device reaches through the queues
   */
  constructor(device: Device, memory: GuestMemory, trace?: TraceSink) {
    this.#device = device;
    this.#memory = memory;
    this.#trace = trace;
    this.#offered = device.features & ~UNSUPPORTED;
    this.#rows = this.#table();
    this.#clear();
    device.connect({
      usedBuffer: () => this.#interrupt(VIRTIO_MMIO_INT_VRING),
      configChanged: () => this.#interrupt(VIRTIO_MMIO_INT_CONFIG),
      needsReset: () => this.#needsReset(),
    });
  }

  /** The device status, as the register reads. */
  get status(): number {
    return this.#status;
  }

  /** The features that the driver accepted, once FEATURES_OK is set. */
  get negotiatedFeatures(): bigint {
    return this.#status & VIRTIO_CONFIG_S_FEATURES_OK ? this.#accepted : 0n;
  }

  read(offset: number, width: 1 | 2 | 4): number {
    this.counters.reads++;
    if (offset >= MMIO.Config) return this.#readConfig(offset - MMIO.Config, width);
    const row = this.#rowAt(offset, width);
    if (row === null) return 0;
    if (row.read === undefined) return this.#ignore("register-write-only", `${row.name} was read`), 0;
    return row.read() >>> 0;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    this.counters.writes++;
    if (offset >= MMIO.Config) return this.#writeConfig(offset - MMIO.Config, width, value);
    const row = this.#rowAt(offset, width);
    if (row === null) return;
    if (row.write === undefined) return this.#ignore("register-read-only", `${row.name} was written`);
    // While a reset waits for requests in flight, nothing that a driver writes could mean anything.
    if (this.#resetting) return this.#ignore("in-reset", `${row.name} was written before the reset ended`);
    row.write(value >>> 0);
  }

  #rowAt(offset: number, width: number): (Row & { name: MmioRegister }) | null {
    const row = this.#rows.get(offset);
    if (width !== 4 || offset % 4 !== 0) {
      this.#ignore("register-width", `${width} bytes were accessed at 0x${offset.toString(16)}`);
      return null;
    }
    if (row === undefined) {
      this.#ignore("register-unknown", `0x${offset.toString(16)} was accessed`);
      return null;
    }
    return row;
  }

  #table(): ReadonlyMap<number, Row & { name: MmioRegister }> {
    const queue = () => this.#queues[this.#queueSel];
    const halves = (name: "Desc" | "Driver" | "Device", half: 0 | 1): Row => ({
      write: (value) => {
        this.#whenNotReady(`Queue${name}${half ? "High" : "Low"}`, (setup) => setup.address[name][half] = value);
      },
    });
    const rows: Partial<Record<MmioRegister, Row>> = {
      MagicValue: { read: () => VIRTIO_MMIO_MAGIC },
      Version: { read: () => VIRTIO_MMIO_VERSION_2 },
      DeviceID: { read: () => this.#device.deviceId },
      VendorID: { read: () => VENDOR_ID },
      // Selections of 2 and more are feature bits that do not exist yet: they read as zeros.
      DeviceFeatures: { read: () => word(this.#offered, this.#deviceFeaturesSel) },
      DeviceFeaturesSel: { write: (value) => this.#deviceFeaturesSel = value },
      DriverFeatures: { write: (value) => this.#acceptFeatures(value) },
      DriverFeaturesSel: { write: (value) => this.#driverFeaturesSel = value },
      QueueSel: { write: (value) => this.#queueSel = value },
      QueueSizeMax: { read: () => this.#queueSizes()[this.#queueSel] ?? 0 },
      QueueSize: { write: (value) => this.#whenNotReady("QueueSize", (setup) => setup.size = value) },
      QueueReady: { read: () => queue()?.ready ? 1 : 0, write: (value) => this.#setReady(value) },
      QueueNotify: { write: (value) => this.#notify(value) },
      InterruptStatus: { read: () => this.#interruptStatus },
      InterruptACK: { write: (value) => this.#interruptStatus &= ~value },
      Status: { read: () => this.#status, write: (value) => this.#setStatus(value) },
      QueueDescLow: halves("Desc", 0),
      QueueDescHigh: halves("Desc", 1),
      QueueDriverLow: halves("Driver", 0),
      QueueDriverHigh: halves("Driver", 1),
      QueueDeviceLow: halves("Device", 0),
      QueueDeviceHigh: halves("Device", 1),
      // The block device has no shared memory region, so none can be selected.
      SHMSel: { write: () => {} },
      SHMLenLow: { read: () => NO_SHARED_MEMORY },
      SHMLenHigh: { read: () => NO_SHARED_MEMORY },
      SHMBaseLow: { read: () => NO_SHARED_MEMORY },
      SHMBaseHigh: { read: () => NO_SHARED_MEMORY },
      QueueReset: { read: () => queue()?.resetting ? 1 : 0, write: (value) => this.#resetQueue(value) },
      ConfigGeneration: { read: () => this.#device.configGeneration },
    };
    const names = Object.keys(rows) as MmioRegister[];
    return new Map(names.map((name) => [MMIO[name], { name, ...rows[name] }]));
  }

  #readConfig(offset: number, width: 1 | 2 | 4): number {
    const bytes = new Uint8Array(4);
    this.#device.readConfig(offset, bytes.subarray(0, width));
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  #writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    if (!(this.#status & VIRTIO_CONFIG_S_FEATURES_OK)) {
      return this.#ignore("config-early", `offset ${offset} was written`);
    }
    if (this.#resetting) {
      return this.#ignore("in-reset", `offset ${offset} of the configuration was written before the reset ended`);
    }
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
    this.#device.writeConfig(offset, bytes.subarray(0, width));
  }

  #acceptFeatures(value: number): void {
    if (this.#status & VIRTIO_CONFIG_S_FEATURES_OK) {
      return this.#ignore("features-late", "DriverFeatures was written after FEATURES_OK");
    }
    const shift = BigInt(this.#driverFeaturesSel) * 32n;
    // Words above the second hold no feature we could offer; bits in them are kept to be refused. A selector
    // can be anything, so the set is bounded before it is shifted.
    if (this.#driverFeaturesSel > 3) {
      if (value !== 0) this.#accepted |= 1n << 128n;
      return;
    }
    this.#accepted = (this.#accepted & ~(0xffffffffn << shift)) | (BigInt(value) << shift);
  }

  #setStatus(value: number): void {
    if (value === 0) return this.#reset();
    const before = this.#status;
    if (before & ~value & ~VIRTIO_CONFIG_S_NEEDS_RESET) {
      this.#ignore("status-cleared", `the status went from ${statusNames(before)} to ${statusNames(value)}`);
    }
    let fresh = value & ~before & 0xff;
    if (fresh & VIRTIO_CONFIG_S_SUSPEND) {
      // §3.4.2: without VIRTIO_F_SUSPEND the bit means nothing.
      this.#ignore("suspend", "SUSPEND was set");
      fresh &= ~VIRTIO_CONFIG_S_SUSPEND;
    }
    // That bit is the device's to set.
    fresh &= ~VIRTIO_CONFIG_S_NEEDS_RESET;
    if (fresh & VIRTIO_CONFIG_S_FEATURES_OK && !this.#negotiate()) fresh &= ~VIRTIO_CONFIG_S_FEATURES_OK;
    this.#status |= fresh & ~VIRTIO_CONFIG_S_DRIVER_OK;
    if (fresh & VIRTIO_CONFIG_S_DRIVER_OK) this.#goLive();
    this.#trace?.({
      event: "device-status",
      written: value,
      status: this.#status,
      names: statusNames(this.#status),
    });
  }

  #negotiate(): boolean {
    const refusal = checkAcceptedFeatures(this.#offered, this.#accepted, this.#device.featureNames);
    if (refusal !== null) {
      this.#report(refusal, "refused");
      return false;
    }
    this.#notificationData = hasFeature(this.#accepted, VIRTIO_F_NOTIFICATION_DATA);
    this.#device.negotiated(this.#accepted);
    this.#trace?.({ event: "features", accepted: featureNames(this.#accepted, this.#device.featureNames) });
    return true;
  }

  #goLive(): void {
    if (!(this.#status & VIRTIO_CONFIG_S_FEATURES_OK)) {
      this.#report(mmioViolation("status-order", "DRIVER_OK was set without FEATURES_OK"), "device needs reset");
      this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET;
      return;
    }
    this.#status |= VIRTIO_CONFIG_S_DRIVER_OK;
    this.#queues.forEach((setup, index) => {
      if (setup.ready) this.#startQueue(index, setup);
    });
  }

  #startQueue(index: number, setup: QueueSetup): void {
    const address = ([low, high]: [number, number]) => checkedU64(low, high);
    const config = {
      memory: this.#memory,
      size: setup.size,
      descAddress: address(setup.address.Desc),
      driverAddress: address(setup.address.Driver),
      deviceAddress: address(setup.address.Device),
      eventIdx: hasFeature(this.#accepted, VIRTIO_F_EVENT_IDX),
      indirect: hasFeature(this.#accepted, VIRTIO_F_INDIRECT_DESC),
      inOrder: hasFeature(this.#accepted, VIRTIO_F_IN_ORDER),
    };
    const queue = hasFeature(this.#accepted, VIRTIO_F_RING_PACKED)
      ? PackedVirtqueue.create(config)
      : SplitVirtqueue.create(config);
    if ("rule" in queue) {
      this.#report(queue, "device needs reset", index);
      this.#needsReset();
      return;
    }
    const { descAddress, driverAddress, deviceAddress, size } = config;
    const { layout } = queue;
    this.#trace?.({ event: "queue", queue: index, layout, size, descAddress, driverAddress, deviceAddress });
    this.#device.startQueue(index, queue);
  }

  #setReady(value: number): void {
    const setup = this.#queues[this.#queueSel];
    if (setup === undefined || this.#queueSizes()[this.#queueSel] === undefined) {
      return this.#ignore("queue-unknown", `QueueReady of queue ${this.#queueSel} was written`);
    }
    if (value === 0) {
      // The driver reads the register back to learn that the queue is at rest (§4.2.2.2).
      const stopped = this.#device.stopQueue(this.#queueSel);
      if (stopped === undefined) setup.ready = false;
      else stopped.then(() => setup.ready = false);
      return;
    }
    if (setup.ready) return this.#ignore("queue-twice", `queue ${this.#queueSel} was made ready again`);
    if (!(this.#status & VIRTIO_CONFIG_S_FEATURES_OK)) {
      return this.#ignore("queue-early", `queue ${this.#queueSel} was made ready before FEATURES_OK`);
    }
    const sizeMax = this.#queueSizes()[this.#queueSel];
    if (setup.size > sizeMax) {
      return this.#ignore("queue-size-max", `QueueSize is ${setup.size}, QueueSizeMax is ${sizeMax}`);
    }
    setup.ready = true;
    setup.resetting = false;
    // Ring set-up is checked when the device is live, or at once when it is (a queue enabled again).
    if (this.#status & VIRTIO_CONFIG_S_DRIVER_OK) this.#startQueue(this.#queueSel, setup);
  }

  #whenNotReady(register: string, action: (setup: QueueSetup) => void): void {
    const setup = this.#queues[this.#queueSel];
    if (setup === undefined) return this.#ignore("queue-unknown", `${register} of queue ${this.#queueSel} was written`);
    if (setup.ready) return this.#ignore("queue-ready", `${register} of queue ${this.#queueSel} was written`);
    action(setup);
  }

  #resetQueue(value: number): void {
    const setup = this.#queues[this.#queueSel];
    if (setup === undefined) return this.#ignore("queue-unknown", `QueueReset of queue ${this.#queueSel} was written`);
    if (!hasFeature(this.negotiatedFeatures, VIRTIO_F_RING_RESET)) {
      return this.#ignore("queue-reset", `QueueReset of queue ${this.#queueSel} was written`);
    }
    if (value !== 1) return;
    const stopped = this.#device.stopQueue(this.#queueSel);
    const rest = () => {
      setup.resetting = false;
      setup.ready = false;
    };
    if (stopped === undefined) return rest();
    setup.resetting = true;
    stopped.then(rest);
  }

  #notify(value: number): void {
    this.counters.notifications++;
    // §2.9: with NOTIFICATION_DATA the upper half tells the ring position, which the ring itself tells better.
    const index = this.#notificationData ? value & 0xffff : value;
    if (!(this.#status & VIRTIO_CONFIG_S_DRIVER_OK)) {
      return this.#ignore("notify-early", `queue ${index} was notified`);
    }
    if (!this.#queues[index]?.ready) return this.#ignore("notify-unknown", `queue ${index} was notified`);
    this.#device.kick(index);
  }

  #reset(): void {
    this.#resetting = true;
    const done = this.#device.reset();
    // Until nothing is in flight the status reads as before: that is how the driver knows to wait (§2.4.2).
    if (done === undefined) this.#clear();
    else done.then(() => this.#clear());
  }

  #clear(): void {
    this.#resetting = false;
    this.#status = 0;
    this.#accepted = 0n;
    this.#notificationData = false;
    this.#deviceFeaturesSel = 0;
    this.#driverFeaturesSel = 0;
    this.#queueSel = 0;
    this.#interruptStatus = 0;
    this.#queues = this.#device.queueSizes(this.#offered).map(() => ({
      size: 0,
      ready: false,
      resetting: false,
      address: { Desc: [0, 0], Driver: [0, 0], Device: [0, 0] },
    }));
  }

  #queueSizes(): readonly number[] {
    return this.#device.queueSizes(this.#status & VIRTIO_CONFIG_S_FEATURES_OK ? this.#accepted : this.#offered);
  }

  #needsReset(): void {
    this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    // §2.1.2: once the driver runs, it is told by a configuration change notification.
    if (this.#status & VIRTIO_CONFIG_S_DRIVER_OK) this.#interrupt(VIRTIO_MMIO_INT_CONFIG);
  }

  #interrupt(reason: number): void {
    // §2.1.2: nothing is notified before DRIVER_OK, §2.4.1: nor after a reset.
    if (!(this.#status & VIRTIO_CONFIG_S_DRIVER_OK) || this.#resetting) return;
    const asserted = this.#interruptStatus !== 0;
    this.#interruptStatus |= reason;
    // The line is level-triggered (§4.2.3.4): while it is up, one more reason is no new interrupt.
    if (asserted) return;
    this.counters.interrupts++;
    this.onInterrupt();
  }

  #ignore(rule: MmioRule, found: string): void {
    this.#report(mmioViolation(rule, found), "ignored");
  }

  #report(violation: Violation, consequence: "ignored" | "refused" | "device needs reset", queue?: number): void {
    this.#trace?.({ event: "violation", queue, consequence, violation });
  }
}

/** The `index`-th 32 bits of a feature set. */
function word(features: bigint, index: number): number {
  return index > 3 ? 0 : Number((features >> BigInt(index * 32)) & 0xffffffffn);
}
