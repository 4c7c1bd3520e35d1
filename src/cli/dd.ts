/**
 * `vblk dd`: copies blocks of an image into a new one, as `qemu-img dd` does.
 *
 * As there nothing is left out, zeros neither, and `skip=` counts against `count=`: `count=4 skip=1` copies three
 * blocks.
 *
 * @module
 */

import { type Image, SECTOR_BYTES } from "../image/image.ts";
import { SegmentList } from "../memory/segment_list.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { FORCE_SHARE, FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand } from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { createTarget } from "./new_image.ts";
import { Progress } from "./progress.ts";
import { ImageCommandError, numberOption, openForCommand } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk dd [-f FORMAT] [-O FORMAT] [-U] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=SOURCE of=TARGET",
  "",
  "Copies blocks of an image into a new one.",
  "",
  "  -f, --format FORMAT         format of the source: raw or qcow2; found out when not given",
  "      --image-opts            SOURCE is driver=...,file.filename=...",
  "  -O, --output-format FORMAT  format of the target: raw (default) or qcow2",
  "  -U, --force-share           take no lock on the source: for an image that a machine uses now",
  "  -h, --help                  this text",
  "  bs=SIZE                     of a block, in bytes or with k, M, G, T, P, E (default: 512)",
  "  count=BLOCKS                stop after so many blocks, from the start of the source",
  "  skip=BLOCKS                 start behind so many blocks",
  "",
  "Example: vblk dd -O qcow2 bs=1M count=16 if=disk.raw of=start.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "dd",
  help: HELP,
  options: [
    FORMAT,
    IMAGE_OPTS,
    { name: "output-format", value: "required", letter: "O" },
    FORCE_SHARE,
  ],
  run,
});

interface DdOperands {
  source?: string;
  target?: string;
  blockBytes: number;
  count?: number;
  skip: number;
}

async function run(given: ImageArguments, output: Output): Promise<number> {
  const operands: DdOperands = { blockBytes: 512, skip: 0 };
  for (const operand of given.operands) readOperand(operands, operand);
  const { source: name, target } = operands;
  if (name === undefined || target === undefined) {
    throw new ImageCommandError("Must specify both input and output files");
  }
  const source = await openForCommand(name, { ...given.opening, readOnly: true });
  try {
    await copyBlocks(source, target, given.last("O") ?? "raw", operands, output);
  } finally {
    await source.close();
  }
  return 0;
}

const BLOCK_MAX_BYTES = 2 ** 31 - 1;

function readOperand(operands: DdOperands, operand: string): void {
  const [, name, value] = /^([^=]*)=(.*)$/s.exec(operand) ?? ["", operand, null];
  if (value === null) throw new ImageCommandError(`unrecognized operand ${operand}`);
  switch (name) {
    case "bs":
      operands.blockBytes = numberOption("bs", value, 1, BLOCK_MAX_BYTES);
      return;
    case "count":
      operands.count = numberOption("count", value);
      return;
    case "skip":
      operands.skip = numberOption("skip", value);
      return;
    case "if":
      operands.source = value;
      return;
    case "of":
      operands.target = value;
      return;
  }
  throw new ImageCommandError(`unrecognized operand ${name}`);
}

async function copyBlocks(
  source: Image,
  name: string,
  format: string,
  { blockBytes, count = Infinity, skip }: DdOperands,
  output: Output,
): Promise<void> {
  if (format !== "raw" && format !== "qcow2") {
    throw new ImageCommandError("Unknown file format", { hint: "vblk makes raw and qcow2 images" });
  }
  const end = Math.min(source.sizeBytes, count * blockBytes);
  const start = skip * blockBytes;
  await createTarget(name, format, new Map([["size", Math.max(0, end - start)]]), "creating output image");
  const target = await openForCommand(name, { format });
  try {
    if (start > end) output.err([`vblk: ${source.name}: cannot skip to specified offset`]);
    await copyRange(source, start, end, target);
    await target.flush();
  } finally {
    await target.close();
  }
}

const CHUNK_BYTES = 2 << 20;

async function copyRange(source: Image, start: number, end: number, target: Image): Promise<void> {
  const progress = new Progress({ mode: "bar", step: 1 });
  const buffer = new Uint8Array(Math.min(CHUNK_BYTES, sectors(Math.max(0, end - start))));
  try {
    for (let at = start; at < end;) {
      const take = Math.min(buffer.byteLength, end - at);
      const bytes = buffer.subarray(0, sectors(take));
      // A disk has whole sectors: what is missing in the last one is zeros.
      bytes.fill(0, take);
      await moving("reading from input", () => source.read(at, SegmentList.over(bytes.subarray(0, take))));
      await moving("writing to output", () => target.write(at - start, SegmentList.over(bytes)));
      at += take;
      progress.set(100 * (at - start) / (end - start));
    }
  } finally {
    progress.end();
  }
}

function sectors(lengthBytes: number): number {
  return Math.ceil(lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
}

async function moving(what: string, action: () => void | Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { reason, hint } = error;
    throw new ImageCommandError(`error while ${what} image file: ${reason}`, { hint, cause: error });
  }
}
