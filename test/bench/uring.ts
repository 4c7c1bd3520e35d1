/**
 * Reads of 4 KiB from a file in the page cache: through io_uring as a device's own thread would do them, through
 * `UringFileStorage`, which finds it in the cache, and through Deno's file API, each at several depths. Runs alone too.
 *
 * @module
 */

import { ioUringProblem } from "../../src/host/io_uring.ts";
import { Mapping } from "../../src/host/mapping.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import type { Storage } from "../../src/storage/storage.ts";
import { UringEngine } from "../../src/storage/uring_engine.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { alternate, median, type Pair, printTable, ratio } from "./table.ts";

const BLOCK_BYTES = 4096;
const FILE_BLOCKS = 16_384;
const READS = 60_000;
const ROUNDS = 5;
const DEPTHS = [1, 8, 64];

/** Goes through the file in an order that no read-ahead guesses; the cache has it all anyway. */
function offsetOf(i: number): number {
  return ((i * 7919) % FILE_BLOCKS) * BLOCK_BYTES;
}

function lists(memory: Uint8Array): SegmentList[] {
  const region = new MemoryRegion(0, memory);
  return Array.from({ length: Math.max(...DEPTHS) }, (_, i) => {
    const list = new SegmentList();
    list.append(region, i * BLOCK_BYTES, BLOCK_BYTES);
    return list;
  });
}

/** Reads per second of a storage, `depth` at a time. */
function storageLoop(storage: Storage, into: readonly SegmentList[], depth: number): () => Promise<number> {
  return async () => {
    const start = performance.now();
    let next = 0;
    const worker = async (slot: number) => {
      while (next < READS) {
        const reading = storage.read(offsetOf(next++), into[slot]);
        if (reading !== undefined) await reading;
      }
    };
    await Promise.all(Array.from({ length: depth }, (_, slot) => worker(slot)));
    return READS / (performance.now() - start) * 1000;
  };
}

/** Reads per second by callbacks: each result starts the next read, and nothing is allocated. */
function callbackLoop(engine: UringEngine, fd: number, into: readonly SegmentList[], depth: number): () => number {
  let next = 0;
  let done = 0;
  const submit = (slot: number) => engine.submitSegments(owner, slot, fd, false, into[slot], 0, offsetOf(next++));
  const owner = engine.register((slot, result) => {
    if (result !== BLOCK_BYTES) throw new Error(`a read ended with ${result}`);
    done++;
    if (next < READS) submit(slot);
  });
  return () => {
    const start = performance.now();
    next = done = 0;
    for (let slot = 0; slot < depth; slot++) submit(slot);
    while (done < READS) engine.pollOnce(-1);
    return READS / (performance.now() - start) * 1000;
  };
}

function row(name: string, pair: Pair): string[] {
  const { median: middle, low, high } = ratio(pair);
  const perSecond = (values: readonly number[]) => Math.round(median(values)).toLocaleString("en");
  const range = `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`;
  return [name, perSecond(pair.subject), perSecond(pair.peer), range];
}

/** Runs the benchmark and prints its table; says why when there is no io_uring. */
export async function benchUring(): Promise<void> {
  const problem = ioUringProblem();
  if (problem !== null) return console.log(`\nio_uring was not measured: ${problem.message}`);
  const path = await Deno.makeTempFile({ prefix: "vblk-bench-" });
  try {
    await Deno.writeFile(path, new Uint8Array(FILE_BLOCKS * BLOCK_BYTES).fill(7));
    using engine = new UringEngine({ drivenBy: "owner" });
    using memory = Mapping.anonymous(Math.max(...DEPTHS) * BLOCK_BYTES);
    const into = lists(memory.bytes);
    const peer = DenoFileStorage.open(path, { readOnly: true });
    const uring = UringFileStorage.open(path, { readOnly: true });
    const rows = [["4 KiB reads, page cache, one thread", "reads/s", "DenoFileStorage", "ratio (range)"]];
    for (const depth of DEPTHS) {
      const portable = storageLoop(peer, into, depth);
      const callbacks = callbackLoop(engine, uring.descriptor, into, depth);
      rows.push(row(`callbacks, depth ${depth}`, await alternate(ROUNDS, callbacks, portable)));
      rows.push(
        row(`UringFileStorage, depth ${depth}`, await alternate(ROUNDS, storageLoop(uring, into, depth), portable)),
      );
    }
    uring.close();
    peer.close();
    printTable("io_uring", rows);
  } finally {
    await Deno.remove(path);
  }
}

if (import.meta.main) await benchUring();
