/**
 * Persistent bitmaps that vblk and QEMU write in turn, over sizes, clusters, granularities and kinds of change: QEMU
 * reads from each what was written while it was enabled, and finds the image sound.
 */

import { assert, assertEquals } from "@std/assert";
import { openImage } from "../../src/image/open.ts";
import type { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { runVblk } from "../cli/qemu_img.ts";
import { start } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder } from "../storage/support.ts";

const NEEDS = requires("qemu-img", "qemu-io", "qemu-nbd");
const FIRST_SEED = 1;
const SEEDS = 10;

/** What a bitmap must say: a byte for each granule. */
interface Model {
  readonly name: string;
  readonly granuleBytes: number;
  enabled: boolean;
  bits: Uint8Array;
}

function note(model: Model, offset: number, lengthBytes: number): void {
  if (!model.enabled || lengthBytes === 0) return;
  model.bits.fill(1, Math.floor(offset / model.granuleBytes), Math.ceil((offset + lengthBytes) / model.granuleBytes));
}

function resized(model: Model, sizeBytes: number): void {
  const bits = new Uint8Array(Math.ceil(sizeBytes / model.granuleBytes));
  bits.set(model.bits.subarray(0, bits.byteLength));
  model.bits = bits;
}

let copies = 0;

/** What QEMU reads from a bitmap, which its NBD server shows to the world. */
async function bitsOf(original: string, { name, granuleBytes, bits }: Model): Promise<Uint8Array> {
  // The server ends when its only client has left, but nobody knows when: it gets a file of its own.
  const path = `${original}.${++copies}`;
  Deno.copyFileSync(original, path);
  const socket = `${path}.sock`;
  const server = new Deno.Command("qemu-nbd", {
    args: ["-r", "-f", "qcow2", "-B", name, "-k", socket, "--fork", path],
    stdout: "null",
    stderr: "piped",
  });
  const { success, stderr } = await server.output();
  assert(success, new TextDecoder().decode(stderr));
  const node = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${name}`;
  const map: { start: number; length: number; data: boolean }[] = JSON.parse(
    await start("qemu-img", "map", "--output=json", "--image-opts", node),
  );
  const found = new Uint8Array(bits.byteLength);
  for (const { start, length, data } of map) {
    // The server's word for a set bit is the one for a hole.
    if (!data) found.fill(1, Math.floor(start / granuleBytes), Math.ceil((start + length) / granuleBytes));
  }
  return found;
}

async function byVblk(path: string, random: Random, models: readonly Model[], story: string[]): Promise<void> {
  const image = await openImage(path) as Qcow2Image;
  try {
    for (let i = random.between(1, 8); i > 0; i--) {
      const offset = 512 * random.below(image.sizeBytes / 512);
      const lengthBytes = Math.min(512 * random.between(1, random.pick([2, 100, 4000])), image.sizeBytes - offset);
      const kind = random.pick(["write", "write", "writeZeroes", "discard", "resize", "flush", "writeCompressed"]);
      const clusterBytes = 2 ** image.header.clusterBits;
      const start = offset - offset % clusterBytes;
      story.push(`vblk ${kind} ${offset} ${lengthBytes} (${image.sizeBytes})`);
      const data = (length: number) => SegmentList.over(new Uint8Array(length).fill(random.between(1, 255)));
      if (kind === "write") await image.write(offset, data(lengthBytes));
      else if (kind === "writeZeroes") await image.writeZeroes(offset, lengthBytes, random.oneIn(2));
      else if (kind === "discard") await image.discard(offset, lengthBytes);
      else if (kind === "flush") await image.flush();
      else if (kind === "resize") {
        const sizeBytes = 512 * random.between(1, 2 * image.sizeBytes / 512);
        story.push(`to ${sizeBytes}`);
        await image.resize(sizeBytes);
        models.forEach((model) => resized(model, sizeBytes));
      } else {
        const length = Math.min(clusterBytes, image.sizeBytes - start);
        await image.writeCompressed!(start, data(length));
        models.forEach((model) => note(model, start, length));
      }
      if (["write", "writeZeroes", "discard"].includes(kind)) {
        models.forEach((model) => note(model, offset, lengthBytes));
      }
    }
    if (random.oneIn(3)) await editByVblk(image, random, models, story);
  } finally {
    await image.close();
  }
}

async function editByVblk(image: Qcow2Image, random: Random, models: readonly Model[], story: string[]): Promise<void> {
  const [model, other] = [random.pick(models), random.pick(models)];
  const edit = random.pick(["clear", "enable", "disable", "merge"]);
  story.push(`vblk ${edit} ${model.name} ${other.name}`);
  await image.editBitmaps(async (bitmaps) => {
    if (edit === "clear") bitmaps.clear(model.name);
    else if (edit === "merge") await bitmaps.merge(model.name, bitmaps.use(other.name));
    else bitmaps.enable(model.name, edit === "enable");
  });
  if (edit === "clear") model.bits.fill(0);
  else if (edit === "merge") {
    const enabled = model.enabled;
    model.enabled = true;
    const sizeBytes = image.sizeBytes;
    const set = other.bits.slice();
    set.forEach((bit, i) => {
      const at = i * other.granuleBytes;
      if (bit === 1) note(model, at, Math.min(other.granuleBytes, sizeBytes - at));
    });
    model.enabled = enabled;
  } else model.enabled = edit === "enable";
}

async function byQemu(path: string, random: Random, models: readonly Model[], story: string[]): Promise<void> {
  const { "virtual-size": sizeBytes } = JSON.parse(await start("qemu-img", "info", "--output=json", path));
  const args: string[] = [];
  for (let i = random.between(1, 3); i > 0; i--) {
    const offset = 512 * random.below(sizeBytes / 512);
    const lengthBytes = Math.min(512 * random.between(1, 200), sizeBytes - offset);
    args.push("-c", `write ${random.oneIn(2) ? "-z" : "-P 7"} ${offset} ${lengthBytes}`);
    models.forEach((model) => note(model, offset, lengthBytes));
  }
  story.push(`qemu-io ${args.join(" ")}`);
  await start("qemu-io", "-f", "qcow2", ...args, path);
}

async function runCase(seed: number): Promise<number> {
  using folder = new Folder();
  const random = new Random(seed);
  const path = folder.file("disk");
  const clusterBytes = random.pick([512, 512, 4096, 65536, 2 << 20]);
  const sizeBytes = 512 * random.between(1, Math.min(clusterBytes * 400, 16 << 20) / 512);
  const story = [`cluster_size=${clusterBytes} ${sizeBytes}`];
  const more = random.oneIn(3) ? ",lazy_refcounts=on" : "";
  await start(
    "qemu-img",
    "create",
    "-q",
    "-f",
    "qcow2",
    "-o",
    `cluster_size=${clusterBytes}${more}`,
    path,
    `${sizeBytes}`,
  );
  const models: Model[] = [];
  for (let i = random.between(1, 3); i > 0; i--) {
    const granuleBytes = 2 ** random.pick([9, 9, 12, 16, 20]);
    const enabled = !random.oneIn(3);
    const name = `b${i}`;
    models.push({ name, granuleBytes, enabled, bits: new Uint8Array(Math.ceil(sizeBytes / granuleBytes)) });
    const args = ["--add", "-g", String(granuleBytes), ...enabled ? [] : ["--disable"], path, name];
    story.push(`bitmap ${args.join(" ")}`);
    if (random.oneIn(2)) await start("qemu-img", "bitmap", ...args);
    else {
      const image = await openImage(path) as Qcow2Image;
      await image.editBitmaps((bitmaps) => bitmaps.add(name, granuleBytes, enabled));
      await image.close();
    }
  }
  let set = 0;
  for (let round = 0; round < 3; round++) {
    await (random.oneIn(4) ? byQemu : byVblk)(path, random, models, story);
    const told = () => `seed ${seed}\n${story.join("\n")}`;
    try {
      await start("qemu-img", "check", "-q", path);
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${told()}`);
    }
    for (const model of models) {
      assertEquals(await bitsOf(path, model), model.bits, `${model.name} ${told()}`);
      set += model.bits.reduce((sum, bit) => sum + bit, 0);
    }
  }
  const copy = folder.file("copy");
  const options = `cluster_size=${random.pick([512, 65536])}`;
  const { code, err } = await runVblk(["convert", "--bitmaps", "-O", "qcow2", "-o", options, path, copy]);
  assertEquals([code, ...err], [0]);
  await start("qemu-img", "check", "-q", copy);
  for (const model of models) assertEquals(await bitsOf(copy, model), model.bits, `${model.name} copied ${seed}`);
  return set;
}

Deno.test({
  name: `bitmaps of ${SEEDS} images, from seed ${FIRST_SEED} on, are to QEMU what vblk made of them, and the other way`,
  ...NEEDS,
  async fn() {
    let set = 0;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) set += await runCase(seed);
    assert(set > 1000, `${set}`);
  },
});
