import { assert, assertEquals } from "@std/assert";
import { RawImage } from "../src/image/raw/raw_image.ts";
import { Machine } from "../src/machine.ts";
import { formatStatistics, type StatisticsReport } from "../src/statistics.ts";
import { BlockError } from "../src/storage/block_error.ts";
import { FaultStorage } from "../src/storage/fault.ts";
import { MemoryStorage } from "../src/storage/memory.ts";

async function start() {
  const storage = new FaultStorage(new MemoryStorage(1 << 20));
  const machine = await Machine.start(new RawImage(storage), { ramBytes: 1 << 20 });
  machine.statistics.enable();
  return { storage, machine };
}

/** The kinds without their latencies, which are the clock's. */
function kinds(report: StatisticsReport): [string, number, number, number][] {
  return report.kinds.map(({ kind, requests, failed, bytes }) => [kind, requests, failed, bytes]);
}

Deno.test("statistics of a machine that did nothing are zeros: booting is not the price of a request", async () => {
  const { machine } = await start();
  assertEquals(machine.statistics.report(), {
    kinds: [],
    requests: 0,
    buffers: 0,
    batches: 0,
    meanBatch: 0,
    kicks: 0,
    calls: 0,
    callsSuppressed: 0,
    interrupts: 0,
    registerAccesses: 0,
    exitsPerRequest: 0,
  });
  await machine.close();
});

Deno.test("statistics count requests, failures and bytes of each kind", async () => {
  const { machine, storage } = await start();
  const { guest } = machine;
  await guest.read(0, 4096);
  await guest.read(0, 1024, { segments: [512, 100, 412] });
  await guest.write(512, new Uint8Array(1536));
  await guest.flush();
  await guest.discard(0, 512);
  await guest.writeZeroes(0, 4096);
  await guest.identify();
  await guest.lifetime().catch(() => {});
  storage.hook = () => {
    throw new BlockError({ kind: "io", path: "disk", operation: "read" });
  };
  await guest.read(0, 8192).catch(() => {});
  storage.hook = () => {};
  const report = machine.statistics.report();
  assertEquals(kinds(report), [
    ["read", 3, 1, 5120],
    ["write", 1, 0, 1536],
    ["flush", 1, 0, 0],
    ["discard", 1, 0, 0],
    ["writeZeroes", 1, 0, 0],
    ["getId", 1, 0, 0],
    ["getLifetime", 1, 1, 0],
  ]);
  assertEquals([report.requests, report.buffers], [9, 9]);
  await machine.close();
});

Deno.test("statistics count batches, notifications and exits exactly", async () => {
  const { machine } = await start();
  const { guest } = machine;
  await Promise.all(Array.from({ length: 32 }, () => guest.read(0, 512)));
  for (let i = 0; i < 4; i++) await guest.flush();
  const report = machine.statistics.report();
  // One batch of 32, four of 1; each with its kick, interrupt, and two accesses of the interrupt's registers.
  assertEquals([report.requests, report.buffers, report.batches, report.meanBatch], [36, 36, 5, 36 / 5]);
  assertEquals([report.kicks, report.calls, report.callsSuppressed, report.interrupts], [5, 5, 0, 5]);
  assertEquals([report.registerAccesses, report.exitsPerRequest], [15, 20 / 36]);
  await machine.close();
});

Deno.test("no request pays for reading the configuration: the driver knows it from the start (VIRTIO 1.4 §3.2)", async () => {
  const image = new RawImage(new MemoryStorage(1 << 20));
  const machine = await Machine.start(image, {
    ramBytes: 1 << 20,
    device: { sizeMax: 4096, segMax: 8, secureErase: true },
  });
  machine.statistics.enable();
  const { guest } = machine;
  await guest.read(0, 4096);
  await guest.write(0, new Uint8Array(4096));
  await guest.discard(0, 4096);
  await guest.writeZeroes(0, 4096);
  await guest.secureErase(0, 4096);
  assertEquals([guest.blockSize, guest.sizeMax, guest.segMax], [512, 4096, 8]);
  // Kick, interrupt, InterruptStatus, InterruptACK.
  assertEquals(machine.statistics.report().exitsPerRequest, 4);
  await machine.close();
});

Deno.test("statistics tell a notification that was sent from one that nobody wanted", async () => {
  const { machine } = await start();
  const { guest, transport } = machine;
  transport.onInterrupt = () => {};
  const reads = [guest.read(0, 512)];
  await Promise.resolve();
  // The driver has not handled the first used buffer: its used_event is behind, so the second needs no call.
  reads.push(guest.read(0, 512));
  await Promise.resolve();
  guest.driver.poll();
  await Promise.all(reads);
  const report = machine.statistics.report();
  assertEquals([report.batches, report.calls, report.callsSuppressed, report.interrupts], [2, 1, 1, 1]);
  await machine.close();
});

Deno.test("statistics go on over a reset of the device or of a queue", async () => {
  const { machine } = await start();
  await machine.guest.flush();
  await machine.guest.resetQueue(0);
  await machine.guest.flush();
  await machine.guest.reset();
  await machine.guest.flush();
  const report = machine.statistics.report();
  assertEquals([report.requests, report.buffers, report.batches, report.calls], [3, 3, 3, 3]);
  await machine.close();
});

Deno.test("statistics count a chain made by hand as one, and as failed only when it was lost", async () => {
  const { machine } = await start();
  const { guest } = machine;
  const area = guest.allocate(64);
  guest.memory(area, 16).set([4]);
  const chain = [
    { address: BigInt(area), length: 16, flags: 1 },
    { address: BigInt(area + 32), length: 1, flags: 2 },
  ];
  // A slot that held a failed request before must not make the chain one.
  await guest.lifetime().catch(() => {});
  assertEquals(await guest.chain(chain), { status: null, bytesWritten: 1 });
  assertEquals(kinds(machine.statistics.report())[1], ["chain", 1, 0, 0]);
  await guest.chain([{ address: 0n, length: 1, flags: 0 }]);
  assertEquals(kinds(machine.statistics.report())[1], ["chain", 2, 1, 0]);
  await guest.reset();
  await machine.close();
});

Deno.test("latency runs from submission to completion, and has an order", async () => {
  const { machine, storage } = await start();
  const begin = performance.now();
  for (let i = 0; i < 20; i++) {
    storage.hook = () => new Promise((go) => setTimeout(go, 0));
    await machine.guest.read(0, 512);
  }
  const [{ latency }] = machine.statistics.report().kinds;
  assert(latency.mean > 0 && latency.p50 > 0);
  assert(latency.p50 <= latency.p99 && latency.p99 <= latency.max, JSON.stringify(latency));
  assert(latency.mean <= latency.max);
  // No request took longer than all of them.
  assert(latency.max <= (performance.now() - begin) * 1000, JSON.stringify(latency));
  storage.hook = () => {};
  await machine.close();
});

Deno.test("until it is enabled only counters run, and no request is looked at", async () => {
  const machine = await Machine.start(new RawImage(new MemoryStorage(1 << 20)), { ramBytes: 1 << 20 });
  await machine.guest.flush();
  assertEquals(machine.guest.driver.onComplete, null);
  const report = machine.statistics.report();
  assertEquals([report.kinds, report.requests, report.buffers, report.exitsPerRequest], [[], 0, 1, 0]);
  await machine.close();
});

Deno.test("statistics are printed as an aligned table, a line for the rings and one for the exits", () => {
  const latency = { mean: 12.4, p50: 10, p99: 99.6, max: 1234 };
  const lines = formatStatistics({
    kinds: [
      { kind: "read", requests: 1000, failed: 2, bytes: 4096000, latency },
      { kind: "writeZeroes", requests: 1, failed: 0, bytes: 0, latency: { mean: 0, p50: 0, p99: 0, max: 0 } },
    ],
    requests: 1001,
    buffers: 1001,
    batches: 44,
    meanBatch: 22.75,
    kicks: 40,
    calls: 41,
    callsSuppressed: 3,
    interrupts: 42,
    registerAccesses: 122,
    exitsPerRequest: 164 / 1001,
  });
  assertEquals(lines, [
    "request      count  failed       data  mean us  p50 us  p99 us  max us",
    "read          1000       2  3.906 MiB       12      10     100    1234",
    "writeZeroes      1       0          -        0       0       0       0",
    "rings: 1001 buffers in 44 batches (22.8 each), 41 calls sent, 3 suppressed",
    "exits: 40 kicks, 122 register accesses in all, 42 interrupts: 0.164 exits per request",
  ]);
});
