/**
 * The commands about the image, which no request can carry: `length`, `map`, `alloc`, `info`, `truncate`.
 *
 * @module
 */

import type { Extent, Image } from "../image/image.ts";
import { formatSize } from "../image/size.ts";
import { SegmentList } from "../memory/segment_list.ts";
import { BlockError } from "../storage/block_error.ts";
import { readArguments, readText, sizeAt } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import { detailLines } from "./detail_lines.ts";

function length({ session }: Invocation): Result {
  const { sizeBytes } = session.machine.image;
  return { text: [formatSize(sizeBytes)], json: { bytes: sizeBytes } };
}

async function info({ session }: Invocation): Promise<Result> {
  const { image } = session.machine;
  // Where a format has no clusters, scripts expect the lines all the same.
  const { clusterBytes, vmStateOffset, specific } = await image.details?.() ?? NO_DETAILS;
  const { name, format, sizeBytes } = image;
  const facts = { name, format, sizeBytes, readOnly: session.readOnly };
  return {
    text: [
      `format name: ${format}`,
      `cluster size: ${formatSize(clusterBytes)}`,
      `vm state offset: ${formatSize(vmStateOffset)}`,
      ...specific === undefined ? [] : ["Format specific information:", ...detailLines(specific, "    ")],
    ],
    json: specific === undefined ? facts : { ...facts, clusterBytes, vmStateOffset, specific },
  };
}

const NO_DETAILS = { clusterBytes: 0, vmStateOffset: 0, specific: undefined };

async function map({ session }: Invocation): Promise<Result> {
  const { image } = session.machine;
  const runs = await allocation(image, 0, image.sizeBytes);
  const text = runs.map(({ offset, lengthBytes, allocated }) => {
    const state = allocated ? "    allocated" : "not allocated";
    return `${withHex(lengthBytes)} bytes ${state} at offset ${withHex(offset)}`;
  });
  return { text, json: { extents: runs } };
}

async function alloc(invocation: Invocation): Promise<Result> {
  const { session, words } = invocation;
  const { image } = session.machine;
  const offset = sizeAt(invocation, 1);
  const wanted = words.length > 2 ? sizeAt(invocation, 2) : 512;
  const count = Math.max(0, Math.min(wanted, image.sizeBytes - offset));
  const runs = await allocation(image, offset, count);
  const allocated = runs.reduce((total, run) => total + (run.allocated ? run.lengthBytes : 0), 0);
  return {
    text: [`${allocated}/${count} bytes allocated at offset ${formatSize(offset)}`],
    json: { offset, bytes: count, allocated },
  };
}

interface Run {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly allocated: boolean;
}

/** The map of a large disk is asked for in pieces, of which only the runs are kept. */
const MAP_WINDOW_BYTES = 1 << 30;

/** The runs of a range that are in this image, and those that are not. As in QEMU, zeros can be in an image. */
async function allocation(image: Image, offset: number, lengthBytes: number): Promise<Run[]> {
  const runs: Run[] = [];
  const end = offset + lengthBytes;
  for (let at = offset; at < end; at += MAP_WINDOW_BYTES) {
    addRuns(runs, await image.map(at, Math.min(MAP_WINDOW_BYTES, end - at)));
  }
  return runs;
}

/** Joins neighbours that differ only in where they are stored. */
function addRuns(runs: Run[], extents: readonly Extent[]): void {
  for (const { guestOffset, lengthBytes, kind } of extents) {
    const allocated = kind !== "unallocated";
    const last = runs.at(-1);
    if (last?.allocated === allocated) runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else runs.push({ offset: guestOffset, lengthBytes, allocated });
  }
}

function withHex(bytes: number): string {
  return `${formatSize(bytes)} (0x${bytes.toString(16)})`;
}

/** Ways to give new space to a longer image: whether it is written to. */
const PREALLOCATION: Readonly<Record<string, "nothing" | "zeros" | "unsupported">> = {
  off: "nothing",
  falloc: "zeros",
  full: "zeros",
  metadata: "unsupported",
};

async function truncate(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  const args = readArguments<{ m: string }>(invocation, { m: readText });
  const { m: mode = "off" } = args.values;
  const how = Object.hasOwn(PREALLOCATION, mode) ? PREALLOCATION[mode] : undefined;
  const fail = (message: string, word: number) => new CommandError(message, { stream: "stderr", word });
  if (how === undefined) throw fail(`Invalid preallocation mode '${mode}'`, args.wordOf("m"));
  if (args.operands.length < 1) throw usageError(command);
  const sizeBytes = sizeAt(invocation, args.operands[0]);
  if (how === "unsupported") throw fail(`Unsupported preallocation mode: ${mode}`, args.wordOf("m"));
  const { machine } = session;
  const before = machine.image.sizeBytes;
  if (how === "zeros" && sizeBytes < before) {
    throw fail("Cannot use preallocation for shrinking files", args.wordOf("m"));
  }
  try {
    await machine.resize(sizeBytes);
    if (how === "zeros") await writeZeros(machine.image, before, sizeBytes);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw fail(`Failed to resize the file: ${error.reason}`, args.operands[0]);
  }
  return { ...SILENT, json: { bytes: machine.image.sizeBytes } };
}

/** Without fallocate, space is only taken by writing to it. */
async function writeZeros(image: Image, from: number, to: number): Promise<void> {
  const zeros = new Uint8Array(1 << 20);
  for (let at = from; at < to; at += zeros.byteLength) {
    await image.write(at, SegmentList.over(zeros.subarray(0, Math.min(zeros.byteLength, to - at))));
  }
}

/** The commands of this file. */
export const IMAGE_COMMANDS: readonly Command[] = [
  { name: "length", alias: "l", summary: "prints the size of the disk", run: length },
  { name: "info", alias: "i", summary: "prints facts about the image", run: info },
  { name: "map", summary: "prints which parts of the image are allocated", run: map },
  {
    name: "alloc",
    alias: "a",
    args: "offset [count]",
    summary: "counts the bytes of a range that are allocated",
    help: ["Example: alloc 1M 64k", "", "Without a count it looks at one sector."],
    count: [1, 2],
    run: alloc,
  },
  {
    name: "truncate",
    alias: "t",
    args: "[-m prealloc_mode] off",
    summary: "changes the size of the disk, under the running guest",
    help: [
      "Example: truncate 64M",
      "",
      "The guest learns of it by a configuration change interrupt.",
      "",
      "  -m  off (default), falloc or full: the last two write zeros to what is new",
    ],
    count: [1, 3],
    writes: true,
    letters: "m:",
    run: truncate,
  },
];
