/**
 * One operation of a qcow2 image's storage fails, each in its turn: whoever asked hears of it, nothing that was flushed is
 * lost, and the image is sound.
 */

import { assert } from "@std/assert";
import { BlockError } from "../../src/storage/block_error.ts";
import { FaultStorage, type StorageOperation } from "../../src/storage/fault.ts";
import { Random } from "../random.ts";
import { GUEST, nextAction, type Weights } from "./actions.ts";
import { ByteStorage } from "./byte_storage.ts";
import { ModelDisk } from "./model_disk.ts";
import { makeQcow2Disk, PLAIN, type Qcow2Shape } from "./qcow2_disk.ts";
import { judgeQcow2 } from "./qcow2_judge.ts";
import { World } from "./world.ts";

const KIB = 1024;
const SNAPSHOTS = { write: 6, zeroes: 2, discard: 1, flush: 1, snapshot: 3, apply: 1, delete: 2 };

interface FaultCase {
  readonly name: string;
  readonly shape?: Partial<Qcow2Shape>;
  readonly weights: Weights;
  readonly sizes?: readonly number[];
}

const CASES: readonly FaultCase[] = [
  { name: "everything a guest does", weights: { ...GUEST, reopen: 1 } },
  {
    name: "copy-on-write, version 2",
    shape: { version: 2, clusterBytes: 1024, backing: "raw", backingBytes: 64 * KIB },
    weights: GUEST,
  },
  { name: "snapshots", weights: SNAPSHOTS },
  { name: "snapshots, version 2", shape: { version: 2 }, weights: SNAPSHOTS },
  { name: "resize", weights: { write: 5, resize: 2, flush: 1 }, sizes: [512, 31 * KIB, 64 * KIB, 3 << 20] },
  { name: "compressed writes", shape: { clusterBytes: 2048 }, weights: { compressed: 4, write: 2, flush: 1 } },
  { name: "lazy refcounts", shape: { lazyRefcounts: true }, weights: { ...GUEST, reopen: 1 } },
  { name: "refcounts of 64 bits", shape: { refcountBits: 64 }, weights: { write: 8, flush: 1 } },
  {
    name: "extended L2",
    shape: { extendedL2: true, clusterBytes: 16 * KIB, sizeBytes: 128 * KIB, backing: "raw", backingBytes: 100 * KIB },
    weights: GUEST,
  },
  { name: "an external data file", shape: { dataFile: "plain" }, weights: GUEST },
];

const ACTIONS = 14;

/** Runs a workload in which operation `failing` fails; returns the operations that there were. */
async function run(it: FaultCase, seed: number, failing: number): Promise<StorageOperation[]> {
  const disk = await makeQcow2Disk({ ...PLAIN, ...it.shape });
  const random = new Random(seed);
  let tick = 0;
  const model = new ModelDisk(disk.tags, () => ++tick);
  const operations: StorageOperation[] = [];
  const files = disk.initial.map((bytes) => new ByteStorage(bytes));
  const storages = files.map((file) =>
    new FaultStorage(file, (operation) => {
      operations.push(operation);
      if (operations.length - 1 !== failing) return;
      throw new BlockError({ kind: "io", path: "disk", operation: "read", reason: `${operation.kind} fails` });
    })
  );
  const world = await World.open({
    open: () => disk.open(storages),
    model,
    mayFail: (error) => error.kind === "io",
    discarded: (sector) => disk.shape.version === 2 ? [disk.behind(sector)] : [],
  });
  try {
    const ground = { clusterBytes: disk.shape.clusterBytes, sizes: it.sizes };
    for (let i = 0; i < ACTIONS; i++) await world.run(nextAction(random, world, ground, it.weights));
    await world.close();
    const failed = operations[failing];
    // Space that can't be given back is nobody's loss.
    assert(failed === undefined || failed.kind === "discard" || world.failures.length > 0, "nobody heard of it");
    await judgeQcow2(disk, model, { files: files.map((file) => file.bytes.slice()) });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const { kind, offset, lengthBytes } = operations[failing] ?? { kind: "none", offset: 0, lengthBytes: 0 };
    const what = `${it.name}, seed ${seed}, operation ${failing} (${kind} ${offset} ${lengthBytes}) fails`;
    throw new Error(`${what}: ${message}\n${world.story.join("\n")}`, { cause: error });
  }
  return operations;
}

for (const it of CASES) {
  Deno.test(`each operation of a qcow2 image's storage fails once, and nothing is lost: ${it.name}`, async () => {
    for (const seed of [1, 2]) {
      const { length } = await run(it, seed, -1);
      assert(length > ACTIONS, `only ${length} operations`);
      for (let failing = 0; failing < length; failing++) await run(it, seed, failing);
    }
  });
}
