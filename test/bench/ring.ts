/**
 * Requests per second through driver, ring, device and memory storage on one thread, beside a plain loop that copies
 * the same bytes: what the virtqueue costs on top of the work itself.
 *
 * @module
 */

import inspector from "node:inspector";
import { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../../src/blk/blk_layout.ts";
import { attach } from "../../src/attach.ts";
import type { Machine } from "../../src/machine.ts";
import { alternate, median, type Pair, printTable, ratio } from "./table.ts";

const BLOCK_BYTES = 4096;
/** More than a CPU's cache of the second level, so that both loops pay for memory. */
const DISK_BLOCKS = 4096;
const REQUESTS = 200_000;
const ROUNDS = 7;
const MILLION = 1_000_000;

interface Workload {
  readonly layout: "split" | "packed";
  readonly depth: number;
  readonly kind: "read" | "write";
}

/** Runs the ring benchmark and prints its table. */
export async function benchRing(): Promise<void> {
  const rows = [[
    "4 KiB, one thread",
    "requests/s",
    "plain copy/s",
    "ratio (range)",
    "exits/request",
    "allocated",
    "heap growth",
  ]];
  const api = [["same, by the promise API", "requests/s", "plain copy/s", "ratio (range)", "allocated"]];
  for (const layout of ["split", "packed"] as const) {
    for (const depth of [1, 32]) {
      for (const kind of ["read", "write"] as const) {
        const name = `${layout} ring, ${kind}, depth ${depth}`;
        const result = await benchOne({ layout, depth, kind });
        const [allocated, growth, promises] = result.memory;
        rows.push([name, ...speeds(result.driver), result.exits.toFixed(3), allocated, growth]);
        api.push([name, ...speeds(result.promises), promises]);
      }
    }
  }
  printTable(
    "In process, memory storage (allocated, garbage included, and heap growth: bytes a request, over a million)",
    rows,
  );
  printTable("With a promise and a fresh buffer per request", api);
}

function speeds(pair: Pair): string[] {
  const { median: middle, low, high } = ratio(pair);
  const perSecond = (values: readonly number[]) => Math.round(median(values)).toLocaleString("en");
  return [perSecond(pair.subject), perSecond(pair.peer), `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`];
}

async function benchOne(workload: Workload) {
  const machine = await attach(`mem:${DISK_BLOCKS * BLOCK_BYTES}`, {
    device: { packed: workload.layout === "packed" },
  });
  await machine.guest.write(0, new Uint8Array(DISK_BLOCKS * BLOCK_BYTES).fill(7));
  const run = driverLoop(machine, workload);
  const copy = copyLoop(workload);
  // Once for the compiler, then the rounds.
  run(REQUESTS * 5);
  copy(REQUESTS * 5);
  const driver = await alternate(ROUNDS, () => timed(run, REQUESTS), () => timed(copy, REQUESTS));
  const before = exits(machine);
  run(REQUESTS);
  const exitsPerRequest = (exits(machine) - before) / REQUESTS;
  const promised = promiseLoop(machine, workload);
  await promised(REQUESTS / 4);
  const promiseBytes = await allocatedBytes(() => promised(REQUESTS)) / REQUESTS;
  // A profiler that sees nothing would make the figure below worthless.
  if (promiseBytes < 100) throw new Error(`promises allocate, but the profiler saw ${promiseBytes} bytes`);
  const memory = [
    await allocatedBytes(() => run(MILLION)) / MILLION,
    heapGrowth(run) / MILLION,
    promiseBytes,
  ].map((bytes) => bytes.toFixed(2));
  const promises = await alternate(
    ROUNDS,
    async () => {
      const started = performance.now();
      await promised(REQUESTS / 4);
      return REQUESTS / 4 / (performance.now() - started) * 1000;
    },
    () => timed(copy, REQUESTS),
  );
  await machine.close();
  return { driver, promises, exits: exitsPerRequest, memory };
}

function timed(loop: (count: number) => void, count: number): number {
  const started = performance.now();
  loop(count);
  return count / (performance.now() - started) * 1000;
}

/** A walk over all blocks in an order that is not sequential: 1237 is odd, so it reaches every one. */
function nextBlock(block: number): number {
  return (block * 5 + 1237) & (DISK_BLOCKS - 1);
}

function driverLoop(machine: Machine, { depth, kind }: Workload): (count: number) => void {
  const { driver } = machine.guest;
  const buffers = Array.from({ length: depth }, () => machine.guest.allocate(BLOCK_BYTES, BLOCK_BYTES));
  const type = kind === "read" ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
  const state = { done: 0, failed: 0 };
  const done = (slot: { status: number }) => {
    state.done++;
    if (slot.status !== 0) state.failed++;
  };
  return (count) => {
    state.done = 0;
    for (let block = 0; state.done < count;) {
      for (let i = 0; i < depth; i++) {
        block = nextBlock(block);
        const slot = driver.take();
        driver.begin(slot, type, block * 8);
        slot.addElement(buffers[i], BLOCK_BYTES, kind === "read");
        driver.end(slot);
        driver.submit(slot, 0, done);
      }
      driver.kick(0);
    }
    if (state.failed > 0) throw new Error(`${state.failed} requests failed`);
  };
}

function promiseLoop(machine: Machine, { depth, kind }: Workload): (count: number) => Promise<void> {
  const data = new Uint8Array(BLOCK_BYTES).fill(9);
  return async (count) => {
    for (let block = 0, done = 0; done < count; done += depth) {
      const requests: Promise<unknown>[] = [];
      for (let i = 0; i < depth; i++) {
        block = nextBlock(block);
        const offset = block * BLOCK_BYTES;
        requests.push(kind === "read" ? machine.guest.read(offset, BLOCK_BYTES) : machine.guest.write(offset, data));
      }
      await Promise.all(requests);
    }
  };
}

/** The work itself: the same blocks in the same order, to and from the same number of buffers. */
function copyLoop({ depth, kind }: Workload): (count: number) => void {
  const blocks = Array.from({ length: DISK_BLOCKS }, () => new Uint8Array(BLOCK_BYTES).fill(7));
  const buffers = Array.from({ length: depth }, () => new Uint8Array(BLOCK_BYTES));
  return (count) => {
    for (let i = 0, block = 0; i < count; i++) {
      block = nextBlock(block);
      const buffer = buffers[i % depth];
      if (kind === "read") buffer.set(blocks[block]);
      else blocks[block].set(buffer);
    }
  };
}

function exits(machine: Machine): number {
  const { reads, writes, interrupts } = machine.transport.counters;
  return reads + writes + interrupts;
}

/** Bytes that our code allocates while `run` works, garbage included, as the engine's sampling profiler sees it. */
async function allocatedBytes(run: () => void | Promise<void>): Promise<number> {
  const session = new inspector.Session();
  session.connect();
  session.post("HeapProfiler.startSampling", SAMPLING as never);
  await run();
  const { profile } = await new Promise<{ profile: { head: ProfileNode } }>((resolve, reject) => {
    session.post("HeapProfiler.stopSampling", (error, result) => error ? reject(error) : resolve(result as never));
  });
  session.disconnect();
  // Only what our own code allocates: Deno loads modules of its own meanwhile.
  const sum = ({ selfSize, callFrame, children }: ProfileNode): number =>
    children.reduce((bytes, child) => bytes + sum(child), callFrame.url.includes("/src/") ? selfSize : 0);
  return sum(profile.head);
}

const SAMPLING = {
  samplingInterval: 512,
  includeObjectsCollectedByMajorGC: true,
  includeObjectsCollectedByMinorGC: true,
};

interface ProfileNode {
  readonly selfSize: number;
  readonly callFrame: { readonly url: string };
  readonly children: readonly ProfileNode[];
}

/** How many bytes more the heap holds after a million requests than before, garbage collected. */
function heapGrowth(run: (count: number) => void): number {
  const collect = (globalThis as { gc?: () => void }).gc;
  if (collect === undefined) throw new Error("run with --v8-flags=--expose-gc");
  collect();
  const before = Deno.memoryUsage().heapUsed;
  run(MILLION);
  collect();
  return Deno.memoryUsage().heapUsed - before;
}
