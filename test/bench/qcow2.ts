/**
 * What the format costs: reads of a fully allocated qcow2 image beside raw, through the ring, and a fill of an image
 * over a backing image, beside qemu-io. Check and convert have benchmarks of their own.
 *
 * @module
 */

import { attach } from "../../src/attach.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import type { Image } from "../../src/image/image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { Random } from "../random.ts";
import { alternate, median, printTable, ratio } from "./table.ts";

const ROUNDS = 7;
const DISK_BYTES = 256 << 20;
const BLOCK_BYTES = 4096;
const READS = 50_000;

/** Runs the benchmark of the format and prints its tables. */
export async function benchQcow2(): Promise<void> {
  if (!await run("qemu-img", "--version")) {
    console.log("\nqcow2: skipped, since qemu-img is not here (package qemu-utils)");
    return;
  }
  const folder = await Deno.makeTempDir({ prefix: "vblk-bench-" });
  try {
    await benchReads(folder);
    await benchFill(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function run(command: string, ...args: string[]): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args, stdout: "null", stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

async function benchReads(folder: string): Promise<void> {
  const [raw, qcow2] = [`${folder}/disk.raw`, `${folder}/disk.qcow2`];
  await Deno.writeFile(raw, new Uint8Array(DISK_BYTES).fill(7));
  await run("qemu-img", "convert", "-O", "qcow2", raw, qcow2);
  const images = {
    raw: new RawImage(DenoFileStorage.open(raw, { readOnly: true })) as Image,
    qcow2: await Qcow2Image.open(DenoFileStorage.open(qcow2, { readOnly: true })) as Image,
  };
  const list = SegmentList.over(new Uint8Array(BLOCK_BYTES));
  const readAll = (image: Image) => () => {
    const random = new Random(1);
    const start = performance.now();
    for (let i = 0; i < READS; i++) image.read(BLOCK_BYTES * random.below(DISK_BYTES / BLOCK_BYTES), list);
    return READS / (performance.now() - start);
  };
  // The first rounds fill the cache of tables and the host's, and are not counted.
  for (const image of Object.values(images)) readAll(image)();
  const direct = await alternate(ROUNDS, readAll(images.qcow2), readAll(images.raw));
  Object.values(images).forEach((image) => image.close());

  const machines = { raw: await attach(raw, { format: "raw" }), qcow2: await attach(qcow2) };
  const readThroughRing = ({ guest }: typeof machines.raw) => async () => {
    const random = new Random(1);
    const start = performance.now();
    for (let i = 0; i < READS / 5; i++) {
      await guest.read(BLOCK_BYTES * random.below(DISK_BYTES / BLOCK_BYTES), BLOCK_BYTES);
    }
    return READS / 5 / (performance.now() - start);
  };
  for (const machine of Object.values(machines)) await readThroughRing(machine)();
  const ring = await alternate(ROUNDS, readThroughRing(machines.qcow2), readThroughRing(machines.raw));
  for (const machine of Object.values(machines)) await machine.close();

  const row = (name: string, pair: typeof direct) => {
    const { median: middle, low, high } = ratio(pair);
    const thousands = (values: readonly number[]) => median(values).toFixed(0);
    return [
      name,
      thousands(pair.subject),
      thousands(pair.peer),
      `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`,
    ];
  };
  printTable("Random 4 KiB reads, fully allocated, tables in the cache", [
    ["thousand reads a second", "qcow2", "raw", "ratio (range)"],
    row("the image alone", direct),
    row("guest, ring, device and image", ring),
  ]);
}

const FILL_BYTES = 64 << 20;

/** Every 64 KiB of a new image over a backing image gets 4 KiB: each copies a cluster. */
async function benchFill(folder: string): Promise<void> {
  const base = `${folder}/base.raw`;
  await Deno.writeFile(base, new Uint8Array(FILL_BYTES).fill(9));
  const top = async (name: string) => {
    await run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", `${folder}/${name}`);
    return `${folder}/${name}`;
  };
  const offsets = Array.from({ length: FILL_BYTES / 65536 }, (_, i) => i * 65536 + 8192);
  const pair = await alternate(ROUNDS, async () => {
    const path = await top("ours");
    const machine = await attach(path);
    const bytes = new Uint8Array(BLOCK_BYTES).fill(1);
    const start = performance.now();
    for (const offset of offsets) await machine.guest.write(offset, bytes);
    await machine.guest.flush();
    const elapsed = performance.now() - start;
    await machine.close();
    return offsets.length / elapsed;
  }, async () => {
    const path = await top("theirs");
    const commands = offsets.flatMap((offset) => ["-c", `write -q -P 1 ${offset} 4k`]);
    const start = performance.now();
    await run("qemu-io", "-f", "qcow2", "-t", "writeback", ...commands, "-c", "flush", path);
    const whole = performance.now() - start;
    // Without the start of the process, which is not what is measured.
    const empty = performance.now();
    await run("qemu-io", "-f", "qcow2", "-c", "flush", path);
    return offsets.length / (whole - (performance.now() - empty));
  });
  const { median: middle, low, high } = ratio(pair);
  printTable("Copy-on-write: 4 KiB into each 64 KiB cluster over a raw backing image, then a flush", [
    ["thousand writes a second", "vblk", "qemu-io", "ratio (range)"],
    [
      "one at a time",
      median(pair.subject).toFixed(1),
      median(pair.peer).toFixed(1),
      `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`,
    ],
  ]);
}

if (import.meta.main) await benchQcow2();
