/**
 * A crash at every write of an image with persistent bitmaps: each that is not marked as in use has noted everything
 * that differs from the disk at the time when it was added; one that is disabled is as it was.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { PersistentBitmaps } from "../../src/image/qcow2/bitmaps.ts";
import { checkQcow2 } from "../../src/image/qcow2/check.ts";
import { createQcow2 } from "../../src/image/qcow2/create.ts";
import { readHeader } from "../../src/image/qcow2/header.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { Random } from "../random.ts";
import { ByteStorage } from "./byte_storage.ts";
import { explore } from "./crash_explorer.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";

const FIRST_SEED = 1;
const SEEDS = 8;
const STATES = 250;

/** What must be true of a bitmap that is not in use. */
interface Promised {
  readonly granuleBytes: number;
  readonly enabled: boolean;
  /** The disk when it was added. */
  readonly disk: Uint8Array;
}

interface Workload {
  readonly random: Random;
  readonly storage: RecordingStorage;
  readonly promised: Map<string, Promised>;
  readonly seen: { usable: number; judged: number };
  leastBytes: number;
}

async function diskOf(image: Qcow2Image): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.sizeBytes);
  await image.read(0, SegmentList.over(bytes));
  return bytes;
}

async function add(work: Workload, image: Qcow2Image): Promise<void> {
  const { random, promised } = work;
  const [name, granuleBytes, enabled] = [`b${promised.size}`, random.pick([512, 1024, 65536]), !random.oneIn(4)];
  promised.set(name, { granuleBytes, enabled, disk: await diskOf(image) });
  await image.editBitmaps((bitmaps) => bitmaps.add(name, granuleBytes, enabled));
}

async function act(work: Workload, image: Qcow2Image): Promise<void> {
  const { random } = work;
  const offset = 512 * random.below(image.sizeBytes / 512);
  const lengthBytes = Math.min(512 * random.between(1, 12), image.sizeBytes - offset);
  switch (random.below(14)) {
    case 0:
      return await image.discard(offset, lengthBytes);
    case 1:
      return await image.writeZeroes(offset, lengthBytes, true);
    case 2:
      return await add(work, image);
    case 3:
      return await image.editBitmaps((bitmaps) => {
        const { entry: { name } } = random.pick(bitmaps.slots);
        if (bitmaps.slots.length > 1) bitmaps.remove(name);
      });
    case 4: {
      const sizeBytes = 512 * random.between(60, 300);
      work.leastBytes = Math.min(work.leastBytes, sizeBytes);
      return await image.resize(sizeBytes);
    }
    case 5:
      return void await image.createSnapshot("one");
    case 6:
      return await image.applySnapshot("one").catch(() => {});
    case 7:
    case 8:
      return await image.flush();
    default:
      return await image.write(offset, SegmentList.over(random.bytes(lengthBytes)));
  }
}

/** An image with some bitmaps and some data, and a workload that uses them. */
async function prepare(random: Random, dropBarriers: boolean): Promise<{ work: Workload; initial: Uint8Array }> {
  const memory = new ByteStorage(new Uint8Array());
  const sizeBytes = 512 * random.between(100, 250);
  await createQcow2(memory, { sizeBytes, clusterBytes: 512 });
  const recorder = new Recorder();
  const storage = new RecordingStorage(memory, recorder, 0, { dropBarriers });
  const seen = { usable: 0, judged: 0 };
  const work: Workload = { random, storage, promised: new Map(), seen, leastBytes: sizeBytes };
  const image = await Qcow2Image.open(memory);
  await image.write(0, SegmentList.over(random.bytes(20_000)));
  for (let i = 0; i < 3; i++) await add(work, image);
  await image.write(512 * 40, SegmentList.over(random.bytes(10_000)));
  await image.close();
  return { work, initial: memory.bytes.slice() };
}

async function judge(work: Workload, bytes: Uint8Array, isSound: boolean): Promise<void> {
  const storage = new ByteStorage(bytes);
  const header = await readHeader(storage);
  if (isSound && !header.dirty) {
    const { corruptions, failure, findings } = await checkQcow2(storage, header);
    assertEquals([corruptions, failure], [0, null], findings.join("\n"));
  }
  const image = await Qcow2Image.open(storage, { readOnly: true });
  const disk = await diskOf(image);
  const bitmaps = await PersistentBitmaps.open(storage, header);
  for (const { entry: { name }, bitmap } of bitmaps.slots) {
    if (bitmap === null) continue;
    const { disk: before, granuleBytes, enabled } = work.promised.get(name)!;
    const noted = new Set<number>();
    for await (const { offset, lengthBytes } of bitmap.ranges()) {
      for (let at = offset; at < offset + lengthBytes; at += granuleBytes) noted.add(at);
    }
    assertEquals(bitmap.enabled, enabled);
    if (!enabled) assertEquals(noted.size, 0, name);
    else if (noted.size > 0) work.seen.usable++;
    const end = Math.min(work.leastBytes, disk.byteLength);
    for (let at = 0; enabled && at < end; at++) {
      const granule = at - at % granuleBytes;
      assert(disk[at] === before[at] || noted.has(granule), `${name} does not know of a change at ${granule}`);
    }
  }
  work.seen.judged++;
}

/** Whoever opens the image after the crash, and goes on, leaves it right too. */
async function goOn(work: Workload, bytes: Uint8Array): Promise<void> {
  const storage = new ByteStorage(bytes);
  const image = await Qcow2Image.open(storage);
  await image.write(1024, SegmentList.over(new Uint8Array(512).fill(work.seen.judged)));
  await image.close();
  await judge(work, storage.bytes, true);
}

async function crash(seed: number, dropBarriers = false): Promise<{ usable: number; judged: number }> {
  const random = new Random(seed);
  const { work, initial } = await prepare(random, dropBarriers);
  for (let round = 0; round < 3; round++) {
    const image = await Qcow2Image.open(work.storage);
    for (let i = random.between(2, 9); i > 0; i--) await act(work, image);
    await image.close();
    work.storage.recordFlush();
  }
  await judge(work, work.storage.inner.bytes, true);
  await explore({
    initial: [initial],
    operations: work.storage.recorder.operations,
    random,
    states: STATES,
    async judge({ files: [bytes] }) {
      await judge(work, bytes, !dropBarriers);
      if (!dropBarriers && random.oneIn(4)) await goOn(work, bytes);
    },
  });
  return work.seen;
}

Deno.test("after a crash at any write a bitmap is right, or marked as in use", async () => {
  const seen = { usable: 0, judged: 0 };
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
    const { usable, judged } = await crash(seed);
    seen.usable += usable;
    seen.judged += judged;
  }
  assert(seen.judged > 100 * SEEDS && seen.usable > 30 * SEEDS, JSON.stringify(seen));
});

Deno.test("a bitmap whose barriers are lost is wrong after some crash (canary)", async () => {
  await assertRejects(
    async () => {
      for (let seed = FIRST_SEED; seed < FIRST_SEED + 10; seed++) await crash(seed, true);
    },
    Error,
    "does not know of a change",
  );
});
