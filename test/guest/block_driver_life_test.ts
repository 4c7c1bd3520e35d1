/** The life of a driver after its start: queue resets, notifications, the end (VIRTIO 1.4 §2.6.1, §2.9, §3.3.1). */

import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { ProbeError } from "../../src/guest/mmio_probe.ts";
import { driverProblems } from "./fake_window.ts";
import { fake, flush, RAM, real, VERSION_1 } from "./block_driver_rig.ts";

Deno.test("resetQueue() refuses a size that the queue cannot have, before it touches the queue (VIRTIO 1.4 §4.2.2.2)", async () => {
  for (const packed of [false, true]) {
    const { driver } = await real({ packed, queueSize: 64 });
    for (const size of [0, -1, 65, 128, NaN, ...(packed ? [] : [3, 48])]) {
      const error = await assertRejects(() => driver.resetQueue(0, size), RangeError);
      assertEquals(error.message, `queue 0 cannot have ${size} descriptors; the device allows 64`);
      assertEquals((await flush(driver)).status, 0);
    }
    await driver.resetQueue(0, 32);
    assertEquals([driver.queues[0].size, (await flush(driver)).status], [32, 0]);
  }
});

Deno.test("resetQueue() without RING_RESET negotiated is refused, and the queue goes on (VIRTIO 1.4 §2.6.1)", async () => {
  const { driver, window } = await real({ ringReset: false });
  const count = window.accesses.length;
  const error = await assertRejects(() => driver.resetQueue(0), ProbeError);
  assertEquals(error.message, "the device cannot reset a single queue");
  assertEquals(window.accesses.length, count);
  assertEquals((await flush(driver)).status, 0);
});

Deno.test("resetQueue() sets the queue up as at first, with memory of its own (VIRTIO 1.4 §2.6.1.2.2)", async () => {
  const { driver, window } = await real({ queueSize: 64 });
  window.accesses.length = 0;
  const free = driver.allocator.freeBytes;
  await driver.resetQueue(0, 16);
  const registers = window.accesses.filter(({ kind, offset }) => kind === "write" && offset !== 0x30);
  assertEquals(registers.map(({ offset }) => offset), [0xc0, 0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x44]);
  assert(driver.allocator.freeBytes > free, "the larger rings were given back");
});

Deno.test("no driver clause at the registers is broken in a whole life: boot, work, resize, queue resets, resets, on every kind of device (VIRTIO 1.4 §4.2.2.2)", async () => {
  for (const packed of [false, true]) {
    for (const notificationData of [false, true]) {
      for (const queues of [1, 3]) {
        const { driver, window, blk } = await real({
          packed,
          notificationData,
          queues,
          sizeMax: 4096,
          geometry: true,
          secureErase: true,
          inOrder: packed,
          lifetime: { preEolInfo: 1, typA: 1, typB: 1 },
        });
        for (let round = 0; round < 3; round++) {
          for (let i = 0; i < 10; i++) await flush(driver, i % queues);
          driver.readAllConfig();
          blk.capacityChanged();
          driver.registers.writeConfig(32, 1, round % 2);
          await driver.resetQueue(round % queues, 32);
          await flush(driver, round % queues);
          await driver.stop();
          await driver.start();
        }
        assert(window.accesses.length > 300);
        assertEquals(driverProblems(window.accesses), []);
      }
    }
  }
});

Deno.test("a notification with NOTIFICATION_DATA carries queue, position and wrap (VIRTIO 1.4 §2.9)", async () => {
  for (const packed of [false, true]) {
    const { driver, window } = await real({ packed, notificationData: true, queues: 2, queueSize: 4 }, {
      useIndirect: false,
    });
    const data: number[] = [];
    for (let i = 0; i < 6; i++) {
      window.accesses.length = 0;
      await flush(driver, 1);
      data.push(window.accesses.find(({ offset }) => offset === 0x50)!.value);
    }
    assert(data.every((value) => (value & 0xffff) === 1));
    const positions = data.map((value) => value >>> 16);
    // A flush takes two descriptors; a split ring counts buffers, a packed one descriptors of a ring of 4.
    if (packed) assertEquals(positions, [0x8002, 0, 2, 0x8000, 0x8002, 0]);
    else assertEquals(positions, [1, 2, 3, 4, 5, 6]);
  }
});

Deno.test("no notification is sent before DRIVER_OK (VIRTIO 1.4 §3.1.1)", async () => {
  const { window, driver } = fake();
  await driver.start();
  const live = window.accesses.findIndex(({ kind, offset, value }) =>
    kind === "write" && offset === 0x70 && value === 15
  );
  const before = window.accesses.slice(0, live);
  assertEquals(before.filter(({ offset }) => offset === 0x50), []);
  const slot = driver.take();
  driver.begin(slot, 4, 0);
  driver.end(slot);
  driver.submit(slot, 0, () => {});
  const stopped = driver.stop();
  window.accesses.length = 0;
  driver.kick(0);
  assertEquals(window.take(), []);
  await stopped;
});

Deno.test("stop() gives rings and tables back after the device let go of them (VIRTIO 1.4 §3.3.1)", async () => {
  const { driver, transport } = await real({ queueSize: 128 });
  await flush(driver);
  const inUse = driver.allocator.freeBytes;
  const stopped = driver.stop();
  assertEquals(transport.status, 0);
  await stopped;
  assertNotEquals(driver.allocator.freeBytes, inUse);
  const free = driver.allocator.freeBytes;
  for (let i = 0; i < 5; i++) {
    await driver.start();
    assertEquals((await flush(driver)).status, 0);
    await driver.stop();
    assertEquals(driver.allocator.freeBytes, free);
  }
});

Deno.test("entries of exposed buffers stay as they are until the device has used them (VIRTIO 1.4 §3.3.1)", async () => {
  for (const packed of [false, true]) {
    const { window, driver, ram } = fake({ queueSize: 16 });
    window.features = VERSION_1 | (packed ? 1n << 34n : 0n);
    await driver.start();
    const { desc, driver: avail } = driver.queues[0].addresses;
    const exposed: [address: number, bytes: Uint8Array][] = [];
    const view = (address: number, length: number) => ram.bytes.subarray(address - RAM, address - RAM + length);
    // Eight flushes fill the ring, and four more wait.
    for (let i = 0; i < 12; i++) {
      flush(driver);
      for (const [address, bytes] of exposed) assertEquals(view(address, bytes.length), bytes);
      if (i >= 8) continue;
      // Two descriptors; in a split ring also the entry of the available ring.
      exposed.push([desc + i * 32, view(desc + i * 32, 32).slice()]);
      if (!packed) exposed.push([avail + 4 + i * 2, view(avail + 4 + i * 2, 2).slice()]);
    }
    assertEquals([exposed.length, driver.queues[0].freeCount, driver.inFlightCount], [packed ? 8 : 16, 0, 12]);
    // Not even when the driver gives up: the device may still look at them until it is reset.
    window.status |= 64;
    window.interruptStatus = 2;
    driver.handleInterrupt();
    for (const [address, bytes] of exposed) assertEquals(view(address, bytes.length), bytes);
  }
});

Deno.test("resetQueue() asks for the size of the queue that it resets, whichever was selected last", async () => {
  const { window, driver } = fake();
  window.features = VERSION_1 | 1n << 40n | 1n << 12n;
  window.config[34] = 2;
  window.queueSizes = [4, 16];
  await driver.start();
  await assertRejects(() => driver.resetQueue(0, 16), RangeError, "queue 0 cannot have 16 descriptors");
  await driver.resetQueue(1, 16);
  await driver.resetQueue(0, 2);
  assertEquals(driver.queues.map(({ size }) => size), [2, 16]);
  assertEquals(driverProblems(window.accesses), []);
});
