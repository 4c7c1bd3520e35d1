/**
 * `vblk resize`: changes the size of a disk, as `qemu-img resize` does.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import type { Preallocation } from "../image/qcow2/create_options.ts";
import { parseSize } from "../image/size.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import {
  FORMAT,
  IMAGE_OPTS,
  type ImageArguments,
  imageArguments,
  type ImageOption,
  OBJECT,
  QUIET,
} from "./image_command.ts";
import { type ImageName, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { ending, ImageCommandError, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk resize [-f FORMAT] [--shrink] [--preallocation=MODE] [-q] IMAGE [+|-]SIZE",
  "       vblk resize --control SOCKET [--shrink] [-q] [+|-]SIZE",
  "",
  "Changes the size of a disk. SIZE is the last argument: the new size, or with + or - the change of it, in bytes or with",
  "k, M, G, T, P, E. Partitions and file systems on the disk are not touched.",
  "",
  "  -f, --format FORMAT        raw or qcow2; found out when not given",
  "      --shrink               needed to make the disk smaller: what is behind its new end is lost",
  "      --preallocation MODE   how the new part gets its space: off (default), metadata (qcow2), falloc, full",
  "      --image-opts           IMAGE is driver=...,file.filename=...",
  "      --control SOCKET       the disk that a 'vblk serve --control SOCKET' has: its guest learns of the new size; needs",
  "                             --allow-ffi",
  "  -q, --quiet                print nothing but errors",
  "  -h, --help                 this text",
  "",
  "Example: vblk resize disk.qcow2 +10G",
];

const OPTIONS: readonly ImageOption[] = [
  FORMAT,
  { name: "shrink", value: "none" },
  { name: "preallocation", value: "required" },
  IMAGE_OPTS,
  { name: "control", value: "required" },
  QUIET,
  OBJECT,
];

/** The subcommand. */
export const subcommand: Subcommand = { help: HELP, run: (args, output) => ending(output, () => run(args, output)) };

/** What the disk's size is to become. */
interface NewSize {
  readonly sign: "+" | "-" | "";
  readonly bytes: number;
}

async function run(args: readonly string[], output: Output): Promise<number> {
  // A size with a minus is no option. qemu-img 7.2 takes the last word for the size; newer ones find it anywhere.
  const isLast = !/^-[^0-9]/.test(args.at(-1) ?? "");
  const sizeAt = isLast ? args.length - 1 : args.findLastIndex((arg) => /^-\d/.test(arg));
  const given = imageArguments({ name: "resize", options: OPTIONS }, args.filter((_, i) => i !== sizeAt));
  if (given === null) {
    output.out(HELP);
    return 0;
  }
  if (args.length < 2) throw usage("resize", "Not enough arguments");
  const operands = sizeAt < 0 ? given.operands : [...given.operands, args[sizeAt]];
  if (given.has("control")) {
    await runServed(given, operands);
    if (!given.has("q")) output.out(["Image resized."]);
    return 0;
  }
  const mode = preallocationOf(given.last("preallocation") ?? "off");
  if (operands.length !== 2) throw usage("resize", "Expecting image file name and size");
  const [name, size] = operands;
  const wanted = readSize(size);
  const { imageOpts, format } = openWishes("resize", given);
  const image = await openImage({ name, imageOpts }, format, output);
  try {
    await resize(image, wanted, mode, given.has("shrink"));
  } finally {
    await image.close();
  }
  if (!given.has("q")) output.out(["Image resized."]);
  return 0;
}

/** What `--control` can be given with: the rest belongs to an image that is opened here. */
const SERVED_OPTIONS = ["control", "shrink", "q"];

async function runServed(given: ImageArguments, operands: readonly string[]): Promise<void> {
  const other = given.options.find(({ name }) => !SERVED_OPTIONS.includes(name));
  if (other !== undefined) throw usage("resize", "--control goes with --shrink and -q only");
  if (operands.length !== 1) throw usage("resize", "Expecting a size, and no image: --control says which");
  const { resizeServed } = await import("./resize_served.ts");
  resizeServed(given.last("control")!, readSize(operands[0]), given.has("shrink"));
}

function preallocationOf(text: string): Preallocation {
  if (text === "off" || text === "metadata" || text === "falloc" || text === "full") return text;
  throw new ImageCommandError(`Invalid preallocation mode '${text}'`);
}

function readSize(text: string): NewSize {
  const sign = text.startsWith("+") ? "+" : text.startsWith("-") ? "-" : "";
  const digits = text.slice(sign.length);
  const bytes = /^\s*[+-]/.test(digits) ? "not-a-number" : parseSize(digits);
  if (bytes === "not-a-number") {
    throw new ImageCommandError("Parameter 'size' expects a non-negative number below 2^64", {
      hint: "optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively",
    });
  }
  if (typeof bytes === "number") return { sign, bytes };
  if (/^\d+$/.test(digits) && BigInt(digits) >= 2n ** 64n) {
    throw new ImageCommandError(`Value '${digits}' is out of range for parameter 'size'`);
  }
  throw notPositive();
}

async function openImage(name: ImageName, format: string | undefined, output: Output): Promise<Image> {
  try {
    return await openToChange(name, { format }, output);
  } catch (error) {
    const cause = error instanceof ImageCommandError ? error.cause : error;
    if (!(cause instanceof BlockError) || cause.kind !== "locked") throw error;
    throw new ImageCommandError((error as Error).message, {
      hint: "if it is a 'vblk serve --control SOCKET' that has it, give --control SOCKET in place of the image",
      cause,
    });
  }
}

function notPositive(): ImageCommandError {
  return new ImageCommandError("New image size must be positive");
}

async function resize(image: Image, { sign, bytes }: NewSize, mode: Preallocation, mayShrink: boolean): Promise<void> {
  const { sizeBytes: before } = image;
  const after = sign === "" ? bytes : sign === "+" ? before + bytes : before - bytes;
  if (after <= 0 || after >= 2 ** 63) throw notPositive();
  if (after <= before && mode !== "off") {
    throw new ImageCommandError("Preallocation can only be used for growing images");
  }
  if (after < before && !mayShrink) {
    throw new ImageCommandError([
      "Use the --shrink option to perform a shrink operation.",
      "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an " +
      "operation, make sure there is no important data there.",
    ]);
  }
  if (image.format === "raw" && mode === "metadata") {
    throw new ImageCommandError("Unsupported preallocation mode: metadata");
  }
  try {
    await image.resize(after);
    if (mode !== "off") await fill(image, before, after, mode);
    await image.flush();
  } catch (error) {
    if (!(error instanceof BlockError) || error.kind !== "invalid") throw error;
    throw new ImageCommandError(error.reason, { hint: error.hint, cause: error });
  }
}

/** Gives the new part its space; where there is not enough, the disk is as large as it was. */
async function fill(image: Image, before: number, after: number, mode: Preallocation): Promise<void> {
  const { preallocate } = await import("../image/preallocate.ts");
  try {
    await preallocate(image, before, after, mode);
  } catch (error) {
    await image.resize(before);
    throw error;
  }
}
