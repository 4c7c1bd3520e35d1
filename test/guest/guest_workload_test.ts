/** Workloads through guest, ring and device, beside a model of the disk: a plain byte array. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { GuestIoError, GuestRangeError } from "../../src/guest/guest_error.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { Random } from "../random.ts";
import { combinations, DISK, machine, model, SECTOR, step, stored, violations } from "./guest_rig.ts";

Deno.test("a random workload at any byte offset leaves what a byte array has, on every combination of ring, queues and limits", async () => {
  let seed = 0;
  for (const { name, device, driver } of combinations()) {
    seed++;
    const made = await machine(device, driver);
    const disk = model();
    const random = new Random(seed);
    try {
      for (let i = 0; i < 40; i++) await step(made.guest, disk, random, { erase: true });
      assertEquals(await made.guest.read(0, DISK), disk);
      assertEquals(stored(made), disk);
      assertEquals(violations(made), []);
      assertEquals(made.guest.driver.inFlightCount, 0);
    } catch (error) {
      throw new Error(`seed ${seed}: ${name}`, { cause: error });
    }
    await made.machine.close();
  }
  assertEquals(seed, 2 * 2 * 2 * 2 * 3 * 4);
});

Deno.test("the same with a storage that takes its time, each operation its own number of turns", async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const [packed, inOrder, eventIdx] = [(seed & 1) !== 0, (seed & 2) !== 0, (seed & 4) !== 0];
    const made = await machine({ packed, inOrder, eventIdx, queues: 2, queueSize: 8, secureErase: true });
    const disk = model();
    const random = new Random(seed);
    made.storage.hook = async () => {
      for (let turns = random.below(3); turns > 0; turns--) await new Promise((go) => setTimeout(go, 0));
    };
    for (let i = 0; i < 25; i++) await step(made.guest, disk, random, { erase: true });
    assertEquals(stored(made), disk, `seed ${seed}`);
    assertEquals(violations(made), []);
    made.storage.hook = () => {};
    await made.machine.close();
  }
});

Deno.test("many requests in flight at once, more than the rings hold, all get their own data", async () => {
  for (const packed of [false, true]) {
    for (const useIndirect of [true, false]) {
      const made = await machine({ packed, queues: 3, queueSize: 8 }, { useIndirect });
      const disk = model();
      // Neighbours of a page each: no two requests share a sector.
      const writes = Array.from({ length: 48 }, (_, i) => {
        const data = new Random(i).bytes(SECTOR);
        disk.set(data, i * 1024);
        return made.guest.write(i * 1024, data);
      });
      const reads = Array.from({ length: 48 }, (_, i) => made.guest.read(i * 1024 + SECTOR, SECTOR));
      await Promise.all(writes);
      for (const [i, data] of (await Promise.all(reads)).entries()) {
        assertEquals(data, disk.slice(i * 1024 + SECTOR, i * 1024 + 1024));
      }
      assertEquals(stored(made), disk);
      await made.machine.close();
    }
  }
});

Deno.test("requests take turns on the queues, and each can be sent to the queue of one's choice (VIRTIO 1.4 §5.2.2)", async () => {
  const made = await machine({ queues: 4 });
  const used = () => made.events.splice(0).flatMap((event) => event.event === "chain" ? [event.queue] : []);
  used();
  for (let i = 0; i < 8; i++) await made.guest.read(0, SECTOR);
  assertEquals(used(), [0, 1, 2, 3, 0, 1, 2, 3]);
  for (const queue of [2, 2, 0]) await made.guest.read(0, SECTOR, { queue });
  assertEquals(used(), [2, 2, 0]);
  const error = await assertRejects(() => made.guest.read(0, SECTOR, { queue: 4 }), GuestRangeError);
  assertEquals(error.message, "there is no queue 4");
  await assertRejects(() => made.guest.chain([{ address: 0n, length: 0, flags: 0 }], { queue: 4 }), GuestRangeError);
  await made.machine.close();
});

Deno.test("a long transfer goes in pieces that the guest's memory holds", async () => {
  const sizeBytes = 20 << 20;
  const memory = new MemoryStorage(sizeBytes);
  const machine = await Machine.start(new RawImage(memory), { ramBytes: 12 << 20 });
  const data = new Uint8Array(sizeBytes).map((_, i) => i * 7 + (i >> 12));
  await machine.guest.write(0, data);
  const back = await machine.guest.read(0, sizeBytes);
  assert(data.every((byte, i) => byte === back[i]));
  await machine.close();
});

Deno.test("a transfer that the guest's memory cannot hold fails, gives back what it took, and the guest goes on", async () => {
  const made = await machine({}, {}, 8 << 20, 1 << 20);
  const free = made.guest.driver.allocator.freeBytes;
  const error = await assertRejects(() => made.guest.read(0, 8 << 20), Error, "bytes of memory left");
  assertEquals(error.name, "GuestMemoryError");
  assertEquals(await made.guest.read(0, SECTOR), model(8 << 20).slice(0, SECTOR));
  assert(made.guest.driver.allocator.freeBytes >= free - 4096);
  await made.machine.close();
});

Deno.test("memory that requests took is given back when they end, well or badly", async () => {
  const made = await machine();
  const { guest } = made;
  await Promise.all(Array.from({ length: 8 }, () => guest.read(0, 4096)));
  const free = guest.driver.allocator.freeBytes;
  for (let i = 0; i < 20; i++) {
    await Promise.all([
      guest.read(0, 4096),
      guest.write(8192, new Uint8Array(700)),
      guest.discard(0, 512),
      guest.identify(),
    ]);
    await assertRejects(() => guest.lifetime(), GuestIoError);
  }
  assertEquals(guest.driver.allocator.freeBytes, free);
  await made.machine.close();
});

Deno.test("requests of one turn of the event loop are made available together and cost one notification", async () => {
  const made = await machine();
  const { guest, machine: { transport } } = made;
  const { notifications } = transport.counters;
  await Promise.all(Array.from({ length: 20 }, (_, i) => guest.read(i * SECTOR, SECTOR)));
  assertEquals(transport.counters.notifications, notifications + 1);
  await made.machine.close();
});

Deno.test("what write() was given may be changed as soon as it returned", async () => {
  const made = await machine();
  const data = new Uint8Array(2048).fill(5);
  const write = made.guest.write(0, data);
  data.fill(6);
  await write;
  assertEquals(await made.guest.read(0, 2048), new Uint8Array(2048).fill(5));
  await made.machine.close();
});

Deno.test("sector numbers of 2^32 and more reach the place that they name, in every kind of request", async () => {
  const memory = new MemoryStorage(8 * 2 ** 40);
  const machine = await Machine.start(new RawImage(memory), { ramBytes: 1 << 20, device: { secureErase: true } });
  const { guest } = machine;
  assertEquals(guest.sizeBytes, 8 * 2 ** 40);
  // Their low and high halves differ, in whatever order they are read.
  const places = [0x1_0000_0002, 0x2_0000_0001, 0x3_8000_0000].map((sector) => sector * SECTOR);
  for (const [i, place] of places.entries()) await guest.write(place, new Uint8Array(3 * SECTOR).fill(i + 1));
  await guest.discard(places[0], SECTOR);
  await guest.writeZeroes(places[1], SECTOR);
  await guest.secureErase(places[2], SECTOR);
  for (const [i, place] of places.entries()) {
    assertEquals(await guest.read(place, 3 * SECTOR), new Uint8Array(3 * SECTOR).fill(i + 1).fill(0, 0, SECTOR));
  }
  assertEquals(memory.pageCount, 3);
  await machine.resize(2 ** 33 * SECTOR);
  assertEquals(guest.sizeBytes, 2 ** 33 * SECTOR);
  await machine.close();
});
