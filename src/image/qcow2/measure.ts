/**
 * How large a qcow2 file gets, worked out without making one.
 *
 * @module
 */

import type { DetailValue } from "../image.ts";
import { refcountClustersFor } from "./create.ts";
import { checkClusterSize, checkRefcountBits, CreateOptionsError, l1EntriesFor } from "./create_options.ts";
import { L1_MAX_BYTES } from "./qcow2_layout.ts";

/** What makes a difference. */
export interface MeasureShape {
  readonly version: 2 | 3;
  readonly clusterBytes: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
}

/**
 * Checks a shape, in QEMU's words for this command.
 *
 * @param sizeBytes of the disk, where the user gave one
 * @throws CreateOptionsError
 */
export function checkShape({ version, clusterBytes, refcountBits, extendedL2 }: MeasureShape, sizeBytes: number): void {
  checkClusterSize(clusterBytes, extendedL2);
  checkRefcountBits(refcountBits);
  if (version < 3 && refcountBits !== 16) {
    throw new CreateOptionsError(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
    );
  }
  if (l1EntriesFor(sizeBytes, clusterBytes, extendedL2) * 8 > L1_MAX_BYTES) {
    throw new CreateOptionsError("The image size is too large (try using a larger cluster size)");
  }
}

/** Size of a file in which each cluster of the disk is stored, in bytes. Tables are counted as whole clusters. */
export function fullyAllocatedBytes(shape: MeasureShape, sizeBytes: number): number {
  const { clusterBytes, extendedL2, refcountBits } = shape;
  const data = Math.ceil(sizeBytes / clusterBytes);
  const l2Tables = l1EntriesFor(sizeBytes, clusterBytes, extendedL2);
  const others = 1 + data + l2Tables + Math.ceil(l2Tables * 8 / clusterBytes);
  const { tableClusters, blocks } = refcountClustersFor(others, clusterBytes, refcountBits);
  return (others + tableClusters + blocks) * clusterBytes;
}

/**
 * What the persistent bitmaps of an image would take in an image with other clusters, in bytes.
 *
 * @param bitmaps the facts of the image about them
 */
export function bitmapsBytes(bitmaps: DetailValue | undefined, sizeBytes: number, clusterBytes: number): number {
  let total = 0;
  let directory = 0;
  for (const bitmap of Array.isArray(bitmaps) ? bitmaps : []) {
    const { flags, name, granularity } = bitmap as { flags: string[]; name: string; granularity: number };
    // Nobody knows what is in a bitmap that was not closed.
    if (flags.includes("in-use")) continue;
    const clusters = Math.ceil(Math.ceil(sizeBytes / granularity) / (8 * clusterBytes));
    const table = Math.ceil(clusters * 8 / clusterBytes);
    total += (clusters + table) * clusterBytes;
    directory += Math.ceil((24 + new TextEncoder().encode(name).byteLength) / 8) * 8;
  }
  return total + Math.ceil(directory / clusterBytes) * clusterBytes;
}
