/**
 * From arguments to a command to an exit code. What a command needs is loaded when it is called: most of the time
 * that a short command takes is the loading of modules.
 *
 * @module
 */

import type { Output } from "../script/session.ts";
import { CommandOutput } from "./output.ts";
import { VERSION } from "./version.ts";

/** A subcommand. */
export interface Subcommand {
  /** What `--help` prints: lines. */
  readonly help: readonly string[];
  /** Runs it; returns the exit code. */
  run(args: readonly string[], output: Output): Promise<number>;
}

interface Row {
  readonly name: string;
  readonly args: string;
  readonly summary: string;
  readonly load: () => Promise<{ readonly subcommand: Subcommand }>;
}

const ROWS: readonly Row[] = [
  {
    name: "attach",
    args: "[OPTIONS] [IMAGE]",
    summary: "a device and a guest in this process, driven by commands, a script or a prompt",
    load: () => import("./attach.ts"),
  },
  {
    name: "serve",
    args: "[OPTIONS] IMAGE",
    summary: "the device for a virtual machine, over a vhost-user socket",
    load: () => import("./serve.ts"),
  },
  {
    name: "create",
    args: "[OPTIONS] FILE [SIZE]",
    summary: "makes a raw or qcow2 image",
    load: () => import("./create.ts"),
  },
  {
    name: "info",
    args: "[OPTIONS] IMAGE",
    summary: "prints what there is to say about an image",
    load: () => import("./info.ts"),
  },
  {
    name: "measure",
    args: "[OPTIONS] IMAGE",
    summary: "says how large a file an image would take",
    load: () => import("./measure.ts"),
  },
  {
    name: "convert",
    args: "[OPTIONS] A... B",
    summary: "copies an image into another format, compressed or not",
    load: () => import("./convert.ts"),
  },
  {
    name: "compare",
    args: "[OPTIONS] A B",
    summary: "says whether two images hold the same disk",
    load: () => import("./compare.ts"),
  },
  {
    name: "dd",
    args: "[OPTIONS] if=A of=B",
    summary: "copies blocks of an image into a new one",
    load: () => import("./dd.ts"),
  },
  {
    name: "map",
    args: "[OPTIONS] IMAGE",
    summary: "prints which parts of a disk are in which file, and where",
    load: () => import("./map.ts"),
  },
  {
    name: "check",
    args: "[OPTIONS] IMAGE",
    summary: "looks for damage in an image, and repairs it",
    load: () => import("./check.ts"),
  },
  {
    name: "bitmap",
    args: "[OPTIONS] IMAGE B",
    summary: "changes a persistent bitmap, which notes what is written to an image",
    load: () => import("./bitmap.ts"),
  },
  {
    name: "resize",
    args: "[OPTIONS] IMAGE [+|-]SIZE",
    summary: "changes the size of a disk",
    load: () => import("./resize.ts"),
  },
  {
    name: "snapshot",
    args: "[OPTIONS] IMAGE",
    summary: "lists, takes, applies and deletes internal snapshots",
    load: () => import("./snapshot.ts"),
  },
  {
    name: "rebase",
    args: "[OPTIONS] -b BACKING IMAGE",
    summary: "gives an image another backing file",
    load: () => import("./rebase.ts"),
  },
  {
    name: "commit",
    args: "[OPTIONS] IMAGE",
    summary: "writes what an image has into its backing file",
    load: () => import("./commit.ts"),
  },
  {
    name: "amend",
    args: "-o OPTIONS IMAGE",
    summary: "changes the options of a qcow2 image",
    load: () => import("./amend.ts"),
  },
];

/** Runs vblk with the given arguments; returns the exit code. */
export async function main(args: readonly string[], output: Output = new CommandOutput()): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined) return usage(output, "no command was given");
  if (name === "--help" || name === "-h" || name === "help" && rest.length === 0) return help(output);
  if (name === "--version" || name === "-V") {
    output.out([`vblk ${VERSION}`]);
    return 0;
  }
  const asked = name === "help" ? rest[0] : name;
  const row = ROWS.find((row) => row.name === asked);
  if (row === undefined) return await unknown(output, asked);
  const { subcommand } = await row.load();
  if (name === "help") {
    output.out(subcommand.help);
    return 0;
  }
  try {
    return await subcommand.run(rest, output);
  } catch (error) {
    const { printFailure } = await import("./failure.ts");
    return printFailure(error, output, row.name);
  }
}

function help(output: Output): number {
  const width = Math.max(...ROWS.map(({ name, args }) => name.length + args.length + 1));
  output.out([
    "vblk: a virtio block device that you can drive, understand and trust",
    "",
    "Usage: vblk COMMAND [OPTIONS]...",
    "",
    ...ROWS.map(({ name, args, summary }) => `  ${`${name} ${args}`.padEnd(width)}  ${summary}`),
    "",
    "  --help     this text; after a command, its own",
    "  --version  the version",
    "",
    "Example: write a block through the virtqueue and read it back",
    "",
    "  vblk attach mem:1M -c 'write -P 0xaa 0 4k' -c 'read -P 0xaa 0 4k' -c flush",
  ]);
  return 0;
}

async function unknown(output: Output, name: string): Promise<number> {
  const { nearest } = await import("../script/suggest.ts");
  const near = nearest(name, ROWS.map((row) => row.name));
  return usage(output, `${name}: no such command`, near === undefined ? undefined : `did you mean '${near}'?`);
}

function usage(output: Output, message: string, hint = "'vblk --help' lists the commands"): number {
  output.err([`vblk: ${message}`, `hint: ${hint}`]);
  return 2;
}
