/** What is counted of requests, and how it is shown. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { BlkDevice } from "../../src/blk/device.ts";
import type { BlkObservers } from "../../src/blk/observers.ts";
import { servedLines } from "../../src/cli/serve_statistics.ts";
import { Guest } from "../../src/guest/guest.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { Figures } from "../../src/serve/figures.ts";
import { metricsText } from "../../src/serve/metrics.ts";
import { servedReport, threadsReport } from "../../src/serve/statistics.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { MmioTransport } from "../../src/transport/mmio/mmio_transport.ts";

/** A guest with a disk that counts into `figures`. */
async function machine(observers: BlkObservers): Promise<{ guest: Guest; storage: FaultStorage; device: BlkDevice }> {
  const storage = new FaultStorage(new MemoryStorage(1 << 20));
  const ram = new MemoryRegion(0x1000_0000, new Uint8Array(1 << 20));
  const device = new BlkDevice(new RawImage(storage), {}, observers);
  const transport = new MmioTransport(device, new GuestMemory([ram]));
  const guest = await Guest.boot(transport, ram);
  transport.onInterrupt = () => guest.driver.handleInterrupt();
  return { guest, storage, device };
}

async function fails(action: Promise<unknown>): Promise<void> {
  const failed = await action.then(() => false, () => true);
  assert(failed, "it should have failed");
}

Deno.test("Figures count every request once, by kind and result, with its bytes and its time", async () => {
  const figures = new Figures();
  const { guest, storage, device } = await machine({ requests: figures });
  await guest.write(0, new Uint8Array(4096).fill(1));
  await guest.write(4096, new Uint8Array(512).fill(1));
  await guest.read(0, 8192);
  await guest.flush();
  storage.hook = ({ kind }) => {
    if (kind === "read") throw new BlockError({ kind: "io", path: "disk", operation: "read" });
  };
  await fails(guest.read(0, 512));
  // Another thread has nothing but the memory.
  const seen = new Figures(figures.memory);
  const rows = seen.kinds().map(({ kind, results, bytes, latency }) => [kind, results, bytes, latency.count]);
  assertEquals(rows, [
    ["read", { ok: 1, ioerr: 1, unsupp: 0 }, 8192, 2],
    ["write", { ok: 2, ioerr: 0, unsupp: 0 }, 4608, 2],
    ["flush", { ok: 1, ioerr: 0, unsupp: 0 }, 0, 1],
  ]);
  for (const { latency } of seen.kinds()) assert(latency.sum > 0 && latency.max < 60e9, `${latency.sum} ns`);
  assertEquals([seen.get("inFlight"), seen.get("started")], [0, device.counters.popped]);
});

Deno.test("Figures: requests in flight are counted while they are, and what a reset drops too", async () => {
  const figures = new Figures();
  const { guest, storage, device } = await machine({ requests: figures });
  let release = () => {};
  storage.hook = () => new Promise<void>((resolve) => release = resolve);
  const read = guest.read(0, 512).catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals([figures.get("inFlight"), figures.get("depthSum")], [1, 1]);
  const reset = device.reset();
  release();
  await reset;
  assertEquals([figures.get("inFlight"), figures.kinds()[0].latency.count], [0, 1]);
  await Promise.race([read, undefined]);
});

Deno.test("a device that nobody counts leaves its requests alone", async () => {
  const { guest } = await machine({});
  await guest.write(0, new Uint8Array(512));
});

/** Figures with numbers that are easily told apart. */
function made(): Figures {
  const figures = new Figures();
  figures.set({ batches: 5, published: 20, kicks: 6, calls: 4, callsSuppressed: 1, sizeBytes: 1048576 });
  figures.set({ started: 10, depthSum: 25, inFlight: 3, tableHits: 99, tableMisses: 1, frontEnds: 2, connected: 1 });
  figures.set({ replayed: 7 });
  const [read] = figures.kinds(true);
  for (const nanoseconds of [500, 1500, 3_000_000]) read.latency.add(nanoseconds);
  return figures;
}

Deno.test("metricsText() is what Prometheus reads: typed families, escaped labels, buckets that never fall", () => {
  const text = metricsText(made(), { image: 'a"b\\c\nd.img', format: "raw" });
  const lines = text.split("\n");
  assertEquals(lines.pop(), "", "it ends with a line's end");
  assert(lines.includes('vblk_info{image="a\\"b\\\\c\\nd.img",format="raw"} 1'), text);
  const families = new Map<string, string>();
  for (const line of lines) {
    const type = /^# TYPE (\S+) (counter|gauge|histogram)$/.exec(line);
    if (type !== null) {
      assert(!families.has(type[1]), `${type[1]} twice`);
      families.set(type[1], type[2]);
    }
    if (line.startsWith("#")) continue;
    const [, name, value] = /^([a-z_]+)(?:\{[^}]*\})? (\S+)$/.exec(line) ?? [];
    assert(name !== undefined && Number.isFinite(Number(value)), line);
    const family = families.has(name) ? name : name.replace(/_(bucket|sum|count)$/, "");
    assert(families.has(family), `${line} belongs to no family`);
    assertEquals(families.get(family) === "counter", /_total$|_sum$/.test(family), family);
  }
  const values = (pattern: RegExp) => lines.flatMap((line) => pattern.exec(line)?.[1] ?? []).map(Number);
  const buckets = values(/_bucket\{kind="read",le="[^"]*"\} (\d+)$/);
  assertEquals([buckets[0], buckets[1], buckets.at(-1)], [1, 2, 3]);
  assert(buckets.every((value, i) => i === 0 || value >= buckets[i - 1]));
  const edges = values(/_bucket\{kind="read",le="([\d.e-]+)"\}/);
  assertEquals([edges[0], edges.at(-1)], [1.024e-6, 17.179869184]);
  assertEquals(values(/^vblk_request_duration_seconds_sum\{kind="read"\} (\S+)$/), [0.003002]);
  assertEquals(values(/^vblk_table_cache_misses_total (\d+)$/), [1]);
  assertEquals(values(/^vblk_requests_replayed_total (\d+)$/), [7]);
  // A rate needs a first value.
  assertEquals(values(/^vblk_requests_total\{kind="write",result="ok"\} (\d+)$/), [0]);
});

Deno.test("servedLines() prints a row for each kind, and speeds since the last time", () => {
  const report = servedReport(made());
  assertEquals([report.requests, report.meanDepth, report.meanBatch, report.inFlight], [3, 2.5, 4, 3]);
  const [first, ...rest] = servedLines(report, 12, { report: { ...report, requests: 1, bytes: 0 }, seconds: 10 });
  assertMatch(first, /^vblk: note: statistics after 12 s; in the last 2 s 1 requests\/s/);
  assertMatch(rest[0], /^request +count +failed +data +mean us +p50 us +p99 us +max us$/);
  assertMatch(rest[1], /^read +3 +0 +- +1001 +2 +3000 +3000$/);
  assertEquals(rest.slice(2), [
    "depth: 2.5 requests in flight on average as one started",
    "rings: 20 buffers in 5 batches (4.0 each), 6 kicks, 4 calls sent, 1 suppressed; 3 in flight",
    "replayed: 7 requests that were in flight as the process before this one ended",
    "tables: 99 found in memory, 1 read",
  ]);
  // What only the rings count is shown without the others.
  assertEquals(servedLines({ ...report, kinds: [] }, 12).length, 4);
});

Deno.test("the numbers of several threads are added up, but for those of the disk and of front-ends", async () => {
  const [first, other] = [new Figures(), new Figures()];
  for (const [figures, writes] of [[first, 1], [other, 3]] as const) {
    const { guest } = await machine({ requests: figures });
    for (let i = 0; i < writes; i++) await guest.write(0, new Uint8Array(512));
    if (figures === other) await guest.flush();
    figures.set({ published: 10 * writes, kicks: writes, calls: writes, sizeBytes: 1 << 20 });
  }
  first.set({ frontEnds: 2, connected: 1 });
  const report = threadsReport(first, [other]);
  assertEquals(report.kinds.map(({ kind, requests, bytes }) => [kind, requests, bytes]), [
    ["write", 4, 2048],
    ["flush", 1, 0],
  ]);
  const slowest = [first, other].map((figures) => servedReport(figures).kinds[0].latency.max);
  assertEquals(report.kinds[0].latency.max, Math.max(...slowest));
  const { buffers, sizeBytes, frontEnds, connected } = report;
  assertEquals({ buffers, sizeBytes, frontEnds, connected }, {
    buffers: 40,
    sizeBytes: 1 << 20,
    frontEnds: 2,
    connected: true,
  });
  assertEquals(report.threads, [{ buffers: 10, kicks: 1, calls: 1 }, { buffers: 30, kicks: 3, calls: 3 }]);
  // Neither has taken what is the other's.
  assertEquals([first.get("published"), other.get("published")], [10, 30]);
  assertEquals(threadsReport(first, []).threads, undefined);
});
