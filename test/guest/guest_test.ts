/** The guest: errors, resets, chains made by hand. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { GuestIoError } from "../../src/guest/guest_error.ts";
import { DISK, machine, model, SECTOR, violations } from "./guest_rig.ts";

Deno.test("a GuestIoError says what failed and how: a status, no status, or lost", () => {
  const facts = [1, 2, 3, -1, -2].map((status) => {
    const error = new GuestIoError("read", status);
    return [error.name, error.operation, error.status, error.message];
  });
  assertEquals(facts, [
    ["GuestIoError", "read", 1, "read failed: S_IOERR"],
    ["GuestIoError", "read", 2, "read failed: S_UNSUPP"],
    ["GuestIoError", "read", 3, "read failed: S_status 3"],
    ["GuestIoError", "read", null, "read failed: the device wrote no status"],
    ["GuestIoError", "read", null, "read failed: the device was reset, or needs to be"],
  ]);
});

Deno.test("a write to a read-only disk fails with the device's IOERR, and the guest knows beforehand", async () => {
  const made = await machine({ readOnly: true });
  assertEquals(made.guest.readOnly, true);
  const error = await assertRejects(() => made.guest.write(0, new Uint8Array(SECTOR)), GuestIoError);
  assertEquals([error.message, error.status], ["write failed: S_IOERR", 1]);
  assertEquals(await made.guest.read(0, DISK), model());
  await made.machine.close();
});

Deno.test("reset() brings the device back, with requests in flight lost and nothing leaked", async () => {
  for (const packed of [false, true]) {
    const made = await machine({ packed });
    const { guest } = made;
    await guest.read(0, SECTOR);
    const free = guest.driver.allocator.freeBytes;
    for (let i = 0; i < 10; i++) {
      const reads = [0, 1, 2].map((sector) =>
        guest.read(sector * SECTOR, SECTOR).then(() => "read", (error) => error.message)
      );
      await guest.reset();
      const text = "read failed: the device was reset, or needs to be";
      assertEquals(await Promise.all(reads), [text, text, text]);
      assertEquals(await guest.read(0, DISK), model());
    }
    // Request slots stay with the driver; there are as many as were ever in flight.
    assert(free - guest.driver.allocator.freeBytes <= 2 * 64, `${free - guest.driver.allocator.freeBytes}`);
    assertEquals(violations(made), []);
    await made.machine.close();
  }
});

Deno.test("chain() sends descriptors exactly as given and says what came back", async () => {
  const made = await machine();
  const { guest } = made;
  const area = guest.allocate(4096, 4096);
  const header = guest.memory(area, 16);
  header.fill(0);
  const [NEXT, WRITE] = [1, 2];
  const good = [
    { address: BigInt(area), length: 16, flags: NEXT },
    { address: BigInt(area + 512), length: 512, flags: NEXT | WRITE },
    { address: BigInt(area + 2048), length: 1, flags: WRITE },
  ];
  for (const indirect of [false, true]) {
    guest.memory(area + 512, 512).fill(0);
    const result = await guest.chain(good, { indirect, statusAddress: area + 2048 });
    assertEquals(result, { status: 0, bytesWritten: 513 });
    assertEquals(guest.memory(area + 512, 512), model().subarray(0, 512));
    // Without knowing where the status byte is, nothing is known of it.
    assertEquals(await guest.chain(good, { indirect }), { status: null, bytesWritten: 513 });
  }
  // The same descriptors in another order, by their next fields: 0, 2, 1, in an indirect table.
  const reordered = [{ ...good[0], next: 2 }, { ...good[2], next: 0 }, { ...good[1], next: 1 }];
  const result = await guest.chain(reordered, { indirect: true, statusAddress: area + 2048 });
  assertEquals(result, { status: 0, bytesWritten: 513 });
  const error = await assertRejects(() => guest.chain(Array(300).fill(good[0])), RangeError);
  assertEquals(error.message, "a request of 300 elements does not fit a queue of 256");
  await assertRejects(() => guest.chain([]), RangeError, "a request of 0 elements does not fit a queue of 256");
  assertEquals(await guest.read(0, SECTOR), model().slice(0, SECTOR));
  await made.machine.close();
});

Deno.test("after its machine was closed a guest fails requests and does not hang", async () => {
  const made = await machine();
  await made.machine.close();
  const text = "failed: the device was reset, or needs to be";
  assertEquals((await assertRejects(() => made.guest.read(0, 1), GuestIoError)).message, `read ${text}`);
  assertEquals((await assertRejects(() => made.guest.flush(), GuestIoError)).message, `flush ${text}`);
  assertEquals(await made.guest.chain([{ address: 0n, length: 0, flags: 0 }]), { status: null, bytesWritten: null });
});

Deno.test("resets that overlap end all of them, lose what was in flight, and leak nothing", async () => {
  const made = await machine({ queues: 2 });
  const { guest } = made;
  await Promise.all([guest.read(0, SECTOR), guest.read(0, SECTOR), guest.read(0, SECTOR)]);
  const free = guest.driver.allocator.freeBytes;
  for (let i = 0; i < 5; i++) {
    const outcomes = [0, 1, 2].map(() => guest.read(0, SECTOR).then(() => "read", () => "lost"));
    await Promise.all([guest.reset(), guest.reset(), guest.reset()]);
    assertEquals(await Promise.all(outcomes), ["lost", "lost", "lost"]);
    assertEquals(guest.driver.inFlightCount, 0);
    assertEquals(await guest.read(0, DISK), model());
    assert(free - guest.driver.allocator.freeBytes < 1024, `${free - guest.driver.allocator.freeBytes}`);
  }
  await made.machine.close();
});
