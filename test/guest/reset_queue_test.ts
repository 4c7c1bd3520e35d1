/** Reset of one queue (VIRTIO 1.4 §2.6.1), driver and device together; requests are held in flight by the image. */

import { assert, assertEquals } from "@std/assert";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import type { SegmentList } from "../../src/memory/segment_list.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { MMIO, type MmioRegister, type RegisterWindow } from "../../src/transport/mmio/mmio_layout.ts";
import { MmioTransport } from "../../src/transport/mmio/mmio_transport.ts";

/** A disk whose reads wait until the test lets them go. */
class HeldImage extends RawImage {
  hold = false;
  started = 0;
  readonly #waiting: (() => void)[] = [];

  override read(offset: number, into: SegmentList): void | Promise<void> {
    this.started++;
    if (!this.hold) return super.read(offset, into);
    return new Promise<void>((resolve) => this.#waiting.push(resolve)).then(() => super.read(offset, into));
  }

  /** Lets all reads go that wait. */
  release(): void {
    this.hold = false;
    for (const go of this.#waiting.splice(0)) go();
  }
}

async function boot(packed: boolean): Promise<{ image: HeldImage; machine: Machine }> {
  const image = new HeldImage(new MemoryStorage(1 << 20));
  return { image, machine: await Machine.start(image, { device: { packed }, driver: { queueSize: 16 } }) };
}

/** Lets the event loop go round once. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** How a promise ended, as text. */
function outcome(promise: Promise<unknown>): Promise<string> {
  return promise.then(() => "done", (error) => (error as Error).message);
}

for (const layout of ["split", "packed"] as const) {
  Deno.test(`${layout} queue: after a reset no request of the queue is executed, nothing is returned, and the driver is not notified (VIRTIO 1.4 §2.6.1.1.1)`, async () => {
    const { image, machine } = await boot(layout === "packed");
    image.hold = true;
    const { driver } = machine.guest;
    const requests = [outcome(machine.guest.read(0, 512)), outcome(machine.guest.read(512, 512))];
    await turn();
    assertEquals([image.started, driver.inFlightCount], [2, 2]);
    const registers = driver.registers;
    const [queue] = driver.queues;
    const { desc, driver: driverArea, device } = queue.addresses;
    registers.write("QueueSel", 0);
    registers.write("QueueReset", 1);
    // From here on the device may not touch the rings, whatever the driver does with them.
    const rings = () => [desc, driverArea, device].map((at) => driver.allocator.bytes(at, 64).slice());
    const before = rings();
    const interrupts = machine.transport.counters.interrupts;
    assertEquals(registers.read("QueueReset"), 1, "requests are in flight, so the reset is not over");
    registers.write("QueueNotify", 0);
    image.release();
    while (registers.read("QueueReset") !== 0) await turn();
    assertEquals(registers.read("QueueReady"), 0);
    registers.write("QueueNotify", 0);
    await turn();
    assertEquals([rings(), machine.transport.counters.interrupts, image.started], [before, interrupts, 2]);
    // The driver finds nothing used either; the two requests end when it resets the device.
    driver.poll();
    assertEquals(driver.inFlightCount, 2);
    await driver.stop();
    assertEquals((await Promise.all(requests)).map((text) => text.includes("was reset")), [true, true]);
    image.close();
  });

  Deno.test(`${layout} queue: after a reset the queue starts afresh, with the size and the addresses that the driver sets then (VIRTIO 1.4 §2.6.1.1.1, §2.6.1.2.1)`, async () => {
    const { machine } = await boot(layout === "packed");
    const { guest } = machine;
    const pattern = Uint8Array.from({ length: 1024 }, (_, i) => i * 7);
    await guest.write(2048, pattern);
    const places = new Set([JSON.stringify(guest.driver.queues[0].addresses)]);
    for (const size of [8, 4, 3, 16].filter((size) => layout === "packed" || size !== 3)) {
      // An odd number of requests, so that no index and no wrap counter is where a new queue begins.
      for (let i = 0; i < 19; i++) assertEquals(await guest.read(2048, 1024), pattern);
      await guest.driver.resetQueue(0, size);
      const [queue] = guest.driver.queues;
      assertEquals([queue.size, queue.freeCount], [size, size]);
      places.add(JSON.stringify(queue.addresses));
      assertEquals(queue.position, layout === "packed" ? 0x8000 : 0);
    }
    assert(places.size >= 3, "the queue was at other addresses too");
    assertEquals(await guest.read(2048, 1024), pattern);
    await machine.close();
  });

  Deno.test(`${layout} queue: the driver waits until a reset is over, and sets the queue up as at first (VIRTIO 1.4 §2.6.1.1.2, §2.6.1.2.2)`, async () => {
    const { image, machine } = await boot(layout === "packed");
    const { driver } = machine.guest;
    image.hold = true;
    const request = outcome(machine.guest.read(0, 512));
    await turn();
    const accesses: [kind: "read" | "write", register: MmioRegister, value: number][] = [];
    const stopRecording = record(machine.transport, accesses);
    let over = false;
    const reset = driver.resetQueue(0).then(() => over = true);
    for (let i = 0; i < 3; i++) await turn();
    assert(!over, "the driver went on while a request was in flight");
    const polls = accesses.filter(([kind, register, value]) =>
      kind === "read" && register === "QueueReset" && value === 1
    );
    assert(polls.length >= 2, "the driver looked once and no more");
    assert(!accesses.some(([kind, register]) => kind === "write" && register === "QueueReady"));
    image.release();
    await reset;
    stopRecording();
    assert((await request).includes("was reset"));
    // What follows the last poll: the queue is at rest, then it is set up as §4.2.3.2 says.
    const last = accesses.findLastIndex(([, register]) => register === "QueueReset");
    assertEquals(accesses[last], ["read", "QueueReset", 0]);
    const after = accesses.slice(last + 1);
    const written = after.filter(([kind]) => kind === "write").map(([, register]) => register);
    const areas = (["Desc", "Driver", "Device"] as const).flatMap((area) => [`Queue${area}Low`, `Queue${area}High`]);
    assertEquals(written.filter((register) => register !== "QueueSel"), ["QueueSize", ...areas, "QueueReady"]);
    assert(after.some(([kind, register, value]) => kind === "read" && register === "QueueReady" && value === 0));
    assertEquals((await machine.guest.read(0, 512)).byteLength, 512);
    await machine.close();
  });
}

/** Notes every access to a control register, until the function that it returns is called. */
function record(window: RegisterWindow, into: [kind: "read" | "write", register: MmioRegister, value: number][]) {
  const names = new Map((Object.keys(MMIO) as MmioRegister[]).map((name) => [MMIO[name] as number, name]));
  const { read, write } = MmioTransport.prototype;
  const spies = {
    read(offset: number, width: 1 | 2 | 4): number {
      const value = read.call(window as MmioTransport, offset, width);
      if (offset < MMIO.Config) into.push(["read", names.get(offset)!, value]);
      return value;
    },
    write(offset: number, width: 1 | 2 | 4, value: number): void {
      if (offset < MMIO.Config) into.push(["write", names.get(offset)!, value]);
      write.call(window as MmioTransport, offset, width, value);
    },
  };
  Object.assign(window, spies);
  return () => Object.assign(window, { read, write });
}
