/**
 * Chains that are broken as chains: no status byte, buffers outside memory, a wrong order. Each gets its answer where
 * one can be written; where not, the device asks for a reset. (`send` compares all of RAM.)
 */

import { assert, assertEquals } from "@std/assert";
import type { RawDescriptor } from "../../src/guest/driver_queue.ts";
import {
  concat,
  disk,
  diskBytes,
  header,
  IOERR,
  LAYOUTS,
  linked,
  needsReset,
  NEXT,
  OK,
  ram,
  rig,
  ringSpans,
  SECTOR,
  send,
  stillWorks,
  strayWrites,
  violations,
  WRITE,
} from "./rig.ts";

const [IN, OUT] = [0, 1];
const NEEDS_RESET = 64;

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: a chain without a status byte cannot be answered: the device needs a reset (VIRTIO 1.4 §5.2.6)`, async () => {
    for (const [type, data] of [[IN, 0], [OUT, SECTOR]]) {
      const made = await rig({ layout });
      // A status that is device-readable is none.
      const answer = await send(made, concat(header(type), new Uint8Array(data), Uint8Array.of(0xff)), 0);
      assertEquals([answer.status, answer.bytesWritten], [null, null]);
      assertEquals(violations(made).at(-1)?.found, "the chain has no device-writable byte");
      assertEquals(disk(made, 0, SECTOR), diskBytes(SECTOR), "nothing was written for a request without an answer");
      await needsReset(made, "no-status");
      await made.machine.close();
    }
  });

  Deno.test(`${layout} ring: a buffer outside guest memory gets IOERR when the status byte can be written, a reset when it cannot`, async () => {
    const made = await rig({ layout });
    const { guest } = made.machine;
    const area = guest.allocate(4096, 4096);
    guest.memory(area, 16).set(header(IN));
    const { guestAddress, sizeBytes } = made.machine.memory.regions[0];
    const outside = [
      0n,
      BigInt(guestAddress) - 1n,
      BigInt(guestAddress + sizeBytes) - 511n,
      BigInt(guestAddress + sizeBytes),
      (1n << 53n) - 1n,
      1n << 53n,
      0xffff_ffff_ffff_fe00n,
      0xffff_ffff_ffff_ffffn,
    ];
    for (const address of outside) {
      const [head, status] = [{ address: area, length: 16, writable: false }, {
        address: area + 64,
        length: 1,
        writable: true,
      }];
      // Device-readable: the status can be covered by the used length. Device-writable: it cannot, but is written.
      for (const [writable, bytesWritten] of [[false, 1], [true, 0]] as const) {
        const middle = { address, length: 512, writable };
        const pending = guest.chain(linked([head, middle, status]), { statusAddress: area + 64 });
        const before = ram(made.machine);
        assertEquals([address, await pending], [address, { status: IOERR, bytesWritten }]);
        assertEquals(strayWrites(made.machine, before, [[area + 64, 1], ...ringSpans(made.machine)]), []);
      }
      // The header itself, of which one of the addresses has room for 16 bytes.
      const fits = address === outside[2];
      const headless = linked([{ address, length: 16, writable: false }, status]);
      const answer = await guest.chain(headless, { statusAddress: area + 64 });
      assertEquals([address, answer.bytesWritten, answer.status === IOERR], [address, 1, !fits]);
    }
    await stillWorks(made);
    // And the status byte itself: no answer is possible.
    const lost = await guest.chain(
      linked([{ address: area, length: 16, writable: false }, { address: 1n, length: 1, writable: true }]),
    );
    assertEquals(lost, { status: null, bytesWritten: null });
    await needsReset(made, "unmapped");
    await made.machine.close();
  });

  Deno.test(`${layout} ring: a device-readable descriptor behind a device-writable one gets IOERR (VIRTIO 1.4 §2.7.4.2)`, async () => {
    const made = await rig({ layout });
    const { guest } = made.machine;
    const area = guest.allocate(4096, 4096);
    guest.memory(area, 16).set(header(IN));
    const element = (at: number, length: number, writable: boolean) => ({ address: area + at, length, writable });
    const orders = [
      [element(64, 512, true), element(0, 16, false), element(600, 1, true)],
      [element(0, 16, false), element(600, 1, true), element(700, 1, false)],
      [element(600, 1, true), element(0, 16, false)],
    ];
    for (const order of orders) {
      const pending = guest.chain(linked(order), { statusAddress: area + 600 });
      const before = ram(made.machine);
      const { status } = await pending;
      assertEquals(status, IOERR);
      const allowed = order.filter(({ writable }) => writable).map(({ address, length }) => [address, length] as const);
      assertEquals(strayWrites(made.machine, before, [...allowed, ...ringSpans(made.machine)]), []);
    }
    assertEquals(made.rules(), orders.map(() => "readable-after-writable"));
    await stillWorks(made);
    await made.machine.close();
  });
}

Deno.test("what was completed before a broken chain is returned before the device asks for a reset", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout });
    const { guest } = made.machine;
    const before = guest.read(0, SECTOR, { queue: 0 });
    const broken = guest.chain([{ address: 0n, length: 16, flags: 0 }]);
    const after = guest.read(SECTOR, SECTOR, { queue: 0 }).catch((error) => error);
    assertEquals(await before, diskBytes(SECTOR));
    assertEquals(await broken, { status: null, bytesWritten: null });
    assertEquals((await after).message, "read failed: the device was reset, or needs to be");
    const order = made.events.flatMap(({ event }) =>
      ["used", "call", "interrupt", "violation"].includes(event) ? [event] : []
    );
    assertEquals(order.slice(0, 4), ["used", "violation", "call", "interrupt"]);
    await needsReset(made, made.rules().at(-1)!);
    await made.machine.close();
  }
});

Deno.test("a driver that resets the device from the notification about a broken queue finds it reset, not asking for another", async () => {
  const made = await rig({ driver: { manualInterrupts: true } });
  const { guest, transport } = made.machine;
  transport.onInterrupt = () => {
    transport.onInterrupt = () => {};
    transport.write(0x070, 4, 0);
  };
  const read = guest.read(0, SECTOR).catch(() => "lost");
  const broken = guest.chain([{ address: 0n, length: 16, flags: 0 }]);
  await Promise.resolve();
  await Promise.resolve();
  assertEquals(made.rules(), ["unmapped"]);
  assertEquals(transport.status, 0);
  await guest.reset();
  assertEquals([await read, await broken], ["lost", { status: null, bytesWritten: null }]);
  await made.machine.close();
});

Deno.test("a broken queue does not stop the other queues of its device (VIRTIO 1.4 §2.1.2)", async () => {
  const made = await rig({ device: { queues: 2 }, driver: { manualInterrupts: true } });
  const { guest } = made.machine;
  const broken = guest.chain([{ address: 0n, length: 16, flags: 0 }], { queue: 0 });
  await Promise.resolve();
  assert(made.machine.transport.status & NEEDS_RESET);
  const read = guest.read(0, SECTOR, { queue: 1 });
  await Promise.resolve();
  guest.driver.poll();
  assertEquals(await read, diskBytes(SECTOR));
  await guest.reset();
  assertEquals(await broken, { status: null, bytesWritten: null });
  await made.machine.close();
});

Deno.test("no chain of up to three descriptors, however its flags, lengths and order, crashes or hangs the device or makes it write elsewhere", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout, ramBytes: 64 << 10, sizeBytes: 8192, device: { queueSize: 8 } });
    const { machine } = made;
    const { guest } = machine;
    const area = guest.allocate(4096, 4096);
    const { guestAddress, sizeBytes } = machine.memory.regions[0];
    const choices: RawDescriptor[] = [
      { address: BigInt(area), length: 16, flags: 0 },
      { address: BigInt(area + 64), length: 512, flags: WRITE },
      { address: BigInt(area + 1024), length: 1, flags: WRITE },
      { address: BigInt(area + 1100), length: 0, flags: WRITE },
      { address: BigInt(guestAddress + sizeBytes - 1), length: 2, flags: WRITE },
      { address: 0xffff_ffff_ffff_fff0n, length: 32, flags: 0 },
    ];
    let lost = 0;
    for (let code = 0; code < choices.length ** 3; code++) {
      const chain = [code % 6, Math.floor(code / 6) % 6, Math.floor(code / 36)].map((choice, i) => ({
        ...choices[choice],
        flags: choices[choice].flags | (i < 2 ? NEXT : 0),
      }));
      guest.memory(area, 16).set(header(code % 2 ? IN : OUT, code % 16));
      const pending = guest.chain(chain);
      const before = ram(machine);
      const { bytesWritten } = await pending;
      const allowed = [[area + 64, 512], [area + 1024, 1], ...ringSpans(machine)] as const;
      assertEquals(strayWrites(machine, before, allowed), []);
      if (bytesWritten === null) {
        lost++;
        await guest.reset();
      }
      const status = await guest.read(0, SECTOR).then(() => OK, () => IOERR);
      assertEquals([code, status], [code, OK]);
    }
    // Exactly the chains whose last device-writable byte does not exist.
    assert(lost > 0 && lost < choices.length ** 3);
    await machine.close();
  }
});
