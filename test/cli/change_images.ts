/** Runs tables of command lines with vblk and with qemu-img, each in a folder of its own with the same images. */

import { assertEquals } from "@std/assert";
import { type Ending, runQemuImg, runVblk } from "./qemu_img.ts";

/** Commands to run before in each folder, for whose path `*` stands. */
export type Setup = readonly (readonly string[])[];

/** A chain in which an image is shorter than the one behind it, and than the one above it. */
export const SHORT_BETWEEN: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "3M"],
  ["qemu-io", "-c", "write -P 1 0 3M", "b.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "m.qcow2", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "m.qcow2", "-F", "qcow2", "o.qcow2", "2M"],
];

/** Both programs' folders. */
export interface Pair {
  readonly ours: string;
  readonly theirs: string;
}

/** Runs `action` with two folders in which the same was done with qemu-img. */
export async function inPair(setup: Setup, action: (pair: Pair) => Promise<void>): Promise<void> {
  const root = await Deno.makeTempDir();
  const pair = { ours: `${root}/1`, theirs: `${root}/2` };
  try {
    for (const folder of [pair.ours, pair.theirs]) {
      await Deno.mkdir(folder);
      for (const args of setup) {
        const [program, ...rest] = args.map((arg) => arg.replace("*", `${folder}/`));
        const { success, stderr } = await new Deno.Command(program, { args: rest, cwd: folder }).output();
        if (!success) throw new Error(`${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
      }
    }
    await action(pair);
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

/** Runs a command line with both; `*` stands for the folder's path. What is printed and the exit code must be equal. */
export async function both(pair: Pair, args: readonly string[]): Promise<void> {
  const inFolder = (folder: string) => args.map((arg) => arg.replace("*", `${folder}/`));
  const ours = plain(await runVblk(inFolder(pair.ours)), pair.ours);
  const theirs = plain(await runQemuImg(inFolder(pair.theirs)), pair.theirs);
  assertEquals(ours, theirs, args.join(" "));
}

/** Without the folder's name, hints, when a snapshot was taken, and what only one of the two says. */
function plain({ code, out, err }: Ending, folder: string): Ending {
  const hints =
    /^(Optional suffix|and exabytes|This option is only|You can use 'qemu-img|Is another process|vblk: .*hint)/;
  const line = (text: string) =>
    text.replaceAll(`${folder}/`, "").replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/, "DATE").replace(/ +0?$/, "");
  const facts = out.filter((text) => !/^(disk size|l2 cache):/.test(text));
  return { code, out: facts.map(line), err: err.filter((text) => !hints.test(text)).map(line) };
}

/** Fails unless both folders' images hold the same disk, and ours has no fault. Theirs may have another name. */
export async function sameDisks({ ours, theirs }: Pair, name: string, other = name): Promise<void> {
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command("qemu-img", { args }).output();
    return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  };
  const check = await run("check", `${ours}/${name}`);
  assertEquals(check.code, 0, `check ${name}: ${check.text}`);
  const compare = await run("compare", `${ours}/${name}`, `${theirs}/${other}`);
  assertEquals(compare.code, 0, `compare ${name}: ${compare.text}`);
}
