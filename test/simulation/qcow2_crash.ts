/**
 * Crashes of qcow2 images: a workload on recording storages, then every state that a crash may leave, judged.
 */

import { Random } from "../random.ts";
import { type Ground, nextAction, type Weights } from "./actions.ts";
import { ByteStorage } from "./byte_storage.ts";
import { explore } from "./crash_explorer.ts";
import { ModelDisk } from "./model_disk.ts";
import { makeQcow2Disk, PLAIN, type Qcow2Disk, type Qcow2Shape } from "./qcow2_disk.ts";
import { judgeQcow2 } from "./qcow2_judge.ts";
import { runTogether, waiting } from "./qcow2_workload.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";
import { type Action, type TestImage, World } from "./world.ts";

/** A kind of workload, on a kind of disk. */
export interface CrashCase {
  readonly name: string;
  readonly shape?: Partial<Qcow2Shape>;
  readonly weights: Weights;
  readonly sizes?: readonly number[];
  /** Done before the recording starts. */
  readonly before?: readonly Action[];
  readonly actions?: number;
  readonly l2CacheBytes?: number;
  /** Storages that answer late, and several requests at a time. */
  readonly late?: boolean;
  /** Most states to judge, where each takes long. */
  readonly states?: number;
}

/** What else to do to a case. */
export interface CrashOptions {
  /** Most states to judge. */
  readonly states?: number;
  /** Lose the barriers inside operations, as a canary. */
  readonly dropBarriers?: boolean;
  /** Gets image files that were judged well, to be judged by somebody else too; dirty ones as they were repaired. */
  readonly also?: (bytes: Uint8Array) => void;
}

/** Runs a workload and judges every state; returns how many. */
export async function crashQcow2(it: CrashCase, seed: number, options: CrashOptions = {}): Promise<number> {
  const random = new Random(seed);
  const disk = await makeQcow2Disk({ ...PLAIN, ...it.shape });
  const recorder = new Recorder();
  const model = new ModelDisk(disk.tags, () => recorder.tick());
  const prepared = await prepare(disk, model, it.before ?? []);
  const { dropBarriers } = options;
  const wait = it.late ? waiting(random) : undefined;
  const storages = prepared.map((bytes, file) =>
    new RecordingStorage(new ByteStorage(bytes), recorder, file, { dropBarriers, wait })
  );
  const world = await World.open({
    open: () => disk.open(storages, { l2CacheBytes: it.l2CacheBytes }),
    model,
    discarded: (sector) => disk.shape.version === 2 ? [disk.behind(sector)] : [],
    mayFail: (error) => error.kind === "unsupported" && disk.shape.refcountBits < 8,
    afterFlush: () => dropBarriers && storages.forEach((storage) => storage.recordFlush()),
  });
  const ground: Ground = { clusterBytes: disk.shape.clusterBytes, sizes: it.sizes };
  const told = (error: unknown) => {
    const message = error instanceof Error ? error.message : String(error);
    return new Error(`${it.name}, seed ${seed}: ${message}\n${world.story.join("\n")}`, { cause: error });
  };
  try {
    for (let i = it.actions ?? 25; i > 0; i--) {
      if (it.late && random.oneIn(3)) await runTogether(random, world, ground.clusterBytes);
      else await world.run(nextAction(random, world, ground, it.weights));
    }
    await world.check();
    await world.close();
    await judgeQcow2(disk, model, { files: storages.map((storage) => storage.inner.bytes.slice()) });
    return await explore({
      initial: prepared,
      operations: recorder.operations,
      random,
      states: it.states ?? options.states,
      epoch: (tick) => model.epoch(tick),
      async judge(state) {
        const { bytes, wasDirty } = await judgeQcow2(disk, model, state);
        options.also?.(wasDirty ? bytes : state.files[0]);
      },
    });
  } catch (error) {
    throw told(error);
  }
}

/** The files after some actions, which the model knows then. */
async function prepare(disk: Qcow2Disk, model: ModelDisk, actions: readonly Action[]): Promise<Uint8Array[]> {
  if (actions.length === 0) return [...disk.initial];
  const storages = disk.initial.map((bytes) => new ByteStorage(bytes));
  const open: () => Promise<TestImage> = () => disk.open(storages);
  const world = await World.open({ open, model });
  for (const action of [...actions, { kind: "flush" } as const]) await world.run(action);
  await world.close();
  // All of that is certain before the record begins.
  model.crash();
  return storages.map((storage) => storage.bytes.slice());
}
