/**
 * Images that QEMU made, with their snapshots, compressed clusters and bitmaps: vblk reads them, writes to them, and QEMU
 * still finds them sound, reads what both wrote, and finds its snapshots as they were.
 */

import { assert, assertEquals } from "@std/assert";
import { openImage } from "../../src/image/open.ts";
import type { Image } from "../../src/image/image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { makeImage, NEEDS_QEMU, pattern, start, writePatternFile } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { firstDifference, Folder, readBytes, tryRun } from "../storage/support.ts";

const IMAGES = 150;
const FIRST_SEED = 5001;
const LANES = 3;

/** Does something to the disk and to its model. */
async function act(image: Image, model: Uint8Array, random: Random): Promise<string> {
  const offset = 512 * random.below(image.sizeBytes / 512);
  const length = Math.min(512 * random.between(1, random.pick([4, 64, 600])), image.sizeBytes - offset);
  const part = model.subarray(offset, offset + length);
  switch (random.below(6)) {
    case 0:
      await image.writeZeroes(offset, length, random.oneIn(2));
      part.fill(0);
      return `zeroes ${offset} ${length}`;
    case 1:
      // What a discarded range holds then is the image's business; that it stays so is not.
      await image.discard(offset, length);
      part.set(await readBytes(image, offset, length));
      return `discard ${offset} ${length}`;
    case 2:
      await image.flush();
      return "flush";
    default: {
      const data = random.bytes(length);
      await image.write(offset, SegmentList.over(data));
      part.set(data);
      return `write ${offset} ${length}`;
    }
  }
}

/** What `qemu-img check` thinks: nothing but leaks is 3, and QEMU leaves some of its own. */
function check(path: string): { code: number; text: string } {
  const { code, stdout, stderr } = new Deno.Command("qemu-img", { args: ["check", "-f", "qcow2", path] }).outputSync();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

/** What `qemu-img info` knows, as far as it matters here. */
async function infoOf(path: string): Promise<{ snapshots: string[]; bitmaps: string[]; corrupt: boolean }> {
  const info = JSON.parse(await start("qemu-img", "info", "--output=json", path));
  const { bitmaps = [], corrupt = false } = info["format-specific"].data;
  const names = (items: { name: string }[]) => items.map(({ name }) => name);
  return { snapshots: names(info.snapshots ?? []), bitmaps: names(bitmaps), corrupt };
}

async function snapshotBytes(path: string, name: string): Promise<Uint8Array> {
  await start("qemu-img", "convert", "-l", `snapshot.name=${name}`, "-O", "raw", path, `${path}.snapshot`);
  return Deno.readFileSync(`${path}.snapshot`);
}

/** One image; says whether it had snapshots and bitmaps, or `null` when QEMU itself had damaged it. */
async function goBothWays(seed: number): Promise<{ snapshots: number; bitmaps: number } | null> {
  using folder = new Folder();
  const random = new Random(seed);
  const { path, sizeBytes, story } = await makeImage(folder, "disk", random);
  const told = () => `seed ${seed}\n${story.join("\n")}`;
  const before = check(path);
  const { success } = tryRun("qemu-img", "convert", "-O", "raw", path, `${path}.raw`);
  const { snapshots: names, corrupt } = await infoOf(path);
  // QEMU 7.2 damages some of its own images.
  if (!success || corrupt || (before.code !== 0 && before.code !== 3)) return null;
  const bitmaps: string[] = [];
  if (random.oneIn(3) && tryRun("qemu-img", "bitmap", "--add", path, "b0").success) bitmaps.push("b0");
  const kept: Uint8Array[] = [];
  for (const name of names) kept.push(await snapshotBytes(path, name));
  const model = Deno.readFileSync(`${path}.raw`);
  assertEquals(model.byteLength, sizeBytes);

  for (let round = random.between(1, 3); round > 0; round--) {
    // No lock: a program that another lane is about to start holds a copy of the file until it is started.
    const image = await openImage(path, { readOnly: false, share: true });
    for (let i = random.between(1, 12); i > 0; i--) story.push(await act(image, model, random));
    const found = await readBytes(image, 0, sizeBytes);
    assert(firstDifference(found, model) < 0, `differs at ${firstDifference(found, model)}: ${told()}`);
    await image.close();
    story.push("close");
  }

  const { code, text } = check(path);
  assert(code === 0 || code === before.code, `${text}\n${told()}`);
  Deno.writeFileSync(`${path}.raw`, model);
  const same = tryRun("qemu-img", "compare", "-f", "raw", "-F", "qcow2", `${path}.raw`, path);
  assert(same.success, `${same.text}\n${told()}`);
  const after = await infoOf(path);
  assertEquals(after.snapshots, names);
  // What they hold then is shown in qcow2_bitmaps_test.ts.
  assertEquals(after.bitmaps, bitmaps, told());
  for (const [i, name] of names.entries()) {
    assert(firstDifference(await snapshotBytes(path, name), kept[i]) < 0, `snapshot ${name}: ${told()}`);
  }
  return { snapshots: names.length, bitmaps: bitmaps.length };
}

Deno.test({
  name:
    `${IMAGES} images that QEMU made, from seed ${FIRST_SEED} on, are sound after vblk wrote to them, snapshots and all`,
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    const seen = { images: 0, snapshots: 0, bitmaps: 0 };
    let next = FIRST_SEED;
    const lane = async () => {
      while (next < FIRST_SEED + IMAGES) {
        const had = await goBothWays(next++);
        if (had === null) continue;
        seen.images++;
        seen.snapshots += had.snapshots;
        seen.bitmaps += had.bitmaps;
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
    const enough = seen.images > IMAGES * 0.8 && seen.snapshots > IMAGES / 8 && seen.bitmaps > IMAGES / 10;
    assert(enough, JSON.stringify(seen));
  },
});

Deno.test({
  name: "a snapshot that was written over in place would be noticed (canary)",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk");
    await start("qemu-img", "create", "-q", "-f", "qcow2", path, "64k");
    await start("qemu-io", "-c", "write -P 0x77 0 64k", path);
    await start("qemu-img", "snapshot", "-c", "one", path);
    const kept = await snapshotBytes(path, "one");
    const bytes = Deno.readFileSync(path);
    bytes[bytes.lastIndexOf(0x77)] = 2;
    Deno.writeFileSync(path, bytes);
    assert(firstDifference(await snapshotBytes(path, "one"), kept) >= 0);
    assertEquals(check(path).code, 0);
  },
});
