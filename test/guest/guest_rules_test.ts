/** What the guest sends keeps to the clauses of a block driver (VIRTIO 1.4 §5.2.5.1, §5.2.6.1). */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { BlkOptions } from "../../src/blk/options.ts";
import type { BlockDriverOptions } from "../../src/guest/block_driver.ts";
import { GuestIoError, GuestRangeError } from "../../src/guest/guest_error.ts";
import { featureSet } from "../../src/virtio/features.ts";
import { DISK, machine, model, requests, SECTOR, stored, violations } from "./guest_rig.ts";

Deno.test("the guest never asks beyond the capacity: the request is refused before it is sent (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine();
  const { guest } = made;
  const count = requests(made).length;
  const bad: [number, number][] = [[0, DISK + 1], [DISK, 1], [DISK + 512, 0], [-1, 1], [0, -1], [0.5, 1], [NaN, 1], [
    0,
    NaN,
  ]];
  for (const [offset, length] of [...bad, [2 ** 53, 1], [1, 2 ** 53]]) {
    const text = `${length} bytes at offset ${offset} are not inside the disk of ${DISK} bytes`;
    assertEquals((await assertRejects(() => guest.read(offset, length), GuestRangeError)).message, text);
    assertEquals((await assertRejects(() => guest.discard(offset, length), GuestRangeError)).message, text);
    assertEquals((await assertRejects(() => guest.writeZeroes(offset, length), GuestRangeError)).message, text);
    assertEquals((await assertRejects(() => guest.secureErase(offset, length), GuestRangeError)).message, text);
  }
  const text = `2 bytes at offset ${DISK - 1} are not inside the disk of ${DISK} bytes`;
  assertEquals((await assertRejects(() => guest.write(DISK - 1, new Uint8Array(2)), GuestRangeError)).message, text);
  assertEquals(requests(made).length, count);
  // The last byte and no byte are inside.
  assertEquals(await guest.read(DISK - 1, 1), model().slice(-1));
  assertEquals(await guest.read(DISK, 0), new Uint8Array());
  await made.machine.close();
});

Deno.test("after a shrink the guest refuses what is gone, after growth it reaches what is new (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine();
  await made.machine.resize(SECTOR);
  assertEquals(made.guest.sizeBytes, SECTOR);
  await assertRejects(() => made.guest.read(SECTOR, 1), GuestRangeError, "inside the disk of 512 bytes");
  await made.machine.resize(1 << 20);
  assertEquals(await made.guest.read((1 << 20) - SECTOR, SECTOR), new Uint8Array(SECTOR));
  assertEquals(await made.guest.read(0, SECTOR), model().slice(0, SECTOR));
  await made.machine.close();
});

Deno.test("a read or write is always whole sectors at the device; edges are read and written back (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine();
  const { guest } = made;
  const cases: [() => Promise<unknown>, [string, number, number][]][] = [
    [() => guest.read(0, 512), [["read", 0, 512]]],
    [() => guest.read(1, 1), [["read", 0, 512]]],
    [() => guest.read(511, 2), [["read", 0, 1024]]],
    [() => guest.write(512, new Uint8Array(1024)), [["write", 512, 1024]]],
    [() => guest.write(1, new Uint8Array(1)), [["read", 0, 512], ["write", 0, 512]]],
    [() => guest.write(511, new Uint8Array(2)), [["read", 0, 512], ["read", 512, 512], ["write", 0, 1024]]],
    [() => guest.write(1, new Uint8Array(0)), []],
    [() => guest.flush(), [["flush", 0, 0]]],
    [() => guest.identify(), [["getId", 0, 0]]],
  ];
  for (const [act, expected] of cases) {
    made.events.length = 0;
    await act();
    assertEquals(requests(made).map(([kind, offset, length]) => [kind, offset, length]), expected);
  }
  await made.machine.close();
});

Deno.test("a flush is sent with sector 0 and no data, and only when FLUSH was negotiated (VIRTIO 1.4 §5.2.6.1, §5.2.5.1)", async () => {
  const made = await machine();
  made.events.length = 0;
  await made.guest.flush();
  const chain = made.events.find(({ event }) => event === "chain");
  assertEquals(chain?.event === "chain" && [chain.readableBytes, chain.writableBytes], [16, 1]);
  assertEquals(requests(made), [["flush", 0, 0, []]]);
  const without = await machine({}, { decline: featureSet(9) });
  without.events.length = 0;
  await without.guest.flush();
  assertEquals(requests(without), []);
  // FLUSH without CONFIG_WCE means a writeback cache: the flush is sent.
  const cached = await machine({}, { decline: featureSet(11) });
  cached.events.length = 0;
  await cached.guest.flush();
  assertEquals(requests(cached), [["flush", 0, 0, []]]);
  for (const { machine } of [made, without, cached]) await machine.close();
});

Deno.test("the guest keeps to size_max and seg_max, and to the size of its smallest queue (VIRTIO 1.4 §5.2.3, §2.7.5.3.1)", async () => {
  const rows: [Partial<BlkOptions>, BlockDriverOptions, elements: number, bytes: number][] = [
    [{ sizeMax: 512, segMax: 3 }, {}, 3, 512],
    [{ sizeMax: 700, segMax: 3 }, {}, 3, 700],
    [{ sizeMax: 512, segMax: 254 }, { queueSize: 8 }, 6, 512],
    [{ sizeMax: 512, segMax: 254 }, { queueSize: 8, useIndirect: false }, 6, 512],
    [{ sizeMax: 4096, segMaxOffered: false }, {}, 1, 4096],
    [{ sizeMax: 512, segMax: 254, queueSize: 4 }, {}, 2, 512],
  ];
  for (const [device, driver, elements, bytes] of rows) {
    for (const packed of [false, true]) {
      const made = await machine({ ...device, packed }, driver);
      made.events.length = 0;
      assertEquals(await made.guest.read(0, DISK), model());
      await made.guest.write(0, model().reverse());
      const all = requests(made);
      for (const [, , length, lengths] of all) {
        assert(lengths.length <= elements && lengths.every((one) => one <= bytes), `${lengths}`);
        assertEquals(lengths.reduce((a, b) => a + b, 0), length);
        assertEquals(length % SECTOR, 0);
      }
      // And not in more pieces than that takes.
      const perRequest = Math.floor(elements * bytes / SECTOR) * SECTOR;
      assertEquals(all.length, 2 * Math.ceil(DISK / perRequest));
      assertEquals(stored(made), model().reverse());
      await made.machine.close();
    }
  }
});

Deno.test("discard, write zeroes and secure erase keep to the longest range, one range a request (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine({ secureErase: true, maxRangeSectors: 7, maxRanges: 1 });
  const { guest } = made;
  const actions = [
    () => guest.discard(SECTOR, 20 * SECTOR),
    () => guest.writeZeroes(SECTOR, 20 * SECTOR, { unmap: true }),
    () => guest.secureErase(SECTOR, 20 * SECTOR),
  ];
  for (const act of actions) {
    made.events.length = 0;
    await act();
    const sizes = requests(made).map(([, , length]) => length);
    assertEquals(sizes, [16, 16, 16]);
  }
  assertEquals(violations(made), []);
  assertEquals(stored(made), model().fill(0, SECTOR, 21 * SECTOR));
  await guest.discard(0, 0);
  await made.machine.close();
});

Deno.test("a discard never has the unmap flag, a write zeroes only when asked for (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine();
  const { guest } = made;
  const flags: number[] = [];
  const { bytes } = made.machine.memory.regions[0];
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const push = made.events.push.bind(made.events);
  made.events.push = (event) => {
    if (event.event === "chain") {
      const list = event.descriptors.filter(({ indirect }) => indirect);
      flags.push(view.getUint32(list[1].address - made.machine.memory.regions[0].guestAddress + 12, true));
    }
    return push(event);
  };
  await guest.discard(0, SECTOR);
  await guest.writeZeroes(0, SECTOR);
  await guest.writeZeroes(0, SECTOR, { unmap: true });
  assertEquals(flags, [0, 0, 1]);
  await made.machine.close();
});

Deno.test("ranges work on whole sectors, and only with their feature", async () => {
  const made = await machine({ discard: false, writeZeroes: false });
  const { guest } = made;
  const rows = [["discard", 13], ["writeZeroes", 14], ["secureErase", 16]] as const;
  for (const [name] of rows) {
    for (const [offset, length] of [[1, 512], [0, 511], [512, 513]]) {
      const error = await assertRejects(() => guest[name](offset, length), GuestRangeError);
      assertEquals(error.message, `${name} works on whole sectors of 512 bytes`);
    }
    const error = await assertRejects(() => guest[name](0, 512), GuestIoError);
    assertEquals([error.message, error.operation, error.status], [`${name} failed: S_UNSUPP`, name, 2]);
  }
  assertEquals(requests(made), []);
  const error = await assertRejects(() => guest.lifetime(), GuestIoError);
  assertEquals([error.message, error.status], ["lifetime failed: S_UNSUPP", 2]);
  await made.machine.close();
});

Deno.test("identify() asks for 20 bytes and stops at the first NUL (VIRTIO 1.4 §5.2.6.1)", async () => {
  for (const serial of ["", "abc", "exactly twenty bytes"]) {
    const made = await machine({ serial });
    made.events.length = 0;
    assertEquals(await made.guest.identify(), serial);
    const chain = made.events.find(({ event }) => event === "chain");
    assertEquals(chain?.event === "chain" && chain.writableBytes, 21);
    await made.machine.close();
  }
});

Deno.test("setWriteback() needs CONFIG_WCE, and identify() needs nothing", async () => {
  const made = await machine({ configWce: false });
  const error = assertThrows(() => made.guest.setWriteback(true), GuestIoError);
  assertEquals(error.message, "setWriteback failed: S_UNSUPP");
  assertEquals(await made.guest.identify(), "vblk");
  await made.machine.close();
});

Deno.test("after writing 0 to writeback the guest still flushes what was written before (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await machine();
  await made.guest.write(0, new Uint8Array(SECTOR));
  made.guest.setWriteback(false);
  const kinds: string[] = [];
  made.storage.hook = ({ kind }) => void kinds.push(kind);
  await made.guest.flush();
  assertEquals(kinds, ["flush"]);
  await made.machine.close();
});
