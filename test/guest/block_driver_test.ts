/** The block driver at work: interrupts, slots, requests (the driver's half of VIRTIO 1.4 §5.2.6, §4.2.3.4). */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryError } from "../../src/guest/allocator.ts";
import { LOST, NO_STATUS, type RequestSlot } from "../../src/guest/request_slot.ts";
import { fake, flush, RAM, real } from "./block_driver_rig.ts";

Deno.test("handleInterrupt() reads InterruptStatus and acknowledges exactly the events that it handles (VIRTIO 1.4 §4.2.3.4.1)", async () => {
  const { window, driver } = fake();
  await driver.start();
  let configChanges = 0;
  driver.onConfigChange = () => configChanges++;
  for (const [status, ack] of [[1, 1], [2, 2], [3, 3], [0xffffffff, 3], [0xfffffffd, 1]]) {
    window.accesses.length = 0;
    window.interruptStatus = status;
    driver.handleInterrupt();
    assertEquals(window.take().slice(0, 2), [
      `read InterruptStatus 0x${status.toString(16)}`,
      `write InterruptACK 0x${ack.toString(16)}`,
    ]);
  }
  assertEquals(configChanges, 3);
});

Deno.test("handleInterrupt() ignores undefined bits, and an interrupt that was not the device's (VIRTIO 1.4 §4.2.2.2)", async () => {
  const { window, driver } = fake();
  await driver.start();
  window.accesses.length = 0;
  window.interruptStatus = 0;
  driver.handleInterrupt();
  assertEquals(window.take(), ["read InterruptStatus 0x0"]);
  window.interruptStatus = 0xfffffffc;
  driver.handleInterrupt();
  assertEquals(window.accesses.filter(({ kind, value }) => kind === "write" && value & ~3), []);
});

Deno.test("one used buffer notification makes the driver look at every queue (VIRTIO 1.4 §4.2.3.4.1)", async () => {
  const { driver, transport } = await real({ queues: 4 });
  const { onInterrupt } = transport;
  transport.onInterrupt = () => {};
  const ended = [0, 1, 2, 3].map((queue) => flush(driver, queue));
  assertEquals(transport.counters.interrupts, 1, "the line was up already for the other three");
  onInterrupt();
  assertEquals((await Promise.all(ended)).map(({ status, queue }) => [status, queue]), [[0, 0], [0, 1], [0, 2], [
    0,
    3,
  ]]);
});

Deno.test("DEVICE_NEEDS_RESET loses what is in flight: the driver does not wait for it (VIRTIO 1.4 §2.1.1)", async () => {
  const { window, driver } = fake();
  await driver.start();
  const pending = [flush(driver), flush(driver)];
  assertEquals([driver.inFlightCount, driver.needsReset], [2, false]);
  window.status |= 64;
  window.interruptStatus = 2;
  driver.handleInterrupt();
  assertEquals(driver.needsReset, true);
  assertEquals((await Promise.all(pending)).map(({ status, usedLength }) => [status, usedLength]), [[LOST, 0], [
    LOST,
    0,
  ]]);
  assertEquals(driver.inFlightCount, 0);
  await driver.stop();
  await driver.start();
  assertEquals(driver.needsReset, false);
});

Deno.test("the status is looked at on each configuration change, and a change without NEEDS_RESET loses nothing", async () => {
  const { window, driver } = fake();
  await driver.start();
  flush(driver);
  window.interruptStatus = 2;
  driver.handleInterrupt();
  assertEquals([driver.needsReset, driver.inFlightCount], [false, 1]);
});

Deno.test("a status byte counts only when the used length covers it and the device wrote it (VIRTIO 1.4 §2.7.8.3)", async () => {
  const { driver, ram } = fake();
  await driver.start();
  const queue = driver.queues[0];
  for (
    const [usedLength, written, status] of [[512, 0, NO_STATUS], [0, 0, NO_STATUS], [513, 0xff, NO_STATUS], [513, 0, 0]]
  ) {
    const slot = driver.take();
    driver.begin(slot, 0, 0);
    slot.addElement(driver.allocator.allocate(512), 512, true);
    driver.end(slot);
    const ended = new Promise<RequestSlot>((done) => driver.submit(slot, 0, done));
    driver.kick(0);
    // The device's part by hand: status byte and used entry.
    ram.bytes[slot.statusAddress - RAM] = written;
    const used = queue.addresses.device - RAM;
    const idx = ram.view.getUint16(used + 2, true);
    const avail = queue.addresses.driver - RAM;
    const head = ram.view.getUint16(avail + 4 + (idx % queue.size) * 2, true);
    ram.view.setUint32(used + 4 + (idx % queue.size) * 8, head, true);
    ram.view.setUint32(used + 8 + (idx % queue.size) * 8, usedLength, true);
    ram.view.setUint16(used + 2, idx + 1, true);
    driver.poll();
    assertEquals([(await ended).status, (await ended).usedLength], [status, usedLength]);
  }
});

Deno.test("a flush has sector 0, no data and a zero reserved field (VIRTIO 1.4 §5.2.6.1)", async () => {
  const { driver, ram } = fake();
  await driver.start();
  ram.bytes.fill(0xaa, 0, 4096);
  const slot = driver.take();
  driver.begin(slot, 4, 0);
  driver.end(slot);
  const at = slot.headerAddress - RAM;
  assertEquals([...ram.bytes.subarray(at, at + 17)], [4, ...Array(15).fill(0), 0xff]);
  assertEquals(slot.elements.slice(0, slot.count).map(({ length, writable }) => [length, writable]), [[16, false], [
    1,
    true,
  ]]);
});

Deno.test("begin() writes a header of le32 type, le32 0, le64 sector (VIRTIO 1.4 §5.2.6)", async () => {
  const { driver, ram } = fake();
  await driver.start();
  for (const sector of [0, 1, 0xffffffff, 0x1_0000_0000, 2 ** 44 - 1]) {
    const slot = driver.take();
    driver.begin(slot, 13, sector);
    const at = slot.headerAddress - RAM;
    assertEquals(ram.view.getUint32(at, true), 13);
    assertEquals(ram.view.getUint32(at + 4, true), 0);
    assertEquals(ram.view.getBigUint64(at + 8, true), BigInt(sector));
  }
});

Deno.test("a request that the queue could never take is refused, in flight is nothing, and the queue goes on", async () => {
  for (const [device, options] of [[{}, { useIndirect: false }], [{}, {}], [{ packed: true }, {}]] as const) {
    const { driver } = await real({ ...device, queueSize: 4 }, options);
    const slot = driver.take();
    driver.begin(slot, 0, 0);
    const data = driver.allocator.allocate(4096);
    for (let i = 0; i < 4; i++) slot.addElement(data + i * 512, 512, true);
    driver.end(slot);
    const error = assertThrows(() => driver.submit(slot, 0, () => {}), RangeError);
    assertEquals(error.message, "a request of 6 elements does not fit a queue of 4");
    assertEquals(driver.inFlightCount, 0);
    const empty = driver.take();
    assert(empty === slot, "the slot is free again");
    assertThrows(
      () => driver.submit(empty, 0, () => {}),
      RangeError,
      "a request of 0 elements does not fit a queue of 4",
    );
    assertEquals((await flush(driver)).status, 0);
  }
});

Deno.test("requests that find the ring full wait, in order, and all are done", async () => {
  for (const packed of [false, true]) {
    const { driver } = await real({ packed, queueSize: 4 }, { useIndirect: false });
    const order: number[] = [];
    const ended = Array.from({ length: 50 }, (_, i) =>
      new Promise<void>((resolve) => {
        const slot = driver.take();
        driver.begin(slot, 4, 0);
        driver.end(slot);
        driver.submit(slot, 0, ({ status }) => {
          assertEquals(status, 0);
          order.push(i);
          resolve();
        });
      }));
    assertEquals(driver.inFlightCount, 50);
    driver.kick(0);
    await Promise.all(ended);
    assertEquals(order, Array.from({ length: 50 }, (_, i) => i));
    assertEquals([driver.inFlightCount, driver.queues[0].freeCount], [0, 4]);
  }
});

Deno.test("slots are used again: a long run needs no more of them than were ever in flight", async () => {
  const { driver } = await real();
  const free = driver.allocator.freeBytes;
  const seen = new Set<RequestSlot>();
  for (let i = 0; i < 100; i++) seen.add(await flush(driver));
  assertEquals(seen.size, 1);
  assert(free - driver.allocator.freeBytes < 1024);
});

Deno.test("a completion may submit and kick: the chain of callbacks neither recurses nor stops", async () => {
  for (const packed of [false, true]) {
    const { driver } = await real({ packed });
    let left = 20000;
    await new Promise<void>((resolve) => {
      const next = () => {
        if (left-- === 0) return resolve();
        const slot = driver.take();
        driver.begin(slot, 4, 0);
        driver.end(slot);
        driver.submit(slot, 0, next);
        driver.kick(0);
      };
      next();
    });
    assertEquals(driver.inFlightCount, 0);
  }
});

Deno.test("a request for whose indirect table there is no memory is refused: in flight is nothing, and the ring is whole", async () => {
  for (const packed of [false, true]) {
    const { driver } = await real({ packed, queueSize: 8 });
    const { allocator } = driver;
    // Every buffer has a table by now, for the two elements of a flush.
    await Promise.all(Array.from({ length: 8 }, () => flush(driver)));
    for (let i = 0; i < 9; i++) {
      const slot = driver.take();
      driver.begin(slot, 0, 0);
      for (let k = 0; k < 4; k++) slot.addElement(allocator.ram.guestAddress, 16, true);
      driver.end(slot);
      const taken: number[] = [];
      while (allocator.freeBytes > 0) taken.push(allocator.allocate(64));
      assertThrows(() => driver.submit(slot, 0, () => {}), GuestMemoryError);
      for (const address of taken) allocator.free(address);
      assertEquals([driver.inFlightCount, driver.queues[0].freeCount], [0, 8]);
    }
    const ended = await Promise.all(Array.from({ length: 8 }, () => flush(driver)));
    assertEquals(ended.map(({ status }) => status), new Array(8).fill(0));
    await driver.stop();
  }
});
