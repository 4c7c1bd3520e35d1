import { assert, assertEquals } from "@std/assert";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { OverlayStorage } from "../../src/storage/overlay.ts";
import type { Storage } from "../../src/storage/storage.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { Random } from "../random.ts";
import { firstDifference, Folder, gather, randomBytes, readBytes, sameBytes, scatter, writeBytes } from "./support.ts";
import { requiresUring } from "./uring_support.ts";

const START_BYTES = 40_000;
const LARGEST_BYTES = 90_000;

/** A storage under test, and how to look behind it afterwards. */
interface Subject {
  storage: Storage;
  /** What must not have changed. */
  base?: () => Uint8Array;
}

type Make = (folder: Folder, contents: Uint8Array) => Subject | Promise<Subject>;

const LATER = () => Promise.resolve();

async function inMemory(contents: Uint8Array): Promise<MemoryStorage> {
  const storage = new MemoryStorage(contents.byteLength);
  await writeBytes(storage, 0, contents);
  return storage;
}

function memoryBase(storage: MemoryStorage): () => Uint8Array {
  return () => {
    const bytes = new Uint8Array(storage.sizeBytes);
    storage.read(0, SegmentList.over(bytes));
    return bytes;
  };
}

const SUBJECTS: Record<string, Make> = {
  "MemoryStorage": async (_folder, contents) => ({ storage: await inMemory(contents) }),
  "DenoFileStorage": (folder, contents) => ({ storage: DenoFileStorage.open(folder.file("disk", contents)) }),
  "OverlayStorage over a file": (folder, contents) => {
    const path = folder.file("base", contents);
    const storage = new OverlayStorage(DenoFileStorage.open(path, { readOnly: true }));
    return { storage, base: () => Deno.readFileSync(path) };
  },
  "OverlayStorage over memory": async (_folder, contents) => {
    const base = await inMemory(contents);
    return { storage: new OverlayStorage(base), base: memoryBase(base) };
  },
  "OverlayStorage over a storage that ends its operations later": async (_folder, contents) => {
    const base = await inMemory(contents);
    return { storage: new OverlayStorage(new FaultStorage(base, LATER)), base: memoryBase(base) };
  },
  "FaultStorage that lets everything pass": async (_folder, contents) => ({
    storage: new FaultStorage(await inMemory(contents)),
  }),
  "FaultStorage that holds everything back": (folder, contents) => ({
    storage: new FaultStorage(DenoFileStorage.open(folder.file("disk", contents)), LATER),
  }),
};

/** Those that this machine may lack. */
const URING_SUBJECTS: Record<string, Make> = {
  "UringFileStorage": (folder, contents) => ({ storage: UringFileStorage.open(folder.file("disk", contents)) }),
  "UringFileStorage that goes past the page cache": (folder, contents) => ({
    storage: UringFileStorage.open(folder.file("disk", contents), { direct: true }),
  }),
};

/** The plain byte array that stands beside the storage. */
class Model {
  bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes.slice();
  }

  resize(sizeBytes: number): void {
    const old = this.bytes;
    this.bytes = new Uint8Array(sizeBytes);
    this.bytes.set(old.subarray(0, sizeBytes));
  }

  put(offset: number, data: Uint8Array): void {
    if (offset + data.byteLength > this.bytes.byteLength) this.resize(offset + data.byteLength);
    this.bytes.set(data, offset);
  }
}

/** An offset where things go wrong: at or beside a border of a page or sector, or anywhere. */
function pickOffset(random: Random, limit: number): number {
  const unit = [4096, 512, 1][random.below(3)];
  const near = random.below(Math.ceil((limit + 1) / unit)) * unit + random.below(3) - 1;
  return Math.max(0, Math.min(limit, near));
}

function pickLength(random: Random, limit: number): number {
  const wanted = [512, 4096, 1 + random.below(700), 8192, random.below(20_000), 1][random.below(6)];
  return Math.min(limit, wanted);
}

/** Carries out one random operation on both, and compares what can be seen; returns what it did. */
async function step(storage: Storage, model: Model, random: Random): Promise<string> {
  const size = model.bytes.byteLength;
  const kind = random.below(20);
  const offset = pickOffset(random, size);
  if (kind < 7) {
    const length = pickLength(random, size - offset);
    const into = scatter(new Uint8Array(length).fill(0xee), random);
    await storage.read(offset, into);
    const where = firstDifference(gather(into), model.bytes.subarray(offset, offset + length));
    assert(where < 0, `read ${offset} ${length} differs at byte ${where}`);
    return `read ${offset} ${length}`;
  }
  if (kind < 13) {
    const data = randomBytes(random, pickLength(random, LARGEST_BYTES - offset));
    if (data.byteLength === 0) return "nothing";
    await storage.write(offset, scatter(data, random));
    model.put(offset, data);
    return `write ${offset} ${data.byteLength}`;
  }
  if (kind < 16) {
    const length = pickLength(random, LARGEST_BYTES - offset);
    await storage.zero(offset, length, random.below(2) === 1);
    model.put(offset, new Uint8Array(length));
    return `zero ${offset} ${length}`;
  }
  if (kind < 18) {
    // Beyond the end too: a discard never makes a disk longer.
    const length = pickLength(random, 20_000);
    await storage.discard(offset, length);
    model.bytes.fill(0, offset, offset + length);
    return `discard ${offset} ${length}`;
  }
  if (kind < 19) {
    await storage.flush();
    return "flush";
  }
  const sizeBytes = pickOffset(random, LARGEST_BYTES);
  await storage.truncate(sizeBytes);
  model.resize(sizeBytes);
  return `truncate ${sizeBytes}`;
}

async function compare(storage: Storage, model: Model): Promise<void> {
  assertEquals(storage.sizeBytes, model.bytes.byteLength);
  const found = await readBytes(storage, 0, model.bytes.byteLength);
  const where = firstDifference(found, model.bytes);
  assert(where < 0, `the contents differ at byte ${where}`);
}

/** Runs `steps` operations; a failure names the seed and the last operations. */
async function simulate(storage: Storage, model: Model, random: Random, steps: number): Promise<void> {
  const done: string[] = [];
  try {
    for (let i = 0; i < steps; i++) {
      done.push(await step(storage, model, random));
      if (i % 20 === 0) await compare(storage, model);
    }
    await compare(storage, model);
  } catch (error) {
    throw new Error(`after ${done.length} operations, the last: ${done.slice(-8).join("; ")}`, { cause: error });
  }
}

const SEEDS = [1, 2, 3];

for (const [name, make] of Object.entries({ ...SUBJECTS, ...URING_SUBJECTS })) {
  for (const seed of SEEDS) {
    Deno.test({
      name: `${name} behaves like an array of bytes (seed ${seed})`,
      ...(name in URING_SUBJECTS ? requiresUring() : {}),
      async fn() {
        using folder = new Folder();
        const random = new Random(seed);
        const contents = randomBytes(random, START_BYTES);
        const { storage, base } = await make(folder, contents);
        try {
          await simulate(storage, new Model(contents), random, 1000);
          if (base !== undefined) assert(sameBytes(base(), contents), "the base was written to");
        } finally {
          storage.close();
        }
      },
    });
  }
}

/** A storage with the bug that a test of this kind exists for: it forgets the last byte of long writes. */
class Forgetful extends MemoryStorage {
  override write(offset: number, from: SegmentList): void {
    const part = new SegmentList();
    part.appendRange(from, 0, from.byteLength > 5000 ? from.byteLength - 1 : from.byteLength);
    super.write(offset, part);
  }
}

Deno.test("the comparison with an array of bytes finds a storage that forgets one byte (canary)", async () => {
  const random = new Random(1);
  let failure = "";
  try {
    await simulate(new Forgetful(START_BYTES), new Model(new Uint8Array(START_BYTES)), random, 1000);
  } catch (error) {
    failure = (error as Error).message;
  }
  assert(failure.startsWith("after "), "it found nothing");
});
