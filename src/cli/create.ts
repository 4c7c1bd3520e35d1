/**
 * `vblk create`: makes an image, as `qemu-img create` does.
 *
 * @module
 */

import {
  asksForHelp,
  type CreateFormat,
  CreateOptionsError,
  createOptionsHelp,
  type CreateValues,
  filePath,
  formatCreateOptions,
  isOptionList,
  readCreateOptions,
} from "../image/create_options.ts";
import type { Image } from "../image/image.ts";
import type { LongOption } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import type { Subcommand } from "./main.ts";
import { ending, imageArguments, ImageCommandError, numberOption, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk create [-q] [-f FORMAT] [-b BACKING -F FORMAT] [-u] [-o OPTIONS] FILE [SIZE]",
  "",
  "Makes an image. What was in the file is lost, unless another program has it open.",
  "",
  "  -f, --format FORMAT     raw (default) or qcow2",
  "  -b, --backing FILE      what is not in the image is read from this one; a name relative to the image's folder",
  "  -F, --backing-format FORMAT",
  "                          its format, which must be said: a guest could write a header that is taken for another",
  "  -u, --backing-unsafe    do not open the backing file; SIZE must be said",
  "  -o, --options OPTIONS   name=value,...; '-o help' lists them",
  "  -q, --quiet             print nothing",
  "  SIZE                    of the disk, in bytes or with k, M, G, T, P, E; by default the backing file's",
  "",
  "Example: vblk create -f qcow2 -o cluster_size=128k,lazy_refcounts=on disk.qcow2 20G",
  "         vblk create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2",
];

const LONGS: readonly LongOption[] = [
  { name: "format", value: "required", letter: "f" },
  { name: "options", value: "required", letter: "o" },
  { name: "backing", value: "required", letter: "b" },
  { name: "backing-format", value: "required", letter: "F" },
  { name: "backing-unsafe", value: "none", letter: "u" },
  { name: "quiet", value: "none", letter: "q" },
  { name: "object", value: "required" },
];

/** The subcommand. */
export const subcommand: Subcommand = { help: HELP, run: (args, output) => ending(output, () => create(args, output)) };

interface Wishes {
  format: string;
  backing: string | undefined;
  backingFormat: string | undefined;
  options: string[];
  unsafe: boolean;
  quiet: boolean;
}

async function create(args: readonly string[], output: Output): Promise<number> {
  const given = imageArguments("create", args, "qf:b:F:uo:", LONGS);
  if (given === null) {
    output.out(HELP);
    return 0;
  }
  const wishes: Wishes = {
    format: "raw",
    backing: undefined,
    backingFormat: undefined,
    options: [],
    unsafe: false,
    quiet: false,
  };
  for (const { name, value } of given.options) readOption(wishes, name, value ?? "");
  const [file, size, unexpected] = given.operands;
  const options = wishes.options.join(",");
  if (asksForHelp(options)) {
    output.out(createOptionsHelp(checkedFormat(wishes.format), file !== undefined));
    return 0;
  }
  if (file === undefined) throw usage("create", "Expecting image file name");
  const sizeBytes = size === undefined ? undefined : numberOption("image size", size);
  if (unexpected !== undefined) throw usage("create", `Unexpected argument: ${unexpected}`);
  try {
    await createAs(file, checkedFormat(wishes.format, file), wishes, options, sizeBytes, output);
  } catch (error) {
    throw named(file, error);
  }
  return 0;
}

function readOption(wishes: Wishes, name: string, value: string): void {
  switch (name) {
    case "f":
      wishes.format = value;
      break;
    case "b":
      wishes.backing = value;
      break;
    case "F":
      wishes.backingFormat = value;
      break;
    case "o":
      if (!isOptionList(value)) throw new ImageCommandError(`Invalid option list: ${value}`);
      wishes.options.push(value);
      break;
    case "u":
      wishes.unsafe = true;
      break;
    case "q":
      wishes.quiet = true;
      break;
    case "object":
      throw new ImageCommandError("--object: vblk has no objects: no secrets, and no encrypted images", {
        hint: "leave it out where the image is not encrypted; otherwise use qemu-img",
      });
  }
}

function checkedFormat(format: string, file?: string): CreateFormat {
  if (format === "raw" || format === "qcow2") return format;
  throw new ImageCommandError(`${file === undefined ? "" : `${file}: `}Unknown file format '${format}'`, {
    hint: "vblk makes raw and qcow2 images; qemu-img makes others",
  });
}

async function createAs(
  file: string,
  format: CreateFormat,
  wishes: Wishes,
  options: string,
  sizeBytes: number | undefined,
  output: Output,
): Promise<void> {
  const path = filePath(file);
  const values = readCreateOptions(format, options);
  addWishes(values, format, wishes, sizeBytes);
  checkBackingName(file, values);
  await useBacking(path, values, wishes.unsafe);
  if (!values.has("size")) throw new CreateOptionsError("Image creation needs a size parameter");
  if (!wishes.quiet) output.out([`Formatting '${file}', ${formatCreateOptions(format, values)}`]);
  const { createImageFile } = await import("./create_file.ts");
  await createImageFile(file, format, values);
}

/** What has a letter of its own wins over the same in `-o`, except the size. */
function addWishes(values: CreateValues, format: CreateFormat, wishes: Wishes, sizeBytes: number | undefined): void {
  const { backing, backingFormat } = wishes;
  if (backing !== undefined) {
    if (format === "raw") throw new CreateOptionsError("Backing file not supported for file format 'raw'");
    values.set("backing_file", backing);
  }
  if (backingFormat !== undefined) {
    if (format === "raw") throw new CreateOptionsError("Backing file format not supported for file format 'raw'");
    values.set("backing_fmt", backingFormat);
  }
  if (sizeBytes === undefined) return;
  if (values.has("size")) throw new CreateOptionsError("The image size must be specified only once");
  values.set("size", sizeBytes);
}

const SAME_FILE = "Error: Trying to create an image with the same filename as the backing file";

function checkBackingName(file: string, values: CreateValues): void {
  const backing = values.get("backing_file");
  if (backing === "") throw new CreateOptionsError("Expected backing file name, got empty string");
  if (backing === file) throw new CreateOptionsError(SAME_FILE);
}

/** Sees to it that the new image does not replace an image that it would need. QEMU compares the names only. */
function checkChain(image: Image, path: string): void {
  const target = identityOf(path);
  for (let layer: Image | null = image; target !== null && layer !== null; layer = behind(layer)) {
    if (identityOf(layer.name) === target) throw new CreateOptionsError(SAME_FILE, `'${layer.name}' is the same file`);
  }
}

function behind(image: Image & { readonly backing?: Image | null }): Image | null {
  return image.backing ?? null;
}

/** The same for all names of a file; `null` when there is none, or nobody knows. */
function identityOf(path: string): string | null {
  try {
    const { dev, ino } = Deno.statSync(path);
    return ino === null ? null : `${dev}:${ino}`;
  } catch {
    return null;
  }
}

/** Opens the backing file, to see that it can be, and how large it is. */
async function useBacking(path: string, values: CreateValues, unsafe: boolean): Promise<void> {
  const backing = values.get("backing_file") as string | undefined;
  if (backing === undefined) return;
  const format = values.get("backing_fmt") as string | undefined;
  if (unsafe) {
    if (format === undefined) throw new CreateOptionsError("Backing file specified without backing format");
    return;
  }
  const [{ openImage }, { resolveName }] = await Promise.all([
    import("../image/open.ts"),
    import("../image/qcow2/file_names.ts"),
  ]);
  const backingPath = resolveName(path, filePath(backing), "backing file");
  const image = await openImage(backingPath, { format, readOnly: true }).catch((error) => {
    if (!(error instanceof BlockError)) throw error;
    const text = /^(?:Unknown driver|Image is not in)/.test(error.reason) ? error.reason : error.message;
    throw new CreateOptionsError(text, "Could not open backing image: -u makes the image without it");
  });
  try {
    checkChain(image, path);
    if (format === undefined) {
      throw new CreateOptionsError(
        "Backing file specified without backing format",
        `Detected format of ${image.format}: give '-F ${image.format}' if that is right`,
      );
    }
    if (!values.has("size")) values.set("size", image.sizeBytes);
  } finally {
    await image.close();
  }
}

/** A failure as qemu-img prints it: the image's name, and what it is. */
function named(file: string, error: unknown): unknown {
  if (!(error instanceof CreateOptionsError) && !(error instanceof BlockError)) return error;
  return new ImageCommandError(`${file}: ${error.message}`, { hint: error.hint, cause: error });
}
