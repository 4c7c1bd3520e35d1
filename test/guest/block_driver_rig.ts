/** What the tests of the block driver share: a driver on a scripted device, and one on the real device. */

import { BlkDevice } from "../../src/blk/device.ts";
import type { BlkOptions } from "../../src/blk/options.ts";
import { GuestAllocator } from "../../src/guest/allocator.ts";
import { BlockDriver, type BlockDriverOptions } from "../../src/guest/block_driver.ts";
import { type RequestSlot } from "../../src/guest/request_slot.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { MmioTransport } from "../../src/transport/mmio/mmio_transport.ts";
import { FakeWindow, RecordingWindow } from "./fake_window.ts";

export const RAM = 0x10000;
export const VERSION_1 = 1n << 32n;

export function fake(options: BlockDriverOptions = {}): { window: FakeWindow; driver: BlockDriver; ram: MemoryRegion } {
  const window = new FakeWindow();
  const ram = new MemoryRegion(RAM, new Uint8Array(1 << 20));
  return { window, driver: new BlockDriver(window, new GuestAllocator(ram), options), ram };
}

/** A driver on the real device, with every register access recorded. */
export async function real(device: Partial<BlkOptions> = {}, options: BlockDriverOptions = {}) {
  const ram = new MemoryRegion(RAM, new Uint8Array(1 << 20));
  const blk = new BlkDevice(new RawImage(new MemoryStorage(1 << 20)), device);
  const transport = new MmioTransport(blk, new GuestMemory([ram]));
  const window = new RecordingWindow(transport);
  const driver = new BlockDriver(window, new GuestAllocator(ram), options);
  await driver.start();
  transport.onInterrupt = () => driver.handleInterrupt();
  return { driver, window, transport, blk, ram };
}

export function capacity(window: FakeWindow, sectors: number): void {
  new DataView(window.config.buffer).setBigUint64(0, BigInt(sectors), true);
}

/** Submits a flush and kicks. */
export function flush(driver: BlockDriver, queue = 0): Promise<RequestSlot> {
  return new Promise((done) => {
    const slot = driver.take();
    driver.begin(slot, 4, 0);
    driver.end(slot);
    driver.submit(slot, queue, done);
    driver.kick(queue);
  });
}
