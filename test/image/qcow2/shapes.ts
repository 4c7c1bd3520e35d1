/**
 * Images that QEMU writes: options of `qemu-img create` and what qemu-io does then, from a seed.
 */

import type { Random } from "../../random.ts";
import { requires } from "../../requires.ts";
import type { Folder } from "../../storage/support.ts";

/** What a test needs that has images made. */
export const NEEDS_QEMU = requires("qemu-img", "qemu-io");

/** One image with what it was made of. */
export interface MadeImage {
  readonly path: string;
  readonly sizeBytes: number;
  /** How it was made, to repeat a failure by hand. */
  readonly story: string[];
}

/** Runs a program to its end, without holding up others. */
export async function start(program: string, ...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, { args }).output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  // QEMU does not compress what is allocated already: such a write fails, and changes nothing.
  const compressed = program === "qemu-io" && text.includes("write failed: Input/output error");
  if (!success && !compressed) throw new Error(`${program} ${args.join(" ")}: ${text}`);
  return text;
}

/** Options of `qemu-img create`. */
export interface Shape {
  clusterBytes: number;
  options: string[];
  /** No compressed clusters, no snapshots. */
  externalData: boolean;
  snapshots: boolean;
  backing: "raw" | "qcow2" | null;
}

/** Any combination that QEMU takes. */
export function pickShape(random: Random, dataFile: string): Shape {
  const old = random.oneIn(4);
  const extended = !old && random.oneIn(3);
  const clusterBytes = 2 ** (extended ? random.between(14, 18) : random.pick([9, 9, 10, 12, 12, 13, 15, 16, 17, 21]));
  const options = [`cluster_size=${clusterBytes}`, `compat=${old ? "0.10" : "1.1"}`];
  const shape: Shape = { clusterBytes, options, externalData: false, snapshots: true, backing: null };
  if (random.oneIn(2)) shape.backing = random.pick(["raw", "qcow2"]);
  if (old) return shape;
  if (extended) options.push("extended_l2=on");
  if (random.oneIn(4)) options.push("lazy_refcounts=on");
  if (random.oneIn(2)) options.push("compression_type=zstd");
  if (random.oneIn(4)) options.push(`refcount_bits=${random.pick([8, 32, 64])}`);
  const preallocated = random.oneIn(4);
  if (random.oneIn(4)) {
    shape.externalData = true;
    shape.snapshots = false;
    options.push(`data_file=${dataFile}`);
    if (shape.backing === null && random.oneIn(2)) options.push("data_file_raw=on");
  } else if (shape.backing === null && preallocated) {
    options.push(`preallocation=${random.pick(["metadata", "falloc", "full"])}`);
  }
  return shape;
}

/** Has QEMU make an image, write to it, take snapshots in between, and write again. */
export async function makeImage(folder: Folder, name: string, random: Random): Promise<MadeImage> {
  const path = folder.file(name);
  const story: string[] = [];
  const shape = pickShape(random, `${path}.data`);
  const { clusterBytes } = shape;
  // Small clusters reach through several L2 tables; large ones end inside a cluster.
  const most = Math.min(Math.max(40 * clusterBytes, 300 << 10), 4 << 20);
  const sizeBytes = 512 * random.between(1, most / 512);
  const say = async (program: string, ...args: string[]) => {
    story.push(`${program} ${args.join(" ")}`);
    await start(program, ...args);
  };
  const backing: string[] = [];
  if (shape.backing !== null) {
    // Shorter, as long, longer; a raw one may end inside a sector.
    const bytes = Math.ceil(sizeBytes * random.pick([0.5, 1, 1.5]) / 512) * 512;
    const base = `${path}.base`;
    await say("qemu-img", "create", "-q", "-f", shape.backing, base, String(bytes));
    await say("qemu-io", "-f", shape.backing, ...commands(random, { ...shape, clusterBytes: 65536 }, bytes, 6), base);
    if (shape.backing === "raw" && random.oneIn(2)) Deno.truncateSync(base, bytes - 100);
    backing.push("-b", `${name}.base`, "-F", shape.backing);
  }
  const options = shape.options.join(",");
  await say("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, ...backing, path, String(sizeBytes));
  try {
    for (let round = random.between(1, 3); round > 0; round--) {
      const count = random.between(0, 15);
      const todo = commands(random, shape, sizeBytes, count);
      if (count > 0) await say("qemu-io", "-d", "unmap", "-f", "qcow2", ...todo, path);
      if (round > 1 && shape.snapshots) await say("qemu-img", "snapshot", "-c", `s${round}`, path);
    }
  } catch (error) {
    // QEMU 7.2 marks some of its own images corrupt (small clusters, lazy refcounts, snapshots, compression). They are
    // read as they are, by both.
    if (!(error as Error).message.includes("Image is corrupt; cannot be opened read/write")) throw error;
  }
  return { path, sizeBytes, story };
}

/** A file of text: it compresses, but not to nothing. */
export function writePatternFile(folder: Folder, random: Random): string {
  const words = Array.from({ length: 60_000 }, () => random.pick(["alpha", "beta", "gamma", "delta", "42", "\n"]));
  return folder.file("pattern", new TextEncoder().encode(words.join(" ")));
}

/** Set by the test: what `write -s` writes. */
export const pattern = { path: "" };

function commands(random: Random, shape: Shape, sizeBytes: number, count: number): string[] {
  const { clusterBytes } = shape;
  const list: string[] = [];
  for (let i = 0; i < count; i++) {
    const offset = 512 * random.below(sizeBytes / 512);
    const lengthBytes = Math.min(512 * random.between(1, random.pick([4, 64, 600])), sizeBytes - offset);
    const fill = random.between(1, 255);
    const range = `${offset} ${lengthBytes}`;
    const source = random.oneIn(2) ? `-s ${pattern.path}` : `-P ${fill}`;
    switch (random.below(shape.externalData || clusterBytes > sizeBytes ? 5 : 7)) {
      case 0:
      case 1:
        list.push(`write ${source} ${range}`);
        break;
      case 2:
        list.push(`write -z ${range}`);
        break;
      case 3:
        list.push(`write -z -u ${range}`);
        break;
      case 4:
        list.push(`discard ${range}`);
        break;
      default: {
        if (shape.backing === "raw" && clusterBytes === 65536) break;
        const clusters = Math.floor(sizeBytes / clusterBytes);
        const first = random.below(clusters);
        const many = Math.min(random.between(1, 8), clusters - first);
        list.push(`write -c ${source} ${first * clusterBytes} ${many * clusterBytes}`);
      }
    }
  }
  return list.flatMap((command) => ["-c", command]);
}
