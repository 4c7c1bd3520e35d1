import { assert, assertEquals } from "@std/assert";
import { OP } from "../../src/host/io_uring_layout.ts";
import { Mapping } from "../../src/host/mapping.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { UringEngine, type UringEngineOptions } from "../../src/storage/uring_engine.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { WriteGate } from "../../src/storage/uring_gate.ts";
import { openDescriptors } from "../host/support.ts";
import { Folder } from "./support.ts";
import { requiresUring } from "./uring_support.ts";

function test(
  name: string,
  options: UringEngineOptions,
  fn: (engine: UringEngine, folder: Folder) => Promise<void> | void,
): void {
  Deno.test({
    name,
    ...requiresUring(),
    async fn() {
      using folder = new Folder();
      const before = openDescriptors();
      {
        using engine = new UringEngine(options);
        await fn(engine, folder);
      }
      assertEquals(openDescriptors(), before, "descriptors leaked");
    },
  });
}

const OWNED = { drivenBy: "owner" } as const;

test("a device with slots of its own reads and writes without a promise", OWNED, (engine, folder) => {
  const contents = Uint8Array.from({ length: 100_000 }, (_, i) => i * 31 >> 3);
  const storage = UringFileStorage.open(folder.file("disk", contents), { engine });
  using memory = Mapping.anonymous(64 * 1024);
  const iovecs = new BigUint64Array(memory.bytes.buffer, 32 * 1024, 64);
  const seen: [number, number][] = [];
  const owner = engine.register((slot, result) => seen.push([slot, result]));
  for (let slot = 0; slot < 32; slot++) {
    iovecs.set([BigInt(memory.address + slot * 512), 512n], 2 * slot);
    const iovec = memory.address + 32 * 1024 + 16 * slot;
    engine.submitRead(owner, slot, storage.descriptor, iovec, 1, slot * 1000);
  }
  assertEquals(seen, []);
  while (seen.length < 32) engine.pollOnce(-1);
  assertEquals(seen.sort((a, b) => a[0] - b[0]), Array.from({ length: 32 }, (_, slot) => [slot, 512]));
  for (let i = 0; i < 32 * 512; i++) {
    assertEquals(memory.bytes[i], contents[Math.floor(i / 512) * 1000 + i % 512]);
  }
  memory.bytes.fill(7, 0, 512);
  engine.submitWrite(owner, 99, storage.descriptor, memory.address + 32 * 1024, 1, 5);
  engine.waitUntil(() => seen.length === 33);
  assertEquals(seen[32], [99, 512]);
  engine.unregister(owner);
  storage.close();
  assertEquals(
    Deno.readFileSync(folder.file("disk")).subarray(4, 518),
    Uint8Array.of(...[contents[4]], ...Array(512).fill(7), contents[517]),
  );
});

test(
  "any number of operations is taken, however small the ring",
  { ...OWNED, entries: 4, completionEntries: 4 },
  (engine) => {
    let sum = 0;
    let count = 0;
    const owner = engine.register((token) => {
      sum += token;
      count++;
    });
    for (let i = 1; i <= 5000; i++) engine.submitAny(owner, i, OP.NOP, -1, 0, 0, 0);
    while (count < 5000) engine.pollOnce(-1);
    assertEquals([sum, engine.pollOnce(0)], [5000 * 5001 / 2, 0]);
  },
);

test(
  "more segments than there are places for iovecs are moved all the same",
  { ...OWNED, entries: 1024 },
  (engine, folder) => {
    const storage = UringFileStorage.open(folder.file("disk", new Uint8Array(0)), { engine });
    const contents = Uint8Array.from({ length: 64 * 1000 }, (_, i) => i % 251);
    let done = 0;
    const owner = engine.register((_token, result) => {
      assertEquals(result, 1000);
      done++;
    });
    for (let k = 0; k < 64; k++) {
      const whole = SegmentList.over(contents.subarray(k * 1000, k * 1000 + 1000));
      const list = new SegmentList();
      for (let i = 0; i < 1000; i++) list.appendRange(whole, i, 1);
      engine.submitSegments(owner, k, storage.descriptor, true, list, 0, k * 1000);
    }
    engine.waitUntil(() => done === 64);
    storage.close();
    assertEquals(Deno.readFileSync(folder.file("disk")), contents);
  },
);

/** Reads that end in the ring, and as promises. */
function reader(engine: UringEngine, folder: Folder) {
  const contents = Uint8Array.from({ length: 4096 }, (_, i) => i >> 4);
  const storage = UringFileStorage.open(folder.file("disk", contents), { engine });
  const memory = Mapping.anonymous(4096);
  return {
    read: (offset: number) => engine.call(OP.READ, storage.descriptor, memory.address + offset, 16, offset),
    [Symbol.dispose]() {
      storage.close();
      memory.unmap();
    },
  };
}

test("what is asked for in one turn goes in one system call", {}, async (engine, folder) => {
  using file = reader(engine, folder);
  await file.read(0);
  const before = engine.ring.enters;
  assertEquals(await Promise.all(Array.from({ length: 64 }, (_, i) => file.read(i * 16))), Array(64).fill(16));
  assertEquals(engine.ring.enters - before, 1);
  // Continuations, each of which asks for more, come together too.
  const chain = async () => {
    for (let i = 0; i < 10; i++) await file.read(i * 16);
  };
  const between = engine.ring.enters;
  await Promise.all(Array.from({ length: 32 }, chain));
  const enters = engine.ring.enters - between;
  assert(enters <= 20, `${enters} system calls for ten rounds`);
});

test("timers get a turn though operations follow each other without end", {}, async (engine, folder) => {
  using file = reader(engine, folder);
  let isOver = false;
  const timer = setTimeout(() => isOver = true, 1);
  const deadline = performance.now() + 5000;
  while (!isOver && performance.now() < deadline) await file.read(0);
  clearTimeout(timer);
  assert(isOver, "the timer never ran");
});

test("no more than one turn in fifty milliseconds waits for a timer", {}, async (engine, folder) => {
  using file = reader(engine, folder);
  const { setTimeout } = globalThis;
  let timers = 0;
  globalThis.setTimeout = ((...args: Parameters<typeof setTimeout>) => {
    timers++;
    return setTimeout(...args);
  }) as typeof setTimeout;
  const start = performance.now();
  try {
    while (performance.now() - start < 300) await file.read(0);
  } finally {
    globalThis.setTimeout = setTimeout;
  }
  const most = (performance.now() - start) / 50 + 1;
  assert(timers <= most, `${timers} timers, and ${most} would do`);
});

test(
  "a thread that owns the ring runs promises in between, without Deno's event loop",
  OWNED,
  async (engine, folder) => {
    using file = reader(engine, folder);
    let isOver = false;
    const found: number[] = [];
    const work = (async () => {
      for (let i = 0; i < 50; i++) found.push(await file.read(i * 16));
      isOver = true;
    })();
    let timers = 0;
    const timer = setTimeout(() => timers++, 0);
    while (!isOver) {
      engine.pollOnce(1e9);
      // All that a promise's continuation needs; the event loop does not turn.
      await undefined;
      await undefined;
      await undefined;
    }
    assertEquals(timers, 0);
    clearTimeout(timer);
    await work;
    assertEquals(found, Array(50).fill(16));
  },
);

Deno.test({
  name: "each worker can have an engine of its own",
  ...requiresUring(),
  async fn() {
    const url = new URL("./uring_worker.ts", import.meta.url);
    const workers = [1, 2].map(() => new Worker(url, { type: "module" }));
    const answers = workers.map((worker) => new Promise((resolve) => worker.onmessage = ({ data }) => resolve(data)));
    assertEquals(await Promise.all(answers), [1000, 1000]);
    for (const worker of workers) worker.terminate();
  },
});

Deno.test("WriteGate lets many in or one, and the one before those who come later", async () => {
  const gate = new WriteGate();
  const log: string[] = [];
  assert(gate.tryEnter() && gate.tryEnter());
  const first = gate.alone(async () => {
    log.push("alone");
    assertEquals(gate.inside, 1);
    await Promise.resolve();
    log.push("end");
  });
  assertEquals([gate.tryEnter(), gate.inside], [false, 2]);
  const later = gate.enter().then(() => log.push("later"));
  const second = gate.alone(() => void log.push("alone too"));
  gate.leave();
  await Promise.resolve();
  assertEquals(log, []);
  gate.leave();
  await Promise.all([first, later, second]);
  assertEquals(log, ["alone", "end", "alone too", "later"]);
  assertEquals(gate.inside, 1);
  gate.leave();
  assertEquals(gate.tryEnter(), true);
});
