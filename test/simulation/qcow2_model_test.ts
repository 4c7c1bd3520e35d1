/**
 * Workloads by chance on qcow2 images of every kind, beside a model: what is read is what was written, and the tables are
 * sound at the end. With storages that answer at once and late, many requests at a time, and hardly any cache.
 */

import { assert } from "@std/assert";
import { forSeedsAsync, Random } from "../random.ts";
import { ByteStorage } from "./byte_storage.ts";
import { ModelDisk } from "./model_disk.ts";
import { makeQcow2Disk, pickQcow2Shape } from "./qcow2_disk.ts";
import { judgeQcow2 } from "./qcow2_judge.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";
import { runWorkload, waiting } from "./qcow2_workload.ts";
import { World } from "./world.ts";

const CASES = 3000;
const FIRST_SEED = 1;

/** One workload; returns how many actions it had. */
async function runCase(random: Random): Promise<number> {
  const shape = pickQcow2Shape(random);
  const disk = await makeQcow2Disk(shape);
  const late = random.oneIn(2) ? waiting(new Random(random.next())) : undefined;
  const l2CacheBytes = random.oneIn(3) ? shape.clusterBytes : undefined;
  const recorder = new Recorder();
  const files = disk.initial.map((bytes) => new ByteStorage(bytes));
  const storages = files.map((file, i) => new RecordingStorage(file, recorder, i, { wait: late }));
  const model = new ModelDisk(disk.tags, () => recorder.tick());
  const world = await World.open({
    open: () => disk.open(storages, { l2CacheBytes }),
    model,
    discarded: (sector) => shape.version === 2 ? [disk.behind(sector)] : [],
    // Narrow refcounts end some day; then nothing has changed.
    mayFail: (error) => error.kind === "unsupported" && shape.refcountBits < 8,
  });
  try {
    // Nobody needs the record.
    await runWorkload(random, world, shape, random.between(5, 40), () => recorder.operations.length = 0);
    await world.check();
    await world.close();
    await judgeQcow2(disk, model, { files: files.map((file) => file.bytes.slice()) });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const how = `${late ? "late" : "at once"}, cache ${l2CacheBytes ?? "default"}`;
    throw new Error(`${message}\n${JSON.stringify(shape)} ${how}\n${world.story.join("\n")}`, { cause: error });
  }
  return world.story.length;
}

Deno.test(`${CASES} workloads on qcow2 images of every kind, from seed ${FIRST_SEED} on: what was written is read`, async () => {
  let actions = 0;
  await forSeedsAsync(CASES, FIRST_SEED, async (random) => {
    actions += await runCase(random);
  });
  assert(actions > CASES * 10, `only ${actions} actions`);
});
