/** Setting queues up, notifying them, stopping and resetting them (VIRTIO 1.4 §4.2.3.2, §2.6.1, §2.9). */

import { assertEquals } from "@std/assert";
import { Bench, CONFIG_CHANGE, LIVE, NEEDS_RESET, RAM, settle } from "./bench.ts";

Deno.test("QueueSizeMax is the size of each queue, and 0 for those that do not exist (VIRTIO 1.4 §4.2.2)", () => {
  const bench = new Bench().negotiate();
  for (const [queue, size] of [[0, 16], [1, 8], [2, 0], [0xffff, 0], [0xffffffff, 0]]) {
    bench.write("QueueSel", queue);
    assertEquals([queue, bench.read("QueueSizeMax"), bench.read("QueueReady"), bench.read("QueueReset")], [
      queue,
      size,
      0,
      0,
    ]);
  }
});

Deno.test("a queue whose feature was not negotiated does not exist", () => {
  const bench = new Bench().negotiate(1n << 32n);
  bench.write("QueueSel", 1);
  assertEquals(bench.read("QueueSizeMax"), 0);
  bench.setUpQueue(1, 8);
  assertEquals([bench.read("QueueReady"), bench.rules().at(-1)], [0, "queue-unknown"]);
  bench.setUpQueue(0, 16).status = LIVE;
  assertEquals(bench.device.take(), ["negotiated 100000000", "start 0 size 16"]);
  bench.write("QueueNotify", 1);
  assertEquals([bench.rules(), bench.device.take()], [["notify-unknown"], []]);
});

Deno.test("a queue that does not exist takes no set-up", () => {
  const bench = new Bench().negotiate();
  bench.setUpQueue(2, 8);
  assertEquals(bench.rules(), Array(8).fill("queue-unknown"));
  bench.write("QueueReset", 1);
  bench.write("QueueReady", 0);
  assertEquals([bench.rules(), bench.device.take()], [["queue-unknown", "queue-unknown"], ["negotiated 10100000003"]]);
});

Deno.test("a queue is not made ready before FEATURES_OK (VIRTIO 1.4 §3.1.1)", () => {
  const bench = new Bench();
  bench.setUpQueue(0, 16);
  assertEquals([bench.read("QueueReady"), bench.rules()], [0, ["queue-early"]]);
  // In order it works: the addresses written before are still there.
  bench.negotiate();
  bench.write("QueueReady", 1);
  assertEquals(bench.read("QueueReady"), 1);
});

Deno.test("a queue cannot be larger than QueueSizeMax (VIRTIO 1.4 §4.2.2.2)", () => {
  for (const size of [17, 32, 0x10000, 0xffffffff]) {
    const bench = new Bench().negotiate().setUpQueue(0, size);
    assertEquals([bench.read("QueueReady"), bench.rules()], [0, ["queue-size-max"]]);
  }
});

Deno.test("a queue that is ready takes no set-up, and is not set up twice (VIRTIO 1.4 §4.2.2.2, §4.2.3.2)", () => {
  for (const live of [false, true]) {
    const bench = new Bench();
    if (live) bench.live();
    else bench.negotiate().setUpQueue(0, 16);
    bench.device.take();
    bench.setUpQueue(0, 4, RAM + 512);
    assertEquals(bench.rules(), [...Array(7).fill("queue-ready"), "queue-twice"]);
    assertEquals(bench.device.take(), []);
    if (!live) {
      bench.status = LIVE;
      assertEquals(bench.device.take(), ["start 0 size 16"], "as it was set up first");
    }
  }
});

Deno.test("queues may be set up in any order, and some of them not at all", () => {
  const bench = new Bench().negotiate().setUpQueue(1, 2).setUpQueue(0, 4);
  bench.status = LIVE;
  assertEquals(bench.device.take().slice(1), ["start 0 size 4", "start 1 size 2"]);
  const only = new Bench().negotiate().setUpQueue(1, 2);
  only.status = LIVE;
  assertEquals(only.device.take().slice(1), ["start 1 size 2"]);
  only.write("QueueNotify", 0);
  only.write("QueueNotify", 1);
  assertEquals([only.device.take(), only.rules()], [["kick 1"], ["notify-unknown"]]);
});

Deno.test("a queue made ready after DRIVER_OK starts at once, a broken one then asks for a reset (VIRTIO 1.4 §2.1.2)", () => {
  const bench = new Bench().negotiate();
  bench.status = LIVE;
  bench.device.take();
  bench.setUpQueue(0, 8);
  assertEquals([bench.device.take(), bench.status, bench.interrupts], [["start 0 size 8"], LIVE, 0]);
  bench.setUpQueue(1, 8, 0x10_0000);
  assertEquals([bench.device.take(), bench.status, bench.interrupts], [[], LIVE | NEEDS_RESET, 1]);
  assertEquals(bench.rules(), ["queue-memory"]);
});

Deno.test("a queue that cannot be used, by size, place or alignment, is found at DRIVER_OK: the device needs a reset", () => {
  const cases: [size: number, at: number, rule: string][] = [
    [0, RAM, "queue-size"],
    [3, RAM, "queue-size"],
    [16, RAM + 8, "queue-alignment"],
    [16, 0, "queue-memory"],
    [16, RAM + 16384 - 2048, "queue-memory"],
    [16, 0xfffffff0, "queue-memory"],
  ];
  for (const [size, at, rule] of cases) {
    const bench = new Bench().negotiate().setUpQueue(0, size, at);
    bench.status = LIVE;
    assertEquals([bench.rules(), bench.status], [[rule], LIVE | NEEDS_RESET]);
    assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, CONFIG_CHANGE]);
    bench.write("QueueNotify", 0);
    bench.status = 0;
    assertEquals(bench.live().status, LIVE);
  }
});

Deno.test("the high halves of queue addresses count: no address is cut to 32 bits", () => {
  for (const part of ["Desc", "Driver", "Device"] as const) {
    for (const high of [1, 0x1fffff, 0x200000, 0xffffffff]) {
      const bench = new Bench().negotiate();
      bench.write("QueueSel", 0);
      bench.write(`Queue${part}High`, high);
      bench.write("QueueSize", 16);
      bench.write("QueueDescLow", RAM);
      bench.write("QueueDriverLow", RAM + 1024);
      bench.write("QueueDeviceLow", RAM + 2048);
      bench.write("QueueReady", 1);
      bench.status = LIVE;
      // Infinity, which stands for 2^53 and more, is not aligned to anything.
      assertEquals(bench.rules().length, 1);
      assertEquals(bench.status, LIVE | NEEDS_RESET);
    }
  }
});

Deno.test("QueueReady written 0 stops the queue, and reads back when it is at rest (VIRTIO 1.4 §4.2.2.2)", async () => {
  const bench = new Bench().live();
  bench.write("QueueSel", 1);
  bench.write("QueueReady", 0);
  assertEquals([bench.read("QueueReady"), bench.device.take()], [0, ["stop 1"]]);
  let rest = () => {};
  bench.device.atRest = new Promise((resolve) => rest = resolve);
  bench.write("QueueSel", 0);
  bench.write("QueueReady", 0);
  assertEquals(bench.read("QueueReady"), 1);
  rest();
  await settle();
  assertEquals(bench.read("QueueReady"), 0);
  bench.device.take();
  bench.write("QueueNotify", 0);
  assertEquals([bench.device.take(), bench.rules()], [[], ["notify-unknown"]]);
  // And the other way round.
  bench.setUpQueue(0, 4);
  assertEquals(bench.device.take(), ["start 0 size 4"]);
});

Deno.test("QueueReset resets one queue: 1 while it is ongoing, then 0 in both QueueReset and QueueReady (VIRTIO 1.4 §4.2.2.1)", async () => {
  const bench = new Bench().live();
  let rest = () => {};
  bench.device.atRest = new Promise((resolve) => rest = resolve);
  bench.write("QueueSel", 0);
  bench.write("QueueReset", 1);
  assertEquals(bench.read("QueueReset"), 1);
  bench.write("QueueSel", 1);
  assertEquals([bench.read("QueueReset"), bench.read("QueueReady")], [0, 1]);
  bench.write("QueueSel", 0);
  rest();
  await settle();
  assertEquals([bench.read("QueueReset"), bench.read("QueueReady")], [0, 0]);
  assertEquals(bench.device.take(), ["stop 0"]);
  bench.write("QueueNotify", 0);
  assertEquals([bench.device.take(), bench.rules()], [[], ["notify-unknown"]]);
  bench.device.atRest = undefined;
  // The queue comes back with what the driver chooses now (§2.6.1.2.1).
  bench.setUpQueue(0, 4, RAM + 8192);
  assertEquals([bench.read("QueueReset"), bench.read("QueueReady")], [0, 1]);
  assertEquals([bench.device.take(), bench.rules()], [["start 0 size 4"], []]);
  // At once, when nothing is in flight.
  bench.write("QueueReset", 1);
  assertEquals([bench.read("QueueReset"), bench.read("QueueReady"), bench.device.take()], [0, 0, ["stop 0"]]);
});

Deno.test("QueueReset takes only a 1, and only with RING_RESET negotiated (VIRTIO 1.4 §2.6.1)", () => {
  const bench = new Bench().live();
  bench.write("QueueSel", 0);
  for (const value of [0, 2, 0xffffffff]) bench.write("QueueReset", value);
  assertEquals([bench.read("QueueReady"), bench.device.take(), bench.rules()], [1, [], []]);
  const without = new Bench().negotiate(1n << 32n).setUpQueue(0, 16);
  without.status = LIVE;
  without.device.take();
  without.write("QueueReset", 1);
  assertEquals([without.read("QueueReset"), without.read("QueueReady")], [0, 1]);
  assertEquals([without.device.take(), without.rules()], [[], ["queue-reset"]]);
});

Deno.test("QueueReset reads 0 after a reset of the device, even of one that was ongoing (VIRTIO 1.4 §4.2.2.1)", async () => {
  const bench = new Bench().live();
  let rest = () => {};
  bench.device.atRest = new Promise((resolve) => rest = resolve);
  bench.write("QueueSel", 0);
  bench.write("QueueReset", 1);
  bench.status = 0;
  rest();
  await settle();
  assertEquals([bench.status, bench.read("QueueReset")], [0, 0]);
  bench.device.atRest = undefined;
  bench.live();
  await settle();
  bench.write("QueueSel", 0);
  assertEquals(bench.read("QueueReady"), 1, "the old reset does not reach into the new life");
});

Deno.test("QueueNotify reaches a queue that is ready on a live device, and no other (VIRTIO 1.4 §2.9, §3.1.1)", () => {
  const bench = new Bench();
  bench.write("QueueNotify", 0);
  bench.negotiate().setUpQueue(0, 16);
  bench.device.take();
  bench.write("QueueNotify", 0);
  assertEquals([bench.device.take(), bench.rules()], [[], ["notify-early", "notify-early"]]);
  bench.status = LIVE;
  bench.device.take();
  for (const queue of [1, 2, 16, 0xffff, 0x10000, 0xffffffff]) bench.write("QueueNotify", queue);
  assertEquals([bench.device.take(), bench.rules()], [[], Array(6).fill("notify-unknown")]);
  bench.write("QueueNotify", 0);
  assertEquals(bench.device.take(), ["kick 0"]);
});

Deno.test("with NOTIFICATION_DATA the low 16 bits of a notification are the queue, without it all 32 (VIRTIO 1.4 §2.9)", () => {
  const bench = new Bench((device) => device.features |= 1n << 38n).live();
  for (const data of [1, 0x0001_0001, 0xffff_0001, 0x8000_0000]) bench.write("QueueNotify", data);
  assertEquals(bench.device.take(), ["kick 1", "kick 1", "kick 1", "kick 0"]);
  bench.write("QueueNotify", 0x0001_0002);
  assertEquals(bench.rules(), ["notify-unknown"]);
  const without = new Bench().live();
  without.write("QueueNotify", 0x0001_0001);
  assertEquals([without.device.take(), without.rules()], [[], ["notify-unknown"]]);
});
