/** Resets of the device or of one queue that overtake requests in flight (VIRTIO 1.4 §2.4, §2.6.1, §3.3.1). */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { GuestIoError } from "../../src/guest/guest_error.ts";
import {
  concat,
  delays,
  diskBytes,
  Gate,
  header,
  LAYOUTS,
  linked,
  ram,
  type Rig,
  rig,
  ringSpans,
  SECTOR,
  strayWrites,
  turn,
} from "./rig.ts";

const [STATUS, QUEUE_SEL, QUEUE_READY, QUEUE_NOTIFY, QUEUE_RESET] = [0x070, 0x030, 0x044, 0x050, 0x0c0];
const LIVE = 1 + 2 + 4 + 8;

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: a reset waits for requests in flight, and touches no memory after it completed (VIRTIO 1.4 §2.4.1)`, async () => {
    const gate = new Gate();
    const made = await rig({ layout, hook: gate.hook });
    const { machine } = made;
    const { guest, transport, device } = machine;
    const area = guest.allocate(8192, 4096);
    guest.memory(area, 16).set(header(0, 1));
    const lost = guest.chain(
      linked([
        { address: area, length: 16, writable: false },
        { address: area + 512, length: 1024, writable: true },
        { address: area + 4096, length: 1, writable: true },
      ]),
      { statusAddress: area + 4096 },
    );
    const write = guest.write(4096, new Uint8Array(SECTOR).fill(9));
    const writeLost = assertRejects(() => write, GuestIoError, "write failed: the device was reset, or needs to be");
    await turn();
    assertEquals(device.inFlightCount, 2);
    const { interrupts } = transport.counters;
    let resetEnded = false;
    const reset = guest.reset().then(() => resetEnded = true);
    for (let i = 0; i < 5; i++) await turn();
    // While the storage may still move bytes the status is what it was, and nothing that is written has an effect.
    assertEquals([transport.read(STATUS, 4), resetEnded], [LIVE, false]);
    transport.write(STATUS, 4, 0xff);
    transport.write(QUEUE_NOTIFY, 4, 0);
    transport.write(0x120, 1, 0);
    assertEquals(transport.read(STATUS, 4), LIVE);
    assertEquals(made.rules(), ["in-reset", "in-reset", "in-reset"]);
    gate.held[0].go();
    await turn();
    assertEquals([transport.read(STATUS, 4), device.inFlightCount], [LIVE, 1]);
    made.storage.hook = () => {};
    gate.held[1].go();
    const rings = ringSpans(machine);
    const before = ram(machine);
    await reset;
    assertEquals(transport.read(STATUS, 4), LIVE);
    assertEquals([await lost, await writeLost], [{ status: null, bytesWritten: null }, await writeLost]);
    // The device had read into the buffer before the reset completed; its status byte it left alone.
    assertEquals(guest.memory(area + 4096, 1)[0], 0xff);
    assertEquals(transport.counters.interrupts, interrupts, "nobody was notified of what a reset overtook");
    assertEquals(strayWrites(machine, before, [...rings, ...ringSpans(machine), [area + 512, 1024]]), []);
    assertEquals(await guest.read(4096, SECTOR), new Uint8Array(SECTOR).fill(9), "the write was in flight and is done");
    await machine.close();
  });

  Deno.test(`${layout} ring: the driver's wait for status 0 is the wait for the last request in flight (VIRTIO 1.4 §2.4.2)`, async () => {
    const gate = new Gate();
    const made = await rig({ layout, hook: gate.hook, device: { queues: 2 } });
    const { guest, transport } = made.machine;
    const reads = [0, 1, 0, 1].map((queue, i) => guest.read(i * SECTOR, SECTOR, { queue }).catch(() => "lost"));
    await turn();
    transport.write(STATUS, 4, 0);
    for (const held of gate.held) {
      await turn();
      assertEquals(transport.read(STATUS, 4), LIVE);
      held.go();
    }
    await turn();
    assertEquals(transport.read(STATUS, 4), 0);
    made.storage.hook = () => {};
    await guest.reset();
    assertEquals(await Promise.all(reads), ["lost", "lost", "lost", "lost"]);
    await made.machine.close();
  });

  Deno.test(`${layout} ring: a queue reset waits for its requests, loses them, and leaves the other queues alone (VIRTIO 1.4 §2.6.1)`, async () => {
    const gate = new Gate();
    const made = await rig({ layout, hook: gate.hook, device: { queues: 2, queueSize: 64 } });
    const { guest, transport } = made.machine;
    const lost = guest.read(0, SECTOR, { queue: 0 }).catch((error) => error.message);
    const kept = guest.read(SECTOR, SECTOR, { queue: 1 });
    await turn();
    const reset = guest.resetQueue(0, 16);
    const late = guest.read(2048, SECTOR, { queue: 0 }).catch((error) => error.message);
    for (let i = 0; i < 3; i++) await turn();
    transport.write(QUEUE_SEL, 4, 0);
    assertEquals(transport.read(QUEUE_RESET, 4), 1, "as long as the reset is ongoing (§4.2.2.1)");
    gate.held[1].go();
    assertEquals(await kept, diskBytes(1024).subarray(SECTOR));
    const { interrupts } = transport.counters;
    gate.held[0].go();
    await reset;
    assertEquals(transport.counters.interrupts, interrupts, "no notification for a queue that was reset (§2.6.1.1.1)");
    const text = "read failed: the device was reset, or needs to be";
    assertEquals([await lost, await late], [text, text]);
    transport.write(QUEUE_SEL, 4, 0);
    assertEquals([transport.read(QUEUE_RESET, 4), transport.read(QUEUE_READY, 4)], [0, 1]);
    made.storage.hook = () => {};
    assertEquals(guest.driver.queues.map(({ size }) => size), [16, 64]);
    for (let i = 0; i < 40; i++) {
      assertEquals(
        await guest.read(i * SECTOR, SECTOR, { queue: 0 }),
        diskBytes(65536).subarray(i * SECTOR, (i + 1) * SECTOR),
      );
    }
    assertEquals(made.rules(), []);
    await made.machine.close();
  });

  Deno.test(`${layout} ring: a queue that was reset starts from nothing, at any point of its life (VIRTIO 1.4 §2.6.1.1.1)`, async () => {
    const made = await rig({ layout, device: { queueSize: 16 } });
    const { guest } = made.machine;
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < round; i++) await guest.read(0, SECTOR);
      await guest.resetQueue(0, [16, 8, 4][round % 3]);
      assertEquals(await guest.read(512, SECTOR), diskBytes(1024).subarray(512));
    }
    assertEquals(made.rules(), []);
    await made.machine.close();
  });
}

Deno.test("QueueReady written 0 with requests in flight reads 1 until none is, and the queue is dead then (VIRTIO 1.4 §4.2.2.1, §4.2.2.2)", async () => {
  const gate = new Gate();
  const made = await rig({ hook: gate.hook });
  const { guest, transport } = made.machine;
  const read = guest.read(0, SECTOR).catch(() => "lost");
  await turn();
  transport.write(QUEUE_SEL, 4, 0);
  transport.write(QUEUE_READY, 4, 0);
  assertEquals(transport.read(QUEUE_READY, 4), 1);
  // Made ready again too early: it is not yet at rest.
  transport.write(QUEUE_READY, 4, 1);
  assertEquals(made.rules(), ["queue-twice"]);
  gate.open();
  await turn();
  assertEquals(transport.read(QUEUE_READY, 4), 0);
  const before = ram(made.machine);
  transport.write(QUEUE_NOTIFY, 4, 0);
  assertEquals(strayWrites(made.machine, before, []), [], "the contents of a queue that is not ready are not touched");
  assertEquals(made.rules(), ["queue-twice", "notify-unknown"]);
  made.storage.hook = () => {};
  await guest.reset();
  assertEquals(await read, "lost");
  await made.machine.close();
});

Deno.test("a reset at any moment of a workload: what completed is right, what did not is lost, and the next life is clean", async () => {
  for (const layout of LAYOUTS) {
    for (let moment = 0; moment < 14; moment++) {
      const made = await rig({ layout, hook: delays(moment, 6), device: { queueSize: 8 } });
      const { guest } = made.machine;
      const model = diskBytes(65536);
      const outcomes: string[] = [];
      const reads = Array.from({ length: 24 }, (_, i) =>
        guest.read(i * 1024, 1024).then((data) => {
          assertEquals(data, model.subarray(i * 1024, i * 1024 + 1024));
          outcomes.push("read");
        }, (error) => {
          assertEquals([error.message, error.status], ["read failed: the device was reset, or needs to be", null]);
          outcomes.push("lost");
        }));
      for (let turns = 0; turns < moment; turns++) await turn();
      await guest.reset();
      await Promise.all(reads);
      assertEquals(outcomes.length, 24);
      assertEquals(guest.driver.inFlightCount, 0);
      assertEquals(await guest.read(0, 4096), model.subarray(0, 4096));
      assertEquals(made.rules().filter((rule) => rule !== "in-reset"), [], `moment ${moment}`);
      await made.machine.close();
    }
  }
});

Deno.test("memory of a request that was given up stays untouched by others until the device is reset (VIRTIO 1.4 §3.3.1)", async () => {
  for (const layout of LAYOUTS) {
    const gate = new Gate();
    const made = await rig({ layout, hook: gate.hook, device: { queues: 2 } });
    const { guest } = made.machine;
    const read = guest.read(0, 4096, { queue: 1 }).catch((error) => error.message);
    await turn();
    // Another queue breaks: the driver gives everything up, but the read is still in flight in the device.
    await guest.chain([{ address: 0n, length: 1, flags: 0 }], { queue: 0 });
    assertEquals(await read, "read failed: the device was reset, or needs to be");
    const [mine, held] = [guest.allocate(4096, 4096), gate.held.length];
    guest.memory(mine, 4096).fill(0x5a);
    assertEquals(held, 1);
    gate.open();
    await turn();
    assertEquals(guest.memory(mine, 4096), new Uint8Array(4096).fill(0x5a));
    assertEquals(made.machine.device.inFlightCount, 0);
    made.storage.hook = () => {};
    await guest.reset();
    guest.release(mine);
    // A request that came back after it was lost must not be counted twice, nor its slot be used twice.
    assertEquals(guest.driver.inFlightCount, 0);
    const both = await Promise.all([guest.read(0, SECTOR), guest.read(SECTOR, SECTOR)]);
    assertEquals(concat(...both), diskBytes(1024));
    await made.machine.close();
  }
});

Deno.test("after a broken queue every request fails at once until the reset, and none hangs", async () => {
  const made = await rig();
  const { guest } = made.machine;
  await guest.chain([{ address: 0n, length: 1, flags: 0 }]);
  const text = "failed: the device was reset, or needs to be";
  assertEquals((await assertRejects(() => guest.read(0, 512), GuestIoError)).message, `read ${text}`);
  assertEquals((await assertRejects(() => guest.flush(), GuestIoError)).message, `flush ${text}`);
  assertEquals((await assertRejects(() => guest.discard(0, 512), GuestIoError)).message, `discard ${text}`);
  assertEquals(await guest.chain([{ address: 0n, length: 1, flags: 0 }]), { status: null, bytesWritten: null });
  await guest.reset();
  assertEquals(await guest.read(0, 512), diskBytes(512));
  await made.machine.close();
});

Deno.test("requests made while the device is being reset fail, and do no harm to the next life", async () => {
  const made: Rig = await rig();
  const { guest } = made.machine;
  const reset = guest.reset();
  const outcomes: unknown[] = [];
  for (let i = 0; i < 6; i++) {
    outcomes.push(await guest.read(0, 512).then(() => "read", (error) => error.message));
  }
  await reset;
  for (const outcome of outcomes) {
    assert(outcome === "read" || outcome === "read failed: the device was reset, or needs to be", String(outcome));
  }
  assert(outcomes.includes("read failed: the device was reset, or needs to be"));
  assertEquals(guest.driver.inFlightCount, 0);
  assertEquals(await guest.read(0, 512), diskBytes(512));
  await made.machine.close();
});

Deno.test("nothing is notified between a reset and DRIVER_OK, even of requests made before (VIRTIO 1.4 §3.1.1)", async () => {
  const made = await rig();
  const { guest } = made.machine;
  const read = guest.read(0, 512).catch((error) => error.message);
  await guest.reset();
  assertEquals(await read, "read failed: the device was reset, or needs to be");
  assertEquals(made.rules(), []);
  assertEquals(await guest.read(0, 512), diskBytes(512));
  await made.machine.close();
});

Deno.test("two queues can be reset at once, each waiting for its own requests", async () => {
  const gate = new Gate();
  const made = await rig({ hook: gate.hook, device: { queues: 2 } });
  const { guest } = made.machine;
  const ended: string[] = [];
  const note = (what: string) => () => void ended.push(what);
  for (const queue of [0, 1]) guest.read(0, 512, { queue }).then(note("read"), note(`read ${queue} lost`));
  await turn();
  const resets = [0, 1].map((queue) => guest.resetQueue(queue).then(note(`queue ${queue} reset`)));
  await turn();
  gate.held[1].go();
  for (let i = 0; i < 4; i++) await turn();
  assertEquals(ended.toSorted(), ["queue 1 reset", "read 1 lost"]);
  gate.held[0].go();
  await Promise.all(resets);
  await turn();
  assertEquals(ended.slice(2).toSorted(), ["queue 0 reset", "read 0 lost"]);
  made.storage.hook = () => {};
  for (const queue of [0, 1]) assertEquals(await guest.read(0, 512, { queue }), diskBytes(512));
  assertEquals(made.rules(), []);
  await made.machine.close();
});

Deno.test("a reset of the device overtakes the reset of a queue", async () => {
  const gate = new Gate();
  const made = await rig({ hook: gate.hook });
  const { guest } = made.machine;
  const read = guest.read(0, 512).catch(() => "lost");
  await turn();
  const queueReset = guest.resetQueue(0, 8);
  const error = await assertRejects(() => guest.resetQueue(0), Error);
  assertEquals([error.name, error.message], ["ProbeError", "queue 0 is being reset already"]);
  await turn();
  const reset = guest.reset();
  await turn();
  made.storage.hook = () => {};
  gate.open();
  await Promise.all([queueReset, reset]);
  assertEquals(await read, "lost");
  assertEquals(guest.driver.queues.map(({ size }) => size), [256]);
  assertEquals(await guest.read(0, 512), diskBytes(512));
  await made.machine.close();
});
