import { assert, assertEquals, assertRejects } from "@std/assert";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { Random } from "../random.ts";
import { ByteStorage } from "./byte_storage.ts";
import { explore } from "./crash_explorer.ts";
import { ModelDisk } from "./model_disk.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";
import { SECTOR, sectorsOf, tagsOf, TORN } from "./sectors.ts";
import { type Mistake, TOY_SECTORS, ToyImage } from "./toy_image.ts";
import { readTags, World } from "./world.ts";

const bytesOf = (length: number, value: number) => new Uint8Array(length).fill(value);

/** All states of one file of two blocks after some operations, as text: one digit for each block. */
async function statesOf(actions: (storage: RecordingStorage) => void | Promise<void>): Promise<string[]> {
  const recorder = new Recorder();
  const storage = new RecordingStorage(new ByteStorage(bytesOf(2 * SECTOR, 0)), recorder);
  await actions(storage);
  const states = new Set<string>();
  await explore({
    initial: [bytesOf(2 * SECTOR, 0)],
    operations: recorder.operations,
    random: new Random(1),
    samples: 100,
    judge({ files: [bytes] }) {
      states.add(Array.from({ length: bytes.byteLength / SECTOR }, (_, i) => bytes[i * SECTOR].toString(16)).join(""));
      return Promise.resolve();
    },
  });
  return [...states].sort();
}

const write = (storage: RecordingStorage, offset: number, length: number, value: number) =>
  void storage.write(offset, SegmentList.over(bytesOf(length, value)));

Deno.test("a write that was not flushed may be lost, there, or torn between its blocks", async () => {
  assertEquals(await statesOf((storage) => write(storage, 0, 2 * SECTOR, 1)), ["00", "01", "10", "11"]);
});

Deno.test("two writes between flushes may reach the disk in any order, and the last one wins where both did", async () => {
  const both = (storage: RecordingStorage) => {
    write(storage, 0, SECTOR, 1);
    write(storage, SECTOR, SECTOR, 2);
    write(storage, SECTOR, SECTOR, 3);
  };
  assertEquals(await statesOf(both), ["00", "02", "03", "10", "12", "13"]);
});

Deno.test("what was flushed is in every later state", async () => {
  const states = await statesOf((storage) => {
    write(storage, 0, SECTOR, 1);
    storage.flush();
    write(storage, SECTOR, SECTOR, 2);
  });
  assertEquals(states, ["00", "10", "12"]);
});

Deno.test("a flush says nothing of a write that had not ended when it began", async () => {
  const states = await statesOf(async (storage) => {
    const late = new RecordingStorage(storage.inner, storage.recorder, 0, { wait: () => Promise.resolve() });
    const writing = late.write(0, SegmentList.over(bytesOf(SECTOR, 1)));
    storage.flush();
    await writing;
    write(storage, SECTOR, SECTOR, 2);
  });
  assertEquals(states, ["00", "02", "10", "12"]);
});

Deno.test("a new size may be lost, and a write behind the end brings one along", async () => {
  const states = await statesOf((storage) => {
    storage.truncate(SECTOR);
    write(storage, 2 * SECTOR, SECTOR, 3);
  });
  assertEquals(states, ["0", "00", "003"]);
});

Deno.test("a discarded block holds what it had, or junk", async () => {
  assertEquals(await statesOf((storage) => void storage.discard(0, SECTOR)), ["00", "d50"]);
});

Deno.test("a sector tells its tag, and a mix of two tells that it is one (canary)", () => {
  const tags = [0, 1, 77, 0x4000_0001, 0x7fff_ffff];
  const bytes = sectorsOf(tags);
  assertEquals([...tagsOf(bytes)], tags);
  for (let i = 0; i < tags.length; i++) {
    const changed = bytes.slice();
    changed[i * SECTOR + 400] ^= 1;
    assertEquals(tagsOf(changed)[i], TORN);
  }
});

/** Crashes of the toy at every operation of a workload; returns how many states were judged. */
async function crashToy(seed: number, mistake: Mistake, dropBarriers = false): Promise<number> {
  const random = new Random(seed);
  const recorder = new Recorder();
  const initial = [bytesOf(SECTOR, 0)];
  const storage = new RecordingStorage(new ByteStorage(initial[0]), recorder, 0, { dropBarriers });
  const model = new ModelDisk(new Uint8Array(TOY_SECTORS), () => recorder.tick());
  const open = () => ToyImage.open(storage, mistake);
  const world = await World.open({ open, model, afterFlush: () => dropBarriers && storage.recordFlush() });
  for (let i = 0; i < 30; i++) {
    const offset = SECTOR * random.below(TOY_SECTORS);
    const lengthBytes = Math.min(SECTOR * random.between(1, 3), TOY_SECTORS * SECTOR - offset);
    const kind = random.below(8);
    if (kind < 2) await world.run({ kind: "flush" });
    else if (kind < 4) await world.run({ kind: "discard", offset, lengthBytes });
    else await world.run({ kind: "write", offset, lengthBytes });
  }
  await world.check();
  return await explore({
    initial,
    operations: recorder.operations,
    random,
    epoch: (tick) => model.epoch(tick),
    async judge({ files, tick }) {
      const image = await ToyImage.open(new ByteStorage(files[0]));
      // A block that a lost write should have put at the end of the file is missing with it.
      model.check(0, await readTags(image, 0, image.sizeBytes), { tick });
    },
  });
}

Deno.test("a toy image with the right order survives every crash", async () => {
  let judged = 0;
  for (let seed = 1; seed <= 20; seed++) judged += await crashToy(seed, "none");
  assert(judged > 1000, `${judged} states`);
});

for (const mistake of ["map before data", "slots reused early", "flush without a barrier"] as const) {
  Deno.test(`a toy image with ${mistake} does not (canary)`, async () => {
    await assertRejects(
      async () => {
        for (let seed = 1; seed <= 20; seed++) await crashToy(seed, mistake);
      },
      Error,
      "after a crash at",
    );
  });
}

Deno.test("a toy image whose barriers are lost does not, though each flush keeps its promise at its end (canary)", async () => {
  await assertRejects(
    async () => {
      for (let seed = 1; seed <= 20; seed++) await crashToy(seed, "none", true);
    },
    Error,
    "after a crash at",
  );
});
