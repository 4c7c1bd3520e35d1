/**
 * A crash while an image is committed to the one behind it, and emptied: whenever that happens, the two together hold
 * what they held before, and each is sound.
 */

import { assert, assertRejects } from "@std/assert";
import { commitImage } from "../../src/image/commit.ts";
import { createQcow2 } from "../../src/image/qcow2/create.ts";
import { makeEmpty } from "../../src/image/qcow2/make_empty.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import type { Storage } from "../../src/storage/storage.ts";
import { Random } from "../random.ts";
import { GUEST, nextAction } from "./actions.ts";
import { ByteStorage } from "./byte_storage.ts";
import { explore } from "./crash_explorer.ts";
import { ModelDisk } from "./model_disk.ts";
import { audit } from "./qcow2_audit.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";
import { SECTOR } from "./sectors.ts";
import { readTags, type TestImage, World } from "./world.ts";

const CLUSTER = 512;
const TOP_BYTES = 96 << 10;

/** Opens the image of file 0 over that of file 1, both for writing. */
async function openPair([top, base]: readonly Storage[]): Promise<Qcow2Image> {
  const openBacking = () => Qcow2Image.open(base, { readOnly: false });
  return await Qcow2Image.open(top, { readOnly: false, openBacking });
}

/** Two images, one behind the other, with something in each. */
async function makePair(random: Random, baseBytes: number, model: ModelDisk): Promise<Uint8Array[]> {
  const files = [new ByteStorage(new Uint8Array(), "top"), new ByteStorage(new Uint8Array(), "base")];
  const shape = { clusterBytes: CLUSTER, refcountBits: 16 };
  await createQcow2(files[0], { ...shape, sizeBytes: TOP_BYTES, backingName: "base", backingFormat: "qcow2" });
  await createQcow2(files[1], { ...shape, sizeBytes: baseBytes });
  const base: TestImage = await Qcow2Image.open(files[1], { readOnly: false });
  const below = await World.open({ open: () => Promise.resolve(base), model });
  for (let i = 0; i < 12; i++) {
    const offset = SECTOR * random.below(baseBytes / SECTOR);
    await below.run({
      kind: "write",
      offset,
      lengthBytes: Math.min(SECTOR * random.between(1, 9), baseBytes - offset),
    });
  }
  await below.close();
  if (baseBytes !== TOP_BYTES) model.resize(TOP_BYTES).end();
  const above = await World.open({ open: () => openPair(files), model });
  for (let i = 0; i < 25; i++) await above.run(nextAction(random, above, { clusterBytes: CLUSTER }, GUEST));
  await above.run({ kind: "flush" });
  await above.close();
  model.crash();
  return files.map((file) => file.bytes.slice());
}

/** Commits, and judges every state; returns how many. */
async function crashCommit(seed: number, baseBytes: number, emptyFirst = false): Promise<number> {
  const random = new Random(seed);
  const recorder = new Recorder();
  const model = new ModelDisk(new Uint8Array(baseBytes / SECTOR), () => recorder.tick());
  const initial = await makePair(random, baseBytes, model);
  const storages = initial.map((bytes, file) => new RecordingStorage(new ByteStorage(bytes), recorder, file));
  const image = await openPair(storages);
  const steps = [
    () => commitImage(image, { depth: 1 }),
    () => image.exclusive((tables) => makeEmpty(tables)),
  ];
  for (const step of emptyFirst ? steps.reverse() : steps) await step();
  await image.close();
  return await explore({
    initial,
    operations: recorder.operations,
    random,
    states: 400,
    async judge({ files, tick }) {
      for (const [i, file] of files.entries()) {
        const { errors, wrongFlags } = audit(file);
        if (errors.length + wrongFlags.length > 0) {
          throw new Error(`file ${i}: ${[...errors, ...wrongFlags].join("; ")}`);
        }
      }
      const pair = await openPair(files.map((bytes) => new ByteStorage(bytes)));
      model.check(0, await readTags(pair, 0, TOP_BYTES), { tick });
      await pair.close();
    },
  });
}

for (const baseBytes of [TOP_BYTES, TOP_BYTES / 3, TOP_BYTES * 2]) {
  Deno.test(`a commit to a backing image of ${baseBytes} bytes survives every crash`, async () => {
    let judged = 0;
    for (let seed = 1; seed <= 4; seed++) judged += await crashCommit(seed, baseBytes);
    assert(judged > 200, `only ${judged} states`);
  });
}

Deno.test("an image that is emptied before it is committed does not survive every crash (canary)", async () => {
  await assertRejects(() => crashCommit(1, TOP_BYTES, true), Error, "after a crash at");
});
