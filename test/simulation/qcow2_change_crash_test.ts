/**
 * Crashes while an image is amended, committed or rebased. None of these changes what a disk holds, so every
 * state that a crash may leave has the same disk, and the same snapshots.
 */

import { assert, assertRejects } from "@std/assert";
import { commitImage } from "../../src/image/commit.ts";
import type { CreateValues } from "../../src/image/create_options.ts";
import type { Image } from "../../src/image/image.ts";
import { amendQcow2 } from "../../src/image/qcow2/amend.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../src/image/qcow2/create.ts";
import { makeEmpty } from "../../src/image/qcow2/make_empty.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { replaceHeader } from "../../src/image/qcow2/replace_header.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { copyDifferences, RebaseError } from "../../src/image/rebase.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import type { Storage } from "../../src/storage/storage.ts";
import { Random } from "../random.ts";
import { ByteStorage } from "./byte_storage.ts";
import { explore, hashOf } from "./crash_explorer.ts";
import { audit } from "./qcow2_audit.ts";
import { Recorder, RecordingStorage } from "./recording_storage.ts";
import { asSnapshot, snapshotsOf } from "./snapshots.ts";

/** Four L2 tables, so that snapshots share some. */
const DISK_BYTES = 128 << 10;

/** Images by the names that others record; the first is the one that is changed. */
const NAMES = ["top", "base", "other"] as const;

/** What to make, and what to do with it. */
interface ChangeCase {
  readonly name: string;
  readonly top?: Partial<Qcow2CreateOptions>;
  /** Whether `base` is behind it. */
  readonly backed?: boolean;
  readonly baseBytes?: number;
  readonly base?: Partial<Qcow2CreateOptions>;
  readonly snapshots?: number;
  /** Snapshots show what is behind the image too, and that changes. */
  readonly changesSnapshots?: boolean;
  readonly change: (open: (options?: OpenChain) => Promise<Qcow2Image>, storages: readonly Storage[]) => Promise<void>;
}

interface OpenChain {
  readonly readOnly?: boolean;
  /** Whether what is behind may be written. */
  readonly writableBase?: boolean;
}

async function openTop(storages: readonly Storage[], { readOnly = false, writableBase = false }: OpenChain = {}) {
  return await Qcow2Image.open(storages[0], {
    readOnly,
    openBacking: (name, format) => openBehind(storages[NAMES.indexOf(name as "base")], format, !writableBase),
  });
}

async function openBehind(storage: Storage, format: string | null, readOnly: boolean): Promise<Image> {
  return format === "raw" ? new RawImage(storage) : await Qcow2Image.open(storage, { readOnly });
}

async function scribble(image: Image, random: Random, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const offset = 512 * random.below(image.sizeBytes / 512);
    const length = Math.min(512 * random.between(1, 12), image.sizeBytes - offset);
    const kind = random.below(6);
    if (kind === 0) await image.writeZeroes(offset, length, true);
    else if (kind === 1) await image.writeZeroes(offset, length, false);
    else if (kind === 2) await image.discard(offset, length);
    else await image.write(offset, SegmentList.over(new Uint8Array(length).fill(random.between(1, 255))));
  }
}

async function make({ top, base, baseBytes = DISK_BYTES, backed = false, snapshots = 0 }: ChangeCase, random: Random) {
  const storages = NAMES.map((name) => new ByteStorage(new Uint8Array(), name));
  const common = { clusterBytes: 512, sizeBytes: DISK_BYTES };
  await createQcow2(storages[1], { ...common, ...base, sizeBytes: baseBytes });
  await createQcow2(storages[2], { ...common, clusterBytes: 1024, sizeBytes: DISK_BYTES + 4096 });
  const backing = backed ? { backingName: "base", backingFormat: "qcow2" } : {};
  await createQcow2(storages[0], { ...common, ...backing, ...top });
  for (const behind of storages.slice(1)) {
    const image = await Qcow2Image.open(behind);
    await scribble(image, random, 20);
    await image.close();
  }
  const image = await openTop(storages);
  for (let i = 0; i < snapshots; i++) {
    await scribble(image, random, 8);
    await image.createSnapshot(`s${i}`, 0);
  }
  await scribble(image, random, 12);
  await image.close();
  return storages.map((storage) => storage.bytes.slice());
}

/** What the disk holds, and each snapshot. */
async function contentsOf(files: readonly Uint8Array[], withSnapshots: boolean): Promise<string> {
  const hash = async (top: Uint8Array) => {
    const storages = [top, ...files.slice(1)].map((bytes, i) => new ByteStorage(bytes, NAMES[i]));
    const image = await openTop(storages, { readOnly: true });
    const bytes = new Uint8Array(image.sizeBytes);
    await image.read(0, SegmentList.over(bytes));
    return hashOf(bytes);
  };
  const snapshots = withSnapshots ? snapshotsOf(files[0]) : [];
  const parts = [`disk ${await hash(files[0])}`];
  for (const snapshot of snapshots) parts.push(`${snapshot.name} ${await hash(asSnapshot(files[0], snapshot))}`);
  return parts.join("; ");
}

async function judge(
  files: readonly Uint8Array<ArrayBuffer>[],
  expected: string,
  withSnapshots: boolean,
): Promise<void> {
  faultless("as the crash left it", files[0]);
  faultless("the base", files[1]);
  const found = await contentsOf(files, withSnapshots);
  if (found !== expected) throw new Error(`it holds ${found}, and not ${expected}`);
  const storages = files.map((bytes, i) => new ByteStorage(bytes, NAMES[i]));
  await (await openTop(storages)).close();
  faultless("after it was opened and closed", storages[0].bytes);
  const after = await contentsOf(storages.map((storage) => storage.bytes.slice()), withSnapshots);
  if (after !== expected) throw new Error(`after it was opened, it holds ${after}, and not ${expected}`);
}

function faultless(when: string, bytes: Uint8Array): void {
  const { errors, wrongFlags } = audit(bytes);
  if (errors.length + wrongFlags.length > 0) {
    throw new Error(`${when}: ${[...errors, ...wrongFlags].slice(0, 5).join("; ")}`);
  }
}

/** Changes images while each operation of a storage fails, one after the other; returns how many. */
async function fail(it: ChangeCase, seed: number): Promise<number> {
  const initial = await make(it, new Random(seed));
  const withSnapshots = !it.changesSnapshots;
  const expected = await contentsOf(initial, withSnapshots);
  for (let failing = 0;; failing++) {
    let left = failing;
    const wait = () => {
      if (left-- !== 0) return;
      throw new BlockError({ kind: "io", path: "test", operation: "write" });
    };
    const recorder = new Recorder();
    const storages = initial.map((bytes, i) =>
      new RecordingStorage(new ByteStorage(bytes, NAMES[i]), recorder, i, { wait })
    );
    try {
      await it.change((options) => openTop(storages, options), storages);
      if (left >= 0) return failing;
    } catch (error) {
      if (!(error instanceof BlockError) && !(error instanceof RebaseError)) throw error;
    }
    try {
      await judge(storages.map((storage) => storage.inner.bytes.slice()), expected, withSnapshots);
    } catch (error) {
      throw new Error(`seed ${seed}, operation ${failing} failed: ${(error as Error).message}`, { cause: error });
    }
  }
}

/** Makes images, changes them, and judges every state; returns how many. */
async function crash(it: ChangeCase, seed: number, dropBarriers = false): Promise<number> {
  const random = new Random(seed);
  const initial = await make(it, random);
  const withSnapshots = !it.changesSnapshots;
  const expected = await contentsOf(initial, withSnapshots);
  const recorder = new Recorder();
  const storages = initial.map((bytes, i) =>
    new RecordingStorage(new ByteStorage(bytes, NAMES[i]), recorder, i, { dropBarriers })
  );
  await it.change((options) => openTop(storages, options), storages);
  const ended = storages.map((storage) => storage.inner.bytes.slice());
  await judge(ended, expected, withSnapshots);
  const { leaks } = audit(ended[0]);
  if (leaks > 0) throw new Error(`${leaks} clusters are lost`);
  return await explore({
    initial,
    operations: recorder.operations,
    random,
    states: 150,
    judge: ({ files }) => judge(files, expected, withSnapshots),
  });
}

function amending(values: Record<string, string | number | boolean>): ChangeCase["change"] {
  const map: CreateValues = new Map(Object.entries(values));
  return (open) => amendQcow2(open, map, () => {});
}

const committing: ChangeCase["change"] = async (open) => {
  const image = await open({ writableBase: true });
  await commitImage(image, { depth: 1 });
  await image.exclusive((tables) => makeEmpty(tables));
  await image.close();
};

function rebasing(name: "other" | null, hasZeroUnits: boolean): ChangeCase["change"] {
  return async (open, storages) => {
    const image = await open();
    const newBacking = name === null ? null : await Qcow2Image.open(storages[2], { readOnly: true });
    const unitBytes = 2 ** image.header.clusterBits;
    await copyDifferences(image, { newBacking, unitBytes, hasZeroUnits });
    await image.flush();
    const backingFormat = name === null ? null : "qcow2";
    await image.exclusive(({ file }) => replaceHeader(file, { backingName: name, backingFormat }));
    await image.close();
  };
}

const CASES: readonly ChangeCase[] = [
  { name: "amend to wider refcounts", snapshots: 2, change: amending({ refcount_bits: 64 }) },
  { name: "amend to narrower refcounts", snapshots: 1, change: amending({ refcount_bits: 2 }) },
  { name: "amend to refcounts of one bit, over a backing image", backed: true, change: amending({ refcount_bits: 1 }) },
  { name: "amend an old image", top: { version: 2 }, snapshots: 2, change: amending({ compat: "1.1" }) },
  {
    name: "amend an old image in all ways",
    top: { version: 2 },
    snapshots: 1,
    backed: true,
    change: amending({ compat: "1.1", refcount_bits: 8, lazy_refcounts: true }),
  },
  { name: "amend to the old version", snapshots: 2, change: amending({ compat: "0.10" }) },
  {
    name: "amend to the old version, zeros over a backing image",
    snapshots: 2,
    backed: true,
    change: amending({ compat: "0.10" }),
  },
  {
    name: "amend to the old version, with lazy refcounts",
    top: { lazyRefcounts: true },
    backed: true,
    change: amending({ compat: "0.10", lazy_refcounts: false }),
  },
  { name: "commit", backed: true, change: committing },
  {
    name: "commit an image with snapshots",
    backed: true,
    snapshots: 2,
    changesSnapshots: true,
    baseBytes: 40 << 10,
    change: committing,
  },
  {
    name: "commit old images",
    backed: true,
    baseBytes: 60 << 10,
    top: { version: 2 },
    base: { version: 2 },
    change: committing,
  },
  { name: "commit with lazy refcounts", backed: true, top: { lazyRefcounts: true }, change: committing },
  { name: "rebase", backed: true, change: rebasing("other", true) },
  { name: "rebase onto a longer image", backed: true, baseBytes: 20 << 10, change: rebasing("other", true) },
  {
    name: "rebase an old image onto a longer one",
    backed: true,
    top: { version: 2 },
    baseBytes: 20 << 10,
    change: rebasing("other", false),
  },
  { name: "rebase onto nothing", backed: true, change: rebasing(null, true) },
];

for (const it of CASES) {
  Deno.test(`an image survives every crash: ${it.name}`, async () => {
    let judged = 0;
    for (const seed of [1, 2, 3]) judged += await crash(it, seed);
    assert(judged > 8, `only ${judged} states`);
  });
}

for (const it of CASES) {
  Deno.test(`an image survives the failure of each read, write and flush: ${it.name}`, async () => {
    assert(await fail(it, 1) > 20);
  });
}

for (
  const name of ["amend to wider refcounts", "amend to the old version, zeros over a backing image", "commit", "rebase"]
) {
  Deno.test(`an image whose barriers are lost does not survive every crash: ${name} (canary)`, async () => {
    const it = CASES.find((other) => other.name === name)!;
    await assertRejects(
      async () => {
        for (let seed = 1; seed <= 10; seed++) await crash(it, seed, true);
      },
      Error,
      "after a crash at",
    );
  });
}
