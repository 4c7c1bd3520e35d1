/**
 * `vblk amend`: changes the options of a qcow2 image, as `qemu-img amend` does.
 *
 * @module
 */

import { amendOptionsHelp, readAmendOptions } from "../image/amend_options.ts";
import { asksForHelp, CreateOptionsError, isKnownFormat } from "../image/create_options.ts";
import type { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand, OBJECT, PROGRESS, QUIET } from "./image_command.ts";
import { CACHE, flushesNothing, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { OPTIONS } from "./new_image.ts";
import { type Progress, progressFor } from "./progress.ts";
import { ImageCommandError, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk amend -o OPTIONS [-f FORMAT] [-t CACHE] [-p] [-q] IMAGE",
  "",
  "Changes the options of a qcow2 image: compat, refcount_bits, lazy_refcounts, size, data_file, data_file_raw.",
  "",
  "  -o, --options OPTIONS  name=value,...; '-f qcow2 -o help' lists them",
  "  -f, --format FORMAT    qcow2; found out when not given",
  "      --image-opts       IMAGE is driver=...,file.filename=...",
  "  -t, --cache MODE       cache mode: only unsafe makes a difference, it flushes nothing",
  "      --force            as in qemu-img; makes no difference without encryption",
  "  -p, --progress         print how far it is, as qemu-img does",
  "  -q, --quiet            print errors only",
  "  -h, --help             this text",
  "",
  "Example: vblk amend -o compat=1.1,lazy_refcounts=on disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "amend",
  help: HELP,
  options: [
    OPTIONS,
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    { name: "force", value: "none" },
    PROGRESS,
    QUIET,
    OBJECT,
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  const { operands } = given;
  if (!given.has("o")) throw usage("amend", "Must specify options (-o)");
  const text = given.all("o").join(",");
  const { imageOpts, format } = openWishes("amend", given);
  if (format !== undefined && asksForHelp(text)) return printHelp(format, output);
  if (operands.length !== 1) throw new ImageCommandError("Expecting one image file name");
  const noFlush = flushesNothing(given);
  const progress = progressFor(given, 1);
  const name = { name: operands[0], imageOpts };
  const opening = { format, noFlush };
  const first = await openToChange(name, opening, output);
  const found = first.format;
  await first.close();
  if (asksForHelp(text)) return printHelp(found, output);
  if (found !== "qcow2") throw notAmendable(found);
  try {
    await amend(async () => await openToChange(name, opening, output) as Qcow2Image, text, progress);
  } finally {
    progress.end();
  }
  return 0;
}

function printHelp(format: string, output: Output): number {
  if (!isKnownFormat(format)) throw new ImageCommandError(`Unknown file format '${format}'`);
  if (format !== "qcow2") throw notAmendable(format);
  output.out(amendOptionsHelp());
  return 0;
}

function notAmendable(format: string): ImageCommandError {
  return new ImageCommandError(`Format driver '${format}' does not support option amendment`);
}

async function amend(open: () => Promise<Qcow2Image>, text: string, progress: Progress): Promise<void> {
  const { amendQcow2 } = await import("../image/qcow2/amend.ts");
  try {
    const values = readAmendOptions(text);
    progress.set(0);
    await amendQcow2(open, values, (step, steps, part) => progress.set((step + part) / steps * 100));
    progress.set(100);
  } catch (error) {
    if (error instanceof CreateOptionsError) {
      throw new ImageCommandError(error.message, { hint: error.hint, cause: error });
    }
    // What can't be done, in words that need no file's name.
    if (error instanceof BlockError && (error.kind === "invalid" || error.kind === "unsupported")) {
      throw new ImageCommandError(error.reason, { hint: error.hint, cause: error });
    }
    throw error;
  }
}
