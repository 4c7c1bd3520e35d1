/**
 * A scripted virtio-mmio device for tests of the driver: a register window with no queues behind it, which records
 * every access; and a judge of what was recorded, written from the driver's clauses of VIRTIO 1.4 §4.2.2.2.
 */

import { MMIO, type MmioRegister, type RegisterWindow } from "../../src/transport/mmio/mmio_layout.ts";

/** One access to a register window. */
export interface Access {
  readonly kind: "read" | "write";
  readonly offset: number;
  readonly width: 1 | 2 | 4;
  readonly value: number;
}

const NAMES = new Map<number, string>(Object.entries(MMIO).map(([name, offset]) => [offset, name]));

/** The printed form: `read Status 0x0`, `write Config+32/1 0x1`. */
export function printAccess({ kind, offset, width, value }: Access): string {
  const where = offset >= MMIO.Config ? `Config+${offset - MMIO.Config}/${width}` : NAMES.get(offset) ?? String(offset);
  return `${kind} ${where} 0x${value.toString(16)}`;
}

/** Passes everything on, and records it. */
export class RecordingWindow implements RegisterWindow {
  readonly accesses: Access[] = [];
  readonly #inner: RegisterWindow;

  constructor(inner: RegisterWindow) {
    this.#inner = inner;
  }

  read(offset: number, width: 1 | 2 | 4): number {
    const value = this.#inner.read(offset, width);
    this.accesses.push({ kind: "read", offset, width, value });
    return value;
  }

  write(offset: number, width: 1 | 2 | 4, value: number): void {
    this.accesses.push({ kind: "write", offset, width, value });
    this.#inner.write(offset, width, value);
  }

  /** What was recorded since the last time that somebody asked, printed. */
  take(): string[] {
    return this.accesses.splice(0).map(printAccess);
  }
}

/** A device of registers only. Tests set its fields, or replace what a register does. */
export class FakeWindow extends RecordingWindow {
  features = 1n << 32n;
  accepted = 0n;
  /** Bits that the device never lets the driver set. */
  refusedStatus = 0;
  status = 0;
  readonly config: Uint8Array = new Uint8Array(96);
  generation = 0;
  queueSizes: number[] = [256];
  interruptStatus = 0;
  /** By queue: whether it is ready. */
  readonly ready: boolean[] = [];
  /** What a register reads as, instead of what it should. */
  readonly overrides: Partial<Record<MmioRegister, () => number>> = {};
  /** Called after each write, and after each read of the configuration. */
  onWrite: (register: string, value: number) => void = () => {};
  onReadConfig: (offset: number) => void = () => {};

  constructor() {
    super({
      read: (offset, width) => this.#readRegister(offset, width),
      write: (offset, width, value) => this.#writeRegister(offset, width, value),
    });
  }

  #selected: Partial<Record<string, number>> = {};

  #readRegister(offset: number, width: number): number {
    if (offset >= MMIO.Config) {
      const at = offset - MMIO.Config;
      let value = 0;
      for (let i = width - 1; i >= 0; i--) value = value * 256 + (this.config[at + i] ?? 0);
      this.onReadConfig(at);
      return value;
    }
    const name = NAMES.get(offset) as MmioRegister;
    const override = this.overrides[name];
    if (override !== undefined) return override();
    const queue = this.#selected.QueueSel ?? 0;
    const values: Partial<Record<MmioRegister, number>> = {
      MagicValue: 0x74726976,
      Version: 2,
      DeviceID: 2,
      DeviceFeatures: Number(this.features >> BigInt(32 * (this.#selected.DeviceFeaturesSel ?? 0)) & 0xffffffffn),
      QueueSizeMax: this.queueSizes[queue] ?? 0,
      QueueReady: this.ready[queue] ? 1 : 0,
      QueueReset: 0,
      InterruptStatus: this.interruptStatus,
      Status: this.status,
      ConfigGeneration: this.generation,
    };
    return values[name] ?? 0;
  }

  #writeRegister(offset: number, width: number, value: number): void {
    const name = offset >= MMIO.Config ? "Config" : NAMES.get(offset) ?? "";
    this.#selected[name] = value;
    if (name === "Config") {
      for (let i = 0; i < width; i++) this.config[offset - MMIO.Config + i] = (value >>> (8 * i)) & 0xff;
    }
    if (name === "Status") this.status = value === 0 ? 0 : value & ~this.refusedStatus;
    if (name === "Status" && value === 0) this.ready.length = 0;
    if (name === "QueueReady") this.ready[this.#selected.QueueSel ?? 0] = value === 1;
    if (name === "QueueReset" && value === 1) this.ready[this.#selected.QueueSel ?? 0] = false;
    if (name === "DriverFeatures") {
      const shift = BigInt(32 * (this.#selected.DriverFeaturesSel ?? 0));
      this.accepted = this.accepted & ~(0xffffffffn << shift) | BigInt(value >>> 0) << shift;
    }
    if (name === "InterruptACK") this.interruptStatus &= ~value;
    this.onWrite(name, value);
  }
}

const READ_ONLY = new Set<string>([
  ...["MagicValue", "Version", "DeviceID", "VendorID", "DeviceFeatures", "QueueSizeMax", "InterruptStatus"],
  ...["SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh", "ConfigGeneration"],
]);
const READ_WRITE = new Set<string>(["QueueReady", "Status", "QueueReset"]);
const SET_UP = new Set<string>([
  ...["QueueSize", "QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDriverHigh", "QueueDeviceLow"],
  "QueueDeviceHigh",
]);

/** Width in bytes and offset of every field of virtio_blk_config, without the zoned part (§5.2.4). */
const FIELDS: readonly (readonly [offset: number, width: number, bit?: number])[] = [
  ...[[0, 8], [8, 4, 1], [12, 4, 2], [16, 2, 4], [18, 1, 4], [19, 1, 4], [20, 4, 6], [24, 1, 10], [25, 1, 10]] as const,
  ...[[26, 2, 10], [28, 4, 10], [32, 1, 11], [34, 2, 12], [36, 4, 13], [40, 4, 13], [44, 4, 13], [48, 4, 14]] as const,
  ...[[52, 4, 14], [56, 1, 14], [60, 4, 16], [64, 4, 16], [68, 4, 16]] as const,
];

/** What a driver did wrong at the registers; nothing when it kept the driver's clauses of §2 to §5. */
export function driverProblems(accesses: readonly Access[]): string[] {
  const problems: string[] = [];
  const say = (access: Access, what: string) => problems.push(`${printAccess(access)}: ${what}`);
  let status = 0;
  let resetPending = false;
  let [offered, accepted] = [0n, 0n];
  let [deviceSel, driverSel, queue]: (number | null)[] = [null, null, null];
  let interrupts: number | null = null;
  const sizeMax = new Map<number, number>();
  const ready = new Set<number>();
  const resetting = new Set<number>();
  for (const access of accesses) {
    const { kind, offset, width, value } = access;
    const isRead = kind === "read";
    if (offset >= MMIO.Config) {
      const at = offset - MMIO.Config;
      const field = FIELDS.find(([start, size]) => at >= start && at < start + size);
      if (field === undefined) say(access, "no field of the configuration is there (§4.2.2.2)");
      else if (width !== Math.min(4, field[1]) || at % width !== 0) say(access, "not the field's width (§4.2.2.2)");
      else if (field[2] !== undefined && !(offered >> BigInt(field[2]) & 1n)) {
        say(access, "the field's feature was not offered (§2.5.1)");
      }
      if (!(status & 8) && !isRead) say(access, "the configuration is written before FEATURES_OK (§3.1.1)");
      if (!(status & 8) && isRead && at === 32) say(access, "writeback is read before FEATURES_OK (§5.2.5.1)");
      continue;
    }
    const name = NAMES.get(offset);
    if (name === undefined) {
      say(access, "no register is there (§4.2.2.2)");
      continue;
    }
    if (width !== 4) say(access, "not 32 bits (§4.2.2.2)");
    if (name.startsWith("SHM")) say(access, "shared memory is not expected (§4.2.3.1.1)");
    if (READ_ONLY.has(name) ? !isRead : !READ_WRITE.has(name) && isRead) say(access, "wrong direction (§4.2.2.2)");
    if (resetPending && !(name === "Status" && isRead)) say(access, "the reset is not complete (§2.4.2)");
    if (name === "DeviceFeaturesSel") deviceSel = value;
    if (name === "DriverFeaturesSel") driverSel = value;
    if (name === "QueueSel") queue = value;
    if (name === "DeviceFeatures") {
      if (deviceSel === null) say(access, "DeviceFeaturesSel was not written before (§4.2.2.2)");
      else offered |= BigInt(value) << BigInt(32 * deviceSel);
    }
    if (name === "DriverFeatures") {
      if (driverSel === null) say(access, "DriverFeaturesSel was not written before (§4.2.2.2)");
      else accepted |= BigInt(value) << BigInt(32 * driverSel);
      if (accepted & ~offered) say(access, "a feature is accepted that was not offered (§2.2.1)");
      if (status & 8) say(access, "features are accepted after FEATURES_OK (§3.1.1)");
    }
    if (name === "Status" && isRead) {
      status = value;
      if (value === 0) resetPending = false;
    } else if (name === "Status" && value === 0) {
      [resetPending, offered, accepted] = [true, 0n, 0n];
      ready.clear();
      resetting.clear();
    } else if (name === "Status") {
      if (status & ~value) say(access, "a status bit is cleared (§2.1.1)");
      if (status & 128) say(access, "the driver goes on after FAILED (§2.1.1)");
      const order = [1, 2, 8, 4];
      const fresh = order.filter((bit) => value & bit & ~status);
      const before = order.slice(0, order.indexOf(fresh.at(-1) ?? 1));
      if (fresh.length > 1 || !before.every((bit) => status & bit)) say(access, "steps are left out (§3.1.1)");
      if (value & 16) say(access, "SUSPEND is set (§3.4.1)");
      status = value;
    }
    if (name === "QueueSizeMax" && queue !== null) sizeMax.set(queue, value);
    if (name === "QueueSize" && !(value <= (sizeMax.get(queue ?? -1) ?? 0))) {
      say(access, "more than QueueSizeMax (§4.2.2.2)");
    }
    if (SET_UP.has(name) && ready.has(queue ?? -1)) say(access, "the queue is ready (§4.2.2.2)");
    if (name === "QueueReady" && !isRead && value === 1) {
      if (queue === null || resetting.has(queue)) say(access, "the queue was not seen to be reset (§4.2.2.2)");
      else ready.add(queue);
      if (!(status & 8)) say(access, "a queue is set up before FEATURES_OK (§3.1.1)");
    }
    if (name === "QueueReset" && !isRead) {
      if (!(accepted >> 40n & 1n)) say(access, "RING_RESET was not negotiated (§2.6.1)");
      resetting.add(queue ?? -1);
    }
    if (name === "QueueReset" && isRead && value === 0 && resetting.delete(queue ?? -1)) ready.delete(queue ?? -1);
    if (name === "QueueNotify" && !(status & 4)) say(access, "a notification before DRIVER_OK (§3.1.1)");
    if (name === "QueueNotify" && !ready.has(value & 0xffff)) say(access, "the queue is not ready (§2.9)");
    if (name === "InterruptStatus") interrupts = value;
    if (name === "InterruptACK") {
      if (interrupts === null) say(access, "InterruptStatus was not read before (§4.2.3.4.1)");
      if (value & ~3) say(access, "undefined bits are set (§4.2.2.2)");
      if (value & ~(interrupts ?? 0)) say(access, "what did not happen is acknowledged (§4.2.2.2)");
    }
  }
  return problems;
}
