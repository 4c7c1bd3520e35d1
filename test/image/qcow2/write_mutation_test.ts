/**
 * Mutated images that are opened for writing: read, write, discard, flush, close, check and repair end in a BlockError or
 * in a right answer, soon, and without asking for much.
 */

import { assert, assertEquals } from "@std/assert";
import { checkQcow2 } from "../../../src/image/qcow2/check.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { repairQcow2 } from "../../../src/image/qcow2/repair.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { forSeedsAsync, Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { audit } from "../../simulation/qcow2_audit.ts";
import { makeQcow2Disk, type OpenQcow2, PLAIN, type Qcow2Disk, type Qcow2Shape } from "../../simulation/qcow2_disk.ts";
import { sectorsOf } from "../../simulation/sectors.ts";
import { readBytes, sameBytes } from "../../storage/support.ts";
import { change } from "./mutate.ts";

const MUTATIONS = 20_000;
const KIB = 1024;
/** Most that is read or written at a time. */
const PART = 12 * KIB;
/** The images have a few hundred clusters; whoever needs more operations than this does not end. */
const MOST_OPERATIONS = 20_000;

const SHAPES: readonly Partial<Qcow2Shape>[] = [
  {},
  { version: 2 },
  { refcountBits: 64, compression: "zstd" },
  { refcountBits: 1, lazyRefcounts: true },
  { clusterBytes: 16 * KIB, extendedL2: true },
  { backing: "raw", backingBytes: 24 * KIB },
  { dataFile: "plain" },
];

/** A sound image with a bit of everything, and where its metadata are. */
interface Sound {
  readonly disk: Qcow2Disk;
  readonly files: readonly Uint8Array<ArrayBuffer>[];
  readonly regions: readonly (readonly [offset: number, lengthBytes: number])[];
}

const tags = (first: number, count: number) => sectorsOf(Array.from({ length: count }, (_, i) => first + i));

async function makeSound(shape: Partial<Qcow2Shape>): Promise<Sound> {
  const disk = await makeQcow2Disk({ ...PLAIN, sizeBytes: 32 * KIB, ...shape });
  const storages = disk.initial.map((bytes) => new ByteStorage(bytes));
  const image = await disk.open(storages);
  await image.write(3 * KIB, SegmentList.over(tags(1, 20)));
  if (disk.shape.dataFile === "none") {
    await image.writeCompressed!(16 * KIB, SegmentList.over(tags(100, 32)));
    if (disk.shape.refcountBits > 1) {
      await image.createSnapshot!("one");
      await image.write(0, SegmentList.over(tags(200, 20)));
      await image.createSnapshot!("two");
    }
  }
  await image.writeZeroes(8 * KIB, 4 * KIB, true);
  await image.write(26 * KIB, SegmentList.over(tags(300, 5)));
  // One with lazy refcounts is left as a crash leaves it.
  await (disk.shape.lazyRefcounts ? image.flush() : image.close());
  const files = storages.map((storage) => storage.bytes.slice());
  return { disk, files, regions: regionsOf(files[0]) };
}

/** The header, and the tables that it leads to. */
function regionsOf(bytes: Uint8Array): [number, number][] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const offset = (at: number) => Number(view.getBigUint64(at) & 0x00ff_ffff_ffff_fe00n);
  const cluster = 2 ** view.getUint32(20);
  const [l1, refcounts, snapshots] = [offset(40), offset(48), offset(64)];
  const regions: [number, number][] = [[0, 160], [0, 112], [l1, view.getUint32(36) * 8], [refcounts, 64]];
  if (view.getUint32(60) > 0) regions.push([snapshots, 150], [offset(snapshots), 24]);
  for (const table of [offset(l1), offset(refcounts), offset(l1)]) regions.push([table, Math.min(cluster, 512)]);
  return regions;
}

function mutate({ files, regions }: Sound, random: Random): Uint8Array<ArrayBuffer> {
  const bytes = files[0].slice();
  for (let n = random.between(1, 3); n > 0; n--) {
    const [offset, lengthBytes] = random.pick(regions);
    change(bytes, offset + random.below(lengthBytes), bytes.byteLength, random);
  }
  return random.oneIn(20) ? bytes.slice(0, random.below(bytes.byteLength)) : bytes;
}

/** Whether something could be done; anything but a BlockError is a failure. */
async function attempt(action: () => unknown): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}

/** Storages that count, and refuse what no image of this size has a reason for. */
function watched(files: readonly Uint8Array<ArrayBuffer>[]): FaultStorage[] {
  let operations = 0;
  return files.map((bytes) => {
    const file = new ByteStorage(bytes);
    return new FaultStorage(file, ({ kind, offset, lengthBytes }) => {
      assert(++operations < MOST_OPERATIONS, "it does not end");
      assert(Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(lengthBytes) && lengthBytes >= 0);
      if (kind === "read") assert(offset + lengthBytes <= file.sizeBytes, `read ${offset} ${lengthBytes}`);
    });
  });
}

/** Uses a disk for a while; `"used"` when all of it went well. */
async function use(image: OpenQcow2, isSound: boolean, random: Random): Promise<"used" | "failed"> {
  let fine = true;
  const { sizeBytes } = image;
  for (const offset of [0, random.oneIn(2) ? Math.max(0, sizeBytes - PART) : 512 * random.below(32)]) {
    const length = Math.min(PART, sizeBytes - offset);
    if (length <= 0) continue;
    fine = await attempt(() => readBytes(image, offset, length)) && fine;
    const data = tags(500, Math.min(length, 512 * random.between(1, 20)) / 512);
    if (await attempt(() => image.write(offset, SegmentList.over(data)))) {
      const back = { bytes: new Uint8Array() };
      // What was written without complaint must be there, unless reading complains, or two places are one.
      if (await attempt(async () => back.bytes = await readBytes(image, offset, data.byteLength))) {
        assert(!isSound || sameBytes(back.bytes, data), `what was written to ${offset} is not there`);
      } else fine = false;
    } else fine = false;
    fine = await attempt(() => image.discard(offset, length)) && fine;
    fine = await attempt(() => image.writeZeroes(offset, Math.min(length, 4 * KIB), true)) && fine;
    fine = await attempt(() => image.flush()) && fine;
  }
  return await attempt(() => image.close()) && fine ? "used" : "failed";
}

/** Whether no cluster is used more often than it is counted. */
function isSound(bytes: Uint8Array): boolean {
  try {
    return audit(bytes).errors.length === 0;
  } catch {
    return false;
  }
}

/** Checks, and repairs until nothing is left to repair, which is not to take long. */
async function checkAndRepair(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  const [storage] = watched([bytes]);
  await checkQcow2(storage, await readHeader(storage));
  // As in QEMU, what one repair brings to light is for the next.
  for (let round = 0; round < 3; round++) {
    const { corruptions, checkErrors, failure } = await repairQcow2(storage, await readHeader(storage), "all");
    if (corruptions > 0 || checkErrors > 0 || failure !== null) return;
    const after = await checkQcow2(storage, await readHeader(storage));
    assert(after.checkErrors === 0 && after.failure === null);
    if (after.corruptions === 0 && after.leaks === 0) return;
  }
  throw new Error("three repairs leave something to repair");
}

async function outcome(sound: Sound, bytes: Uint8Array<ArrayBuffer>, random: Random): Promise<string> {
  if (random.oneIn(5)) await attempt(() => checkAndRepair(bytes));
  const storages = watched([bytes, ...sound.files.slice(1)]);
  const opened: { image?: OpenQcow2 } = {};
  if (!await attempt(async () => opened.image = await sound.disk.open(storages))) return "not opened";
  return await use(opened.image!, isSound(bytes), random);
}

Deno.test(`${MUTATIONS} mutated images that are written to end in an answer or in a BlockError`, async () => {
  const before = Deno.memoryUsage().rss;
  const seen: Record<string, number> = {};
  const images = await Promise.all(SHAPES.map(makeSound));
  await forSeedsAsync(MUTATIONS, 1, async (random) => {
    const sound = random.pick(images);
    const result = await outcome(sound, mutate(sound, random), random);
    seen[result] = (seen[result] ?? 0) + 1;
  });
  // The mutations are neither all deadly nor all harmless.
  assert(
    Object.keys(seen).length === 3 && Object.values(seen).every((count) => count > MUTATIONS / 100),
    JSON.stringify(seen),
  );
  assert(Deno.memoryUsage().rss - before < 1 << 30);
});

Deno.test("the images that are mutated are sound, and are used without a complaint (canary)", async () => {
  for (const shape of SHAPES) {
    const sound = await makeSound(shape);
    assertEquals(audit(sound.files[0]).errors, []);
    assertEquals(await outcome(sound, sound.files[0].slice(), new Random(1)), "used");
  }
});
