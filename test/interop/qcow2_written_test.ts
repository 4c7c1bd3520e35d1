/**
 * Images that vblk makes and writes, over the space of the format's options: QEMU finds them sound, and reads what was
 * written.
 */

import { assert, assertEquals } from "@std/assert";
import { join } from "node:path";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { NEEDS_QEMU, start } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { ByteStorage } from "../simulation/byte_storage.ts";
import { ModelDisk } from "../simulation/model_disk.ts";
import { backingFile, makeQcow2Disk, pickQcow2Shape, type Qcow2Disk } from "../simulation/qcow2_disk.ts";
import { runWorkload } from "../simulation/qcow2_workload.ts";
import { sectorsOf } from "../simulation/sectors.ts";
import { World } from "../simulation/world.ts";
import { firstDifference, Folder } from "../storage/support.ts";

/** Workloads, each with a seed of its own, and how many of them share a call of qemu-img. */
const CASES = 1600;
const FIRST_SEED = 1;
const TOGETHER = 16;
/** Batches at a time. */
const LANES = 3;

/** An image on disk, and what QEMU must read of it. */
interface Written {
  readonly seed: number;
  readonly path: string;
  readonly expected: Uint8Array;
  readonly snapshots: readonly { readonly name: string; readonly expected: Uint8Array }[];
  readonly story: string;
}

/** Makes an image in a folder, and writes to it. */
async function writeImage(seed: number, folder: string): Promise<Written> {
  const random = new Random(seed);
  const shape = pickQcow2Shape(random);
  // QEMU looks for a data file in the folder where it runs.
  const disk = await makeQcow2Disk(shape, join(folder, "data"));
  Deno.mkdirSync(folder);
  if (shape.backing !== "none") Deno.writeFileSync(join(folder, "base"), backingFile(shape));
  const paths = ["disk", "data"].slice(0, disk.initial.length).map((name) => join(folder, name));
  const world = await openWorld(disk, paths, random.oneIn(2));
  const told = () => `seed ${seed}: ${JSON.stringify(shape)}\n${world.story.join("\n")}`;
  try {
    await runWorkload(random, world, shape, random.between(5, 30));
    await world.check();
    await world.close();
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${told()}`, { cause: error });
  }
  const snapshots = world.model.snapshotNames.map((name) => ({ name, expected: sectorsOf(world.model.tags(name)) }));
  return { seed, path: paths[0], expected: sectorsOf(world.model.tags()), snapshots, story: told() };
}

/** A disk whose files are there, or are put there whenever it is closed. */
async function openWorld(disk: Qcow2Disk, paths: readonly string[], inMemory: boolean): Promise<World> {
  const memory = disk.initial.map((bytes) => new ByteStorage(bytes));
  const save = () => paths.forEach((path, i) => Deno.writeFileSync(path, memory[i].bytes));
  let tick = 0;
  save();
  return await World.open({
    // No lock: a program that another lane is about to start holds a copy of the file until it is started.
    open: () => disk.open(inMemory ? memory : paths.map((path) => DenoFileStorage.open(path, { share: true }))),
    model: new ModelDisk(disk.tags, () => ++tick),
    discarded: (sector) => disk.shape.version === 2 ? [disk.behind(sector)] : [],
    mayFail: (error) => error.kind === "unsupported" && disk.shape.refcountBits < 8,
    afterClose: () => inMemory && save(),
  });
}

/** QEMU checks each image, and reads all of them in one call. */
async function judge(images: readonly Written[], folder: string): Promise<number> {
  for (const { path, story } of images) {
    try {
      await start("qemu-img", "check", "-q", "-f", "qcow2", path);
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${story}`);
    }
  }
  const raw = join(folder, "raw");
  await start("qemu-img", "convert", "-f", "qcow2", "-O", "raw", ...images.map(({ path }) => path), raw);
  const bytes = await Deno.readFile(raw);
  let at = 0;
  for (const { expected, story } of images) {
    assertSame(bytes.subarray(at, at + expected.byteLength), expected, story);
    at += expected.byteLength;
  }
  assertEquals(at, bytes.byteLength);
  let snapshots = 0;
  for (const image of images) {
    const snapshot = image.snapshots.at(-1);
    if (snapshot === undefined || image.seed % 4 !== 0) continue;
    await start("qemu-img", "convert", "-l", `snapshot.name=${snapshot.name}`, "-O", "raw", image.path, raw);
    // QEMU 7.2 shows a snapshot at the size that the disk has now.
    const found = await Deno.readFile(raw);
    const length = Math.min(found.byteLength, snapshot.expected.byteLength);
    const story = `snapshot ${snapshot.name}, ${image.story}`;
    assertSame(found.subarray(0, length), snapshot.expected.subarray(0, length), story);
    snapshots++;
  }
  return snapshots;
}

function assertSame(found: Uint8Array, expected: Uint8Array, story: string): void {
  const where = firstDifference(found, expected);
  if (where >= 0) throw new Error(`QEMU reads something else at ${where}: ${story}`);
}

Deno.test({
  name: `${CASES} images that vblk wrote, from seed ${FIRST_SEED} on, are sound to QEMU, and it reads what was written`,
  ...NEEDS_QEMU,
  async fn() {
    let next = FIRST_SEED;
    let snapshots = 0;
    const lane = async () => {
      while (next < FIRST_SEED + CASES) {
        const first = next;
        next += TOGETHER;
        using folder = new Folder();
        const images: Written[] = [];
        for (let seed = first; seed < Math.min(next, FIRST_SEED + CASES); seed++) {
          images.push(await writeImage(seed, join(folder.path, String(seed))));
        }
        snapshots += await judge(images, folder.path);
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
    assert(snapshots > CASES / 100, `only ${snapshots} snapshots`);
  },
});

Deno.test({
  name: "an image that holds something else, or counts a cluster wrongly, does not pass QEMU's judgement (canary)",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const image = await writeImage(FIRST_SEED, join(folder.path, "one"));
    await judge([image], folder.path);
    const other = { ...image, expected: image.expected.map((byte, i) => i === 1000 ? byte ^ 1 : byte) };
    const failures: string[] = [];
    const fail = (error: Error) => void failures.push(error.message);
    await judge([other], folder.path).catch(fail);
    const bytes = Deno.readFileSync(image.path);
    const view = new DataView(bytes.buffer);
    const block = Number(view.getBigUint64(Number(view.getBigUint64(48))));
    bytes[block + 1] ^= 3;
    Deno.writeFileSync(image.path, bytes);
    await judge([image], folder.path).catch(fail);
    assert(failures.length === 2 && failures[0].includes("QEMU reads something else at 1000"), failures.join("\n"));
    assert(/ERROR|Leaked/.test(failures[1]), failures[1]);
  },
});
