/**
 * Converting a disk of 1 GiB, a quarter chance, half text, a quarter zeros, beside qemu-img.
 *
 * @module
 */

import { alternate, benchFolder, median, printTable, ratio } from "./table.ts";

const MIB = 1 << 20;
const DISK_MIB = 1024;
const ROUNDS = 5;
/** A round with zlib takes qemu-img half a minute. */
const SLOW_ROUNDS = 3;

interface Case {
  readonly name: string;
  readonly args: readonly string[];
  readonly source: string;
  readonly target: string;
  readonly rounds: number;
}

const CASES: readonly Case[] = [
  { name: "raw -> qcow2", args: ["-O", "qcow2"], source: "disk", target: "plain", rounds: ROUNDS },
  { name: "qcow2 -> raw", args: ["-O", "raw"], source: "plain", target: "raw", rounds: ROUNDS },
  { name: "raw -> qcow2, zlib", args: ["-c", "-O", "qcow2"], source: "disk", target: "zlib", rounds: SLOW_ROUNDS },
  {
    name: "raw -> qcow2, zlib, qemu-img -W",
    args: ["-c", "-W", "-O", "qcow2"],
    source: "disk",
    target: "zlib",
    rounds: SLOW_ROUNDS,
  },
  { name: "qcow2, zlib -> raw", args: ["-O", "raw"], source: "zlib", target: "raw", rounds: ROUNDS },
  {
    name: "raw -> qcow2, zstd",
    args: ["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
    source: "disk",
    target: "zstd",
    rounds: ROUNDS,
  },
  { name: "qcow2, zstd -> raw", args: ["-O", "raw"], source: "zstd", target: "raw", rounds: ROUNDS },
];

async function makeDisk(path: string): Promise<void> {
  using file = await Deno.open(path, { write: true, create: true });
  await file.truncate(DISK_MIB * MIB);
  const words = ["alpha", "beta", "gamma", "delta", "42", "\n"];
  const bytes = new Uint8Array(MIB);
  for (let mib = 0; mib < DISK_MIB; mib++) {
    if (mib % 4 === 3) continue;
    if (mib % 4 === 0) {
      for (let at = 0; at < MIB; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
    } else {
      let text = "";
      while (text.length < MIB) text += words[Math.floor(Math.random() * words.length)] + " ";
      new TextEncoder().encodeInto(text, bytes);
    }
    await file.seek(mib * MIB, Deno.SeekMode.Start);
    await file.write(bytes);
  }
}

async function timeOf(command: string, args: readonly string[]): Promise<number> {
  const started = performance.now();
  const { success, stderr } = await new Deno.Command(command, { args: [...args], stdout: "null", stderr: "piped" })
    .output();
  const elapsed = performance.now() - started;
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  return elapsed;
}

async function isHere(command: string): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args: ["--version"], stdout: "null", stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

/** Runs the conversions and prints their table. */
export async function benchConvert(): Promise<void> {
  if (!await isHere("qemu-img")) {
    console.log("\nConvert: skipped, since qemu-img is not here (package qemu-utils)");
    return;
  }
  await using folder = await benchFolder();
  const cli = new URL("../../cli.ts", import.meta.url).pathname;
  // All rights: the folder is below /dev, which Deno gives to nobody else.
  const vblk = ["run", "--no-check", "--allow-all", cli];
  const at = (name: string) => `${folder.path}/${name}`;
  await makeDisk(at("disk"));
  const rows = [["1 GiB, both processes from start to end", "vblk s", "qemu-img s", "ratio (range)"]];
  for (const { name, args, source, target, rounds } of CASES) {
    // Each writes a file of its own, which goes before the next round: to write over a file costs another price.
    const measured = async (command: string, before: readonly string[], file: string) => {
      await Deno.remove(file).catch(() => {});
      return await timeOf(command, [...before, "convert", ...args, at(source), file]);
    };
    // Once for each without counting: the memory that it takes has to be found first.
    await measured(Deno.execPath(), vblk, at(target));
    await measured("qemu-img", [], at("theirs"));
    const pair = await alternate(
      rounds,
      () => measured(Deno.execPath(), vblk, at(target)),
      () => measured("qemu-img", [], at("theirs")),
    );
    const { median: middle, low, high } = ratio(pair);
    const seconds = (values: readonly number[]) => (median(values) / 1000).toFixed(2);
    const range = `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`;
    rows.push([name, seconds(pair.subject), seconds(pair.peer), range]);
    await timeOf("qemu-img", ["compare", at("disk"), at(target)]);
  }
  printTable("Convert (below 1 vblk is ahead)", rows);
}
