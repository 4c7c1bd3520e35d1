/**
 * Mutated images that are amended, emptied, preallocated, rebased: each ends in an answer or in an error that says what
 * is wrong, soon, and without asking for much.
 */

import { assert } from "@std/assert";
import type { CreateValues } from "../../../src/image/create_options.ts";
import { amendQcow2 } from "../../../src/image/qcow2/amend.ts";
import { CreateOptionsError } from "../../../src/image/qcow2/create_options.ts";
import { makeEmpty } from "../../../src/image/qcow2/make_empty.ts";
import { preallocateMetadata } from "../../../src/image/qcow2/preallocate.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { replaceHeader } from "../../../src/image/qcow2/replace_header.ts";
import { copyDifferences, RebaseError } from "../../../src/image/rebase.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { forSeedsAsync, type Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { makeQcow2Disk, PLAIN, type Qcow2Disk, type Qcow2Shape } from "../../simulation/qcow2_disk.ts";
import { change } from "./mutate.ts";

const MUTATIONS = 4000;
/** The images have less than a hundred clusters; whoever needs more operations than this does not end. */
const MOST_OPERATIONS = 20_000;

const SHAPES: readonly Partial<Qcow2Shape>[] = [
  {},
  { version: 2 },
  { refcountBits: 64 },
  { lazyRefcounts: true, backing: "raw", backingBytes: 24 << 10 },
  { clusterBytes: 16 << 10, extendedL2: true },
];

interface Sound {
  readonly disk: Qcow2Disk;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

async function makeSound(shape: Partial<Qcow2Shape>): Promise<Sound> {
  const disk = await makeQcow2Disk({ ...PLAIN, sizeBytes: 32 << 10, ...shape });
  const storage = new ByteStorage(disk.initial[0]);
  const image = await disk.open([storage]);
  await image.write(3 << 10, SegmentList.over(new Uint8Array(5000 - 5000 % 512).fill(1)));
  await image.createSnapshot("one", 0);
  await image.writeZeroes(4 << 10, 8 << 10, false);
  await image.write(20 << 10, SegmentList.over(new Uint8Array(2048).fill(2)));
  await image.close();
  return { disk, bytes: storage.bytes.slice() };
}

/** The header, and clusters: most of a small image are tables. */
function mutate(bytes: Uint8Array<ArrayBuffer>, random: Random): void {
  for (let n = random.between(1, 3); n > 0; n--) {
    const at = random.oneIn(2) ? random.below(112) : 8 * random.below(bytes.byteLength / 8);
    change(bytes, Math.min(at, bytes.byteLength - 8), bytes.byteLength, random);
  }
}

const AMENDMENTS: readonly Record<string, string | number | boolean>[] = [
  { refcount_bits: 8 },
  { refcount_bits: 64, compat: "1.1" },
  { compat: "0.10" },
  { compat: "1.1", lazy_refcounts: true },
  { size: 40 << 10 },
  { size: 8 << 10 },
];

async function changeSomehow(open: () => Promise<Qcow2Image>, random: Random): Promise<void> {
  if (random.oneIn(2)) {
    const values: CreateValues = new Map(Object.entries(random.pick(AMENDMENTS)));
    return await amendQcow2(open, values, () => {});
  }
  const image = await open();
  const kind = random.below(3);
  if (kind === 0) await image.exclusive((tables) => makeEmpty(tables));
  else if (kind === 1) {
    await image.exclusive((tables) => preallocateMetadata(tables, 0, Math.min(image.sizeBytes, 1e5)));
  } else if (image.sizeBytes < 1e6) {
    await copyDifferences(image, { newBacking: null, unitBytes: 512, hasZeroUnits: image.header.version >= 3 });
    await image.exclusive(({ file }) => replaceHeader(file, { backingName: "a", backingFormat: "raw" }));
  }
  await image.close();
}

Deno.test(`${MUTATIONS} mutated images that are changed end in an answer or in an error`, async () => {
  const images = await Promise.all(SHAPES.map(makeSound));
  const seen = { done: 0, refused: 0 };
  await forSeedsAsync(MUTATIONS, 1, async (random) => {
    const { disk, bytes } = random.pick(images);
    const mutated = bytes.slice();
    mutate(mutated, random);
    const file = new ByteStorage(mutated);
    let operations = 0;
    const storage = new FaultStorage(file, ({ kind, offset, lengthBytes }) => {
      assert(++operations < MOST_OPERATIONS, "it does not end");
      if (kind === "read") assert(offset + lengthBytes <= file.sizeBytes, `read ${offset} ${lengthBytes}`);
    });
    try {
      await changeSomehow(() => disk.open([storage]), random);
      seen.done++;
    } catch (error) {
      const isAnswer = error instanceof BlockError || error instanceof CreateOptionsError ||
        error instanceof RebaseError;
      if (!isAnswer) throw error;
      seen.refused++;
    }
  });
  assert(seen.done > MUTATIONS / 10 && seen.refused > MUTATIONS / 10, JSON.stringify(seen));
});
