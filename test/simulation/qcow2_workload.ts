/**
 * Workloads by chance for qcow2 images of any kind.
 */

import type { Completion } from "../../src/storage/storage.ts";
import type { Random } from "../random.ts";
import { disjointRanges, nextAction, type Weights } from "./actions.ts";
import type { Qcow2Shape } from "./qcow2_disk.ts";
import { SECTOR } from "./sectors.ts";
import type { Action, World } from "./world.ts";

/** What a kind of image can be asked for. */
function weightsFor(random: Random, shape: Qcow2Shape): Weights {
  const all: Weights = { write: 10, zeroes: 3, discard: 3, flush: 2, read: 4, reopen: 1, resize: 1 };
  if (shape.dataFile !== "none") return all;
  const guest = { ...all, compressed: 4 };
  if (shape.refcountBits === 1 || random.oneIn(4)) return guest;
  // As in QEMU, version 2 images with snapshots have one size.
  return { ...guest, snapshot: 2, apply: 1, delete: 1, resize: shape.version === 2 ? 0 : 1 };
}

/** Holds operations back for a while, or not. */
export function waiting(random: Random): () => Completion {
  return () => {
    if (random.oneIn(3)) return;
    // Sometimes long enough for a flush in between.
    const most = random.oneIn(8) ? 300 : 12;
    return (async () => {
      for (let n = random.below(most); n > 0; n--) await undefined;
    })();
  };
}

/** Some actions, one after the other and a few together; `after` is called after each. */
export async function runWorkload(
  random: Random,
  world: World,
  shape: Qcow2Shape,
  count: number,
  after: () => void = () => {},
): Promise<void> {
  const sizes = [0.5, 1, 1.2, 3].map((part) => Math.max(SECTOR, Math.floor(shape.sizeBytes * part / SECTOR) * SECTOR));
  const ground = { clusterBytes: shape.clusterBytes, sizes };
  const weights = weightsFor(random, shape);
  for (let n = count; n > 0; n--) {
    if (random.oneIn(4)) await runTogether(random, world, shape.clusterBytes);
    else await world.run(nextAction(random, world, ground, weights));
    after();
  }
}

/** Several requests that do not touch each other, at the same time. */
export async function runTogether(random: Random, world: World, clusterBytes: number): Promise<void> {
  if (!world.isOpen || world.model.sizeBytes === 0) return;
  const ranges = disjointRanges(random, world.model.sizeBytes, clusterBytes, random.between(2, 10));
  const actions = ranges.map((range): Action => {
    const kind = random.pick(["write", "write", "write", "zeroes", "discard", "read"] as const);
    return kind === "zeroes" ? { kind, ...range, mayUnmap: random.oneIn(2) } : { kind, ...range };
  });
  // Others read at the same time, and a little later, what is being changed.
  for (const range of ranges) {
    if (random.oneIn(2)) actions.push({ kind: "read", ...range, racing: true });
  }
  random.shuffle(actions);
  if (random.oneIn(2)) actions.push({ kind: "flush" });
  world.story.push(`together: ${actions.length}`);
  await Promise.all(actions.map((action) => world.run(action)));
}
