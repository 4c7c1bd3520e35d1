/**
 * Actions on a disk, by chance: aligned to its clusters and not, small and large.
 */

import type { Random } from "../random.ts";
import { SECTOR } from "./sectors.ts";
import type { Action, World } from "./world.ts";

/** How often each kind comes; what is missing does not. */
export type Weights = Partial<Record<Action["kind"], number>>;

/** Everything that a guest can ask for. */
export const GUEST: Weights = { write: 8, zeroes: 3, discard: 2, flush: 2, read: 1 };

/** A kind of disk to act on. */
export interface Ground {
  readonly clusterBytes: number;
  /** Sizes that a resize may choose. */
  readonly sizes?: readonly number[];
}

/** The next action for the disk as it is now. */
export function nextAction(random: Random, world: World, ground: Ground, weights: Weights): Action {
  const kind = pickKind(random, weights);
  const { sizeBytes, snapshotNames } = world.model;
  switch (kind) {
    case "flush":
    case "reopen":
      return { kind };
    case "resize":
      return { kind, sizeBytes: random.pick(ground.sizes ?? [sizeBytes]) };
    case "snapshot":
      return { kind, name: `s${world.story.length}` };
    case "apply":
    case "delete":
      return snapshotNames.length === 0 ? { kind: "flush" } : { kind, name: random.pick(snapshotNames) };
  }
  if (sizeBytes === 0) return { kind: "flush" };
  const range = pickRange(random, sizeBytes, ground.clusterBytes, kind === "compressed");
  switch (kind) {
    case "zeroes":
      return { kind, ...range, mayUnmap: random.oneIn(2) };
    case "compressed":
      return { kind, ...range, noisy: random.oneIn(4) };
    case "write":
      return { kind, ...range, noisy: random.oneIn(2) };
    default:
      return { kind, ...range };
  }
}

function pickKind(random: Random, weights: Weights): Action["kind"] {
  const entries = Object.entries(weights) as [Action["kind"], number][];
  let at = random.below(entries.reduce((sum, [, weight]) => sum + weight, 0));
  return entries.find(([, weight]) => (at -= weight) < 0)![0];
}

/** A range of whole sectors; with `whole`, of whole clusters, but for the end of the disk. */
export function pickRange(
  random: Random,
  sizeBytes: number,
  clusterBytes: number,
  whole = false,
): { offset: number; lengthBytes: number } {
  const aligned = whole || random.oneIn(3);
  const unit = aligned ? clusterBytes : SECTOR;
  const offset = unit * random.below(Math.ceil(sizeBytes / unit));
  const most = aligned ? random.pick([1, 1, 2, 5]) : random.pick([1, 3, 8, 2 * Math.ceil(clusterBytes / SECTOR)]);
  return { offset, lengthBytes: Math.min(unit * random.between(1, most), sizeBytes - offset) };
}

/** Ranges that do not overlap, to be used at the same time; at least one. */
export function disjointRanges(random: Random, sizeBytes: number, clusterBytes: number, most: number) {
  const ranges: { offset: number; lengthBytes: number }[] = [];
  for (let i = 0; i < most; i++) {
    const range = pickRange(random, sizeBytes, clusterBytes);
    const end = range.offset + range.lengthBytes;
    if (ranges.every((other) => end <= other.offset || other.offset + other.lengthBytes <= range.offset)) {
      ranges.push(range);
    }
  }
  return ranges;
}
