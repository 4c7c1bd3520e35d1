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
  readCreateOptions,
} from "../image/create_options.ts";
import type { Image } from "../image/image.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import {
  FORMAT,
  type ImageArguments,
  imageCommand,
  NO_OBJECTS_HINT,
  OBJECT,
  QUIET,
  refuseObject,
} from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { addBacking, createFormat, OPTIONS } from "./new_image.ts";
import { ImageCommandError, numberOption, usage } from "./qemu_img.ts";

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

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "create",
  help: HELP,
  options: [
    FORMAT,
    OPTIONS,
    { name: "backing", value: "required", letter: "b" },
    { name: "backing-format", value: "required", letter: "F" },
    { name: "backing-unsafe", value: "none", letter: "u" },
    QUIET,
    { ...OBJECT, check: () => refuseObject(NO_OBJECTS_HINT) },
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  const format = given.last("f") ?? "raw";
  const [file, size, unexpected] = given.operands;
  const options = given.all("o").join(",");
  if (asksForHelp(options)) {
    output.out(createOptionsHelp(createFormat(format), file !== undefined));
    return 0;
  }
  if (file === undefined) throw usage("create", "Expecting image file name");
  const sizeBytes = size === undefined ? undefined : numberOption("image size", size);
  if (unexpected !== undefined) throw usage("create", `Unexpected argument: ${unexpected}`);
  try {
    await createAs(file, createFormat(format, file), given, sizeBytes, output);
  } catch (error) {
    throw named(file, error);
  }
  return 0;
}

async function createAs(
  file: string,
  format: CreateFormat,
  given: ImageArguments,
  sizeBytes: number | undefined,
  output: Output,
): Promise<void> {
  const path = filePath(file);
  const values = readCreateOptions(format, given.all("o").join(","));
  addBacking(values, format, { backing: given.last("b"), backingFormat: given.last("F") });
  addSize(values, sizeBytes);
  checkBackingName(file, values);
  await useBacking(path, values, given.has("u"));
  if (!values.has("size")) throw new CreateOptionsError("Image creation needs a size parameter");
  if (!given.has("q")) output.out([`Formatting '${file}', ${formatCreateOptions(format, values)}`]);
  const { createImageFile } = await import("./create_file.ts");
  await createImageFile(file, format, values);
}

/** Unlike what else has a place of its own, the size does not win over the one in `-o`. */
function addSize(values: CreateValues, sizeBytes: number | undefined): void {
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
