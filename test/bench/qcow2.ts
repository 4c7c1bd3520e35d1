/**
 * What the format costs: reads of a fully allocated qcow2 image beside raw, through the ring, and a fill of an image
 * over a backing image, beside qemu-io. Check and convert have benchmarks of their own.
 *
 * @module
 */

import { attach } from "../../src/attach.ts";
import { checkQcow2 } from "../../src/image/qcow2/check.ts";
import { readHeader } from "../../src/image/qcow2/header.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import type { Image } from "../../src/image/image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { Random } from "../random.ts";
import { alternate, benchFolder, median, printTable, ratio } from "./table.ts";

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
  await using folder = await benchFolder();
  await benchReads(folder.path);
  await benchFill(folder.path);
  await benchCheck(folder.path);
}

async function run(command: string, ...args: string[]): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args, stdout: "null", stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

async function mustRun(command: string, ...args: string[]): Promise<void> {
  if (!await run(command, ...args)) throw new Error(`${command} ${args.join(" ")} failed`);
}

async function benchReads(folder: string): Promise<void> {
  const [raw, qcow2] = [`${folder}/disk.raw`, `${folder}/disk.qcow2`];
  await Deno.writeFile(raw, new Uint8Array(DISK_BYTES).fill(7));
  await mustRun("qemu-img", "convert", "-O", "qcow2", raw, qcow2);
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
    await mustRun("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "raw", `${folder}/${name}`);
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
    await mustRun("qemu-io", "-f", "qcow2", "-t", "writeback", ...commands, "-c", "flush", path);
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

const CHECKED_CLUSTERS = 100_000;

/** An image with many allocated clusters, which take no space: what is checked are the tables. */
async function benchCheck(folder: string): Promise<void> {
  const rows = [["100,000 allocated clusters", "vblk ms", "qemu-img ms", "ratio (range)"]];
  for (const clusterBytes of [65536, 4096]) {
    const path = `${folder}/check-${clusterBytes}`;
    const options = ["-o", `cluster_size=${clusterBytes},preallocation=metadata`];
    await mustRun("qemu-img", "create", "-f", "qcow2", ...options, path, String(CHECKED_CLUSTERS * clusterBytes));
    const theirs = () => timeOf(() => mustRun("qemu-img", "check", path));
    const cli = new URL("../../cli.ts", import.meta.url).pathname;
    // All rights: the folder is below /dev, which Deno gives to nobody else.
    const flags = ["run", "--no-check", "--allow-all"];
    const kinds: [string, () => Promise<unknown>][] = [
      ["the library", () => checkFile(path)],
      ["the process", () => mustRun(Deno.execPath(), ...flags, cli, "check", path)],
    ];
    for (const [kind, check] of kinds) {
      await check();
      const pair = await alternate(ROUNDS, () => timeOf(check), theirs);
      const { median: middle, low, high } = ratio(pair);
      rows.push([
        `of ${clusterBytes / 1024} KiB, ${kind}`,
        median(pair.subject).toFixed(1),
        median(pair.peer).toFixed(1),
        `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`,
      ]);
    }
  }
  printTable("Check (below 1 vblk is ahead)", rows);
}

async function checkFile(path: string): Promise<void> {
  const storage = DenoFileStorage.open(path, { readOnly: true });
  const { corruptions, leaks, allocatedClusters } = await checkQcow2(storage, await readHeader(storage));
  storage.close();
  if (corruptions + leaks > 0 || allocatedClusters !== CHECKED_CLUSTERS) {
    throw new Error("The image is not as it was made");
  }
}

async function timeOf(action: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}

if (import.meta.main) await benchQcow2();
