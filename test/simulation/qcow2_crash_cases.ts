/** Workloads to crash, on the kinds of disk that they are about. */

import { GUEST } from "./actions.ts";
import type { CrashCase } from "./qcow2_crash.ts";

const KIB = 1024;
const SNAPSHOTS = { write: 6, zeroes: 2, discard: 1, flush: 1, snapshot: 3, apply: 1, delete: 2 };

/** One for each thing that writes in an order of its own. */
export const CASES: readonly CrashCase[] = [
  { name: "allocation", weights: { write: 5, flush: 1 } },
  { name: "everything a guest does", weights: GUEST },
  { name: "everything a guest does, version 2", shape: { version: 2 }, weights: GUEST },
  {
    name: "copy-on-write from a raw backing image",
    shape: { clusterBytes: 4096, backing: "raw", backingBytes: 50 * KIB },
    weights: GUEST,
  },
  {
    name: "copy-on-write from a qcow2 backing image, version 2",
    shape: { version: 2, clusterBytes: 2048, backing: "qcow2", backingBytes: 64 * KIB },
    weights: GUEST,
  },
  { name: "snapshots", weights: SNAPSHOTS },
  { name: "snapshots, version 2", shape: { version: 2 }, weights: SNAPSHOTS },
  {
    name: "snapshots over a backing image",
    shape: { clusterBytes: 1024, backing: "raw", backingBytes: 64 * KIB },
    weights: SNAPSHOTS,
  },
  { name: "snapshots with refcounts of 2 bits", shape: { refcountBits: 2 }, weights: { ...SNAPSHOTS, snapshot: 1 } },
  { name: "discard and zeroes", weights: { write: 3, discard: 3, zeroes: 3, flush: 1 } },
  {
    name: "resize, over L1 tables of several clusters",
    weights: { write: 4, resize: 2, flush: 1 },
    sizes: [0, 512, 31 * KIB, 64 * KIB, 3 << 20, 5 << 20],
  },
  {
    name: "resize over a backing image",
    shape: { backing: "raw", backingBytes: 128 * KIB },
    weights: { write: 4, resize: 2, flush: 1 },
    sizes: [10 * KIB, 64 * KIB, 100 * KIB, 300 * KIB],
  },
  {
    name: "compressed writes",
    shape: { clusterBytes: 2048 },
    weights: { compressed: 4, write: 2, discard: 1, flush: 1 },
  },
  {
    name: "compressed writes and snapshots, zstd",
    shape: { clusterBytes: 4096, compression: "zstd" },
    weights: { compressed: 4, write: 2, snapshot: 1, delete: 1, apply: 1 },
  },
  {
    name: "a refcount block now and then",
    shape: { refcountBits: 64 },
    weights: { write: 8, flush: 1 },
    actions: 60,
  },
  {
    name: "a longer refcount table",
    shape: { refcountBits: 64, sizeBytes: 4 << 20 },
    // The table that there is at first counts 2 MiB.
    before: [{ kind: "write", offset: 0, lengthBytes: 1978 * KIB }],
    weights: { write: 8, flush: 1, discard: 1 },
    actions: 16,
    states: 150,
  },
  { name: "lazy refcounts", shape: { lazyRefcounts: true }, weights: { ...GUEST, reopen: 1 } },
  { name: "lazy refcounts and snapshots", shape: { lazyRefcounts: true }, weights: { ...SNAPSHOTS, reopen: 1 } },
  {
    name: "extended L2",
    shape: { clusterBytes: 16 * KIB, sizeBytes: 256 * KIB, extendedL2: true, backing: "raw", backingBytes: 200 * KIB },
    weights: GUEST,
  },
  {
    name: "extended L2 and snapshots",
    shape: { clusterBytes: 16 * KIB, sizeBytes: 128 * KIB, extendedL2: true },
    weights: SNAPSHOTS,
  },
  { name: "an external data file", shape: { dataFile: "plain" }, weights: GUEST },
  {
    name: "an external data file over a backing image",
    shape: { dataFile: "plain", clusterBytes: 2048, backing: "raw", backingBytes: 64 * KIB },
    weights: GUEST,
  },
  { name: "a raw external data file", shape: { dataFile: "raw", clusterBytes: 1024 }, weights: GUEST },
  {
    name: "a table cache with room for nothing",
    shape: { sizeBytes: 1 << 20 },
    weights: { write: 8, discard: 2, zeroes: 2, flush: 1 },
    l2CacheBytes: 512,
    actions: 40,
  },
  { name: "many requests at a time, on a storage that answers late", weights: GUEST, late: true },
  {
    name: "many requests at a time and snapshots, over a backing image",
    shape: { clusterBytes: 1024, backing: "raw", backingBytes: 64 * KIB },
    weights: SNAPSHOTS,
    late: true,
  },
  { name: "opening and closing", weights: { write: 4, discard: 1, reopen: 2, snapshot: 1, delete: 1 } },
];
