/**
 * A machine in this process: RAM, a virtio block device behind a register window, and a guest that drives it. This
 * is the one place where the two halves meet.
 *
 * @module
 */

import { BlkDevice } from "./blk/device.ts";
import type { BlkOptions } from "./blk/options.ts";
import type { BlkObservers } from "./blk/observers.ts";
import type { BlockDriverOptions } from "./guest/block_driver.ts";
import { Guest } from "./guest/guest.ts";
import type { BlockError, Image } from "./image/image.ts";
import { GuestMemory } from "./memory/guest_memory.ts";
import { MemoryRegion } from "./memory/region.ts";
import { Statistics } from "./statistics.ts";
import type { TraceSink } from "./trace/events.ts";
import { MmioTransport } from "./transport/mmio/mmio_transport.ts";

/** Choices for a machine. */
export interface MachineOptions {
  /** What the device offers. */
  device?: Partial<BlkOptions>;
  /** What the driver does. */
  driver?: Omit<BlockDriverOptions, "trace">;
  /** Size of the guest's RAM in bytes. Default: 64 MiB. */
  ramBytes?: number;
  /** Takes every stage of every request, from both sides. */
  trace?: TraceSink;
  /** Takes failures of the host, which the guest sees only as S_IOERR. */
  hostError?: (error: BlockError) => void;
}

/**
 * Guest-physical address of RAM: not 0, so that an address of 0 is a mistake that shows; and low, since JavaScript
 * keeps numbers below 2^30 off the heap.
 */
const RAM_ADDRESS = 0x1000_0000;

/** A running machine with one disk. */
export class Machine {
  /** The disk. */
  readonly image: Image;
  /** The block device, behind the transport. */
  readonly device: BlkDevice;
  /** The register window between the two halves. */
  readonly transport: MmioTransport;
  /** The guest: what reads and writes the disk. */
  readonly guest: Guest;
  /** The memory that driver and device share. */
  readonly memory: GuestMemory;
  /** What happened so far, in numbers. */
  readonly statistics: Statistics;
  /** Those that hold the sink of the trace. */
  readonly #traced: readonly { trace?: TraceSink }[];

  private constructor(
    image: Image,
    device: BlkDevice,
    transport: MmioTransport,
    guest: Guest,
    memory: GuestMemory,
    traced: readonly { trace?: TraceSink }[],
  ) {
    this.image = image;
    this.device = device;
    this.transport = transport;
    this.guest = guest;
    this.memory = memory;
    this.statistics = new Statistics(guest.driver, transport, device);
    this.#traced = traced;
  }

  /**
   * Builds a machine around an image and boots its guest.
   *
   * @throws RangeError for an option that makes no sense
   * @throws ProbeError when the driver declines what the device needs
   */
  static async start(image: Image, options: MachineOptions = {}): Promise<Machine> {
    const { trace, hostError } = options;
    const ram = new MemoryRegion(RAM_ADDRESS, new Uint8Array(options.ramBytes ?? 64 << 20));
    const memory = new GuestMemory([ram]);
    const observers: BlkObservers = { trace, hostError };
    const driverOptions: BlockDriverOptions = { ...options.driver, trace };
    const device = new BlkDevice(image, options.device, observers);
    // The transport has something to tell at set-up and of mistakes only, so a function in between costs nothing.
    const transport = new MmioTransport(device, memory, (event) => observers.trace?.(event));
    const guest = await Guest.boot(transport, ram, driverOptions);
    if (!options.driver?.manualInterrupts) transport.onInterrupt = () => guest.driver.handleInterrupt();
    return new Machine(image, device, transport, guest, memory, [observers, driverOptions]);
  }

  /** Changes who takes the stages of requests from here on. With nobody, a request pays nothing for it. */
  traceTo(sink: TraceSink | undefined): void {
    for (const holder of this.#traced) holder.trace = sink;
  }

  /** Changes the size of the disk under the running guest, which learns of it by an interrupt. */
  resize(sizeBytes: number): Promise<void> {
    return this.device.resize(sizeBytes);
  }

  /**
   * Shuts the guest down, makes everything that was written stable, and closes the image.
   *
   * @throws BlockError when the last flush failed; the image is closed all the same
   */
  async close(): Promise<void> {
    try {
      await this.guest.driver.stop();
      if (!this.image.readOnly) await this.image.flush();
    } finally {
      await this.image.close();
    }
  }
}
