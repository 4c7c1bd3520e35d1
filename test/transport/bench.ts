/**
 * A register file on a device that only listens, with the driver's steps as short calls: what the tests of the
 * transport share.
 */

import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import type { TraceEvent } from "../../src/trace/events.ts";
import { MMIO, type MmioRegister } from "../../src/transport/mmio/mmio_layout.ts";
import { MmioTransport } from "../../src/transport/mmio/mmio_transport.ts";
import type { Violation } from "../../src/virtio/violation.ts";
import { StubDevice } from "./stub_device.ts";

export const [ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND, NEEDS_RESET, FAILED] = [1, 2, 4, 8, 16, 64, 128];
export const READY = ACKNOWLEDGE | DRIVER | FEATURES_OK;
export const LIVE = READY | DRIVER_OK;
export const RAM = 0x1000;
export const [VRING, CONFIG_CHANGE] = [1, 2];

/** Registers by direction, as the table of §4.2.2 has them. */
export const READ_ONLY: readonly MmioRegister[] = [
  ...["MagicValue", "Version", "DeviceID", "VendorID", "DeviceFeatures", "QueueSizeMax", "InterruptStatus"] as const,
  ...["SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh", "ConfigGeneration"] as const,
];
export const WRITE_ONLY: readonly MmioRegister[] = [
  ...["DeviceFeaturesSel", "DriverFeatures", "DriverFeaturesSel", "QueueSel", "QueueSize", "QueueNotify"] as const,
  ...["InterruptACK", "QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDriverHigh"] as const,
  ...["QueueDeviceLow", "QueueDeviceHigh", "SHMSel"] as const,
];
export const READ_WRITE: readonly MmioRegister[] = ["QueueReady", "Status", "QueueReset"];

export class Bench {
  readonly device = new StubDevice();
  readonly ram = new MemoryRegion(RAM, new Uint8Array(16384));
  readonly violations: Violation[] = [];
  readonly statuses: [written: number, status: number][] = [];
  readonly transport: MmioTransport;
  interrupts = 0;

  constructor(prepare: (device: StubDevice) => void = () => {}) {
    prepare(this.device);
    const trace = (event: TraceEvent) => {
      if (event.event === "violation") this.violations.push(event.violation);
      if (event.event === "device-status") this.statuses.push([event.written, event.status]);
    };
    this.transport = new MmioTransport(this.device, new GuestMemory([this.ram]), trace);
    this.transport.onInterrupt = () => this.interrupts++;
  }

  read(register: MmioRegister): number {
    return this.transport.read(MMIO[register], 4);
  }

  write(register: MmioRegister, value: number): void {
    this.transport.write(MMIO[register], 4, value);
  }

  get status(): number {
    return this.read("Status");
  }

  set status(value: number) {
    this.write("Status", value);
  }

  /** The rules broken since the last time that somebody asked. */
  rules(): string[] {
    return this.violations.splice(0).map(({ rule }) => rule);
  }

  accept(features: bigint): void {
    for (const word of [0, 1]) {
      this.write("DriverFeaturesSel", word);
      this.write("DriverFeatures", Number(features >> BigInt(32 * word) & 0xffffffffn));
    }
  }

  /** Up to FEATURES_OK, with all that is offered. */
  negotiate(features = this.device.features): this {
    this.status = ACKNOWLEDGE;
    this.status = ACKNOWLEDGE | DRIVER;
    this.accept(features);
    this.status = READY;
    return this;
  }

  setUpQueue(index: number, size: number, at = RAM + index * 4096): this {
    this.write("QueueSel", index);
    this.write("QueueSize", size);
    for (const [i, part] of (["Desc", "Driver", "Device"] as const).entries()) {
      this.write(`Queue${part}Low`, at + i * 1024);
      this.write(`Queue${part}High`, 0);
    }
    this.write("QueueReady", 1);
    return this;
  }

  /** A live device with both queues. */
  live(): this {
    this.negotiate().setUpQueue(0, 16).setUpQueue(1, 8);
    this.status = LIVE;
    this.device.take();
    return this;
  }
}

/** Lets what was promised happen. */
export const settle = () => new Promise((resolve) => setTimeout(resolve, 0));
