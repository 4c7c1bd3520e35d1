/**
 * `vblk rebase`: gives an image another backing file, as `qemu-img rebase` does.
 *
 * @module
 */

import { isKnownFormat } from "../image/create_options.ts";
import type { Image } from "../image/image.ts";
import { backingOf } from "../image/map_chain.ts";
import { openImage } from "../image/open.ts";
import { resolveName } from "../image/qcow2/file_names.ts";
import { BACKING_NAME_MAX_BYTES } from "../image/qcow2/qcow2_layout.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { depthOf } from "./chain_names.ts";
import {
  FORCE_SHARE,
  FORMAT,
  IMAGE_OPTS,
  type ImageArguments,
  imageCommand,
  OBJECT,
  PROGRESS,
  QUIET,
} from "./image_command.ts";
import { asQcow2, CACHE, flushesNothing, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { type Progress, progressFor } from "./progress.ts";
import { checkCache, ImageCommandError, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk rebase [-f FORMAT] [-u] -b BACKING [-F FORMAT] [-U] [-p] [-q] IMAGE",
  "",
  "Gives an image another backing file. What the disk holds stays the same: where the old backing file and the new one",
  "differ, the old one's data are copied into the image. -b '' makes the image one without a backing file.",
  "",
  "  -b, --backing FILE           the new backing file; a name relative to the image's folder, or '' for none",
  "  -F, -B, --backing-format FORMAT",
  "                               its format, to be recorded",
  "  -u, --backing-unsafe         change the name only, and open neither: for a backing file that was moved or converted.",
  "                               With another disk behind it the image is worthless",
  "  -f, --format FORMAT          format of IMAGE; found out when not given",
  "      --image-opts             IMAGE is driver=...,file.filename=...",
  "  -U, --force-share            take no lock on the new backing file",
  "  -t, --cache MODE             cache mode of IMAGE: only unsafe makes a difference, it flushes nothing",
  "  -T, --backing-cache MODE     as in qemu-img; makes no difference",
  "  -p, --progress               print how far it is, as qemu-img does",
  "  -q, --quiet                  print errors only",
  "  -h, --help                   this text",
  "",
  "Example: vblk rebase -b new-base.qcow2 -F qcow2 overlay.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "rebase",
  help: HELP,
  options: [
    { name: "backing", value: "required", letter: "b" },
    { name: "backing-format", value: "required", letter: "F" },
    { name: "backing-unsafe", value: "none", letter: "u" },
    FORMAT,
    IMAGE_OPTS,
    FORCE_SHARE,
    CACHE,
    { name: "backing-cache", value: "required", letter: "T" },
    PROGRESS,
    QUIET,
    OBJECT,
  ],
  letters: "B:",
  run,
});

/** The new backing file: `null` where none was named, empty for none. */
interface NewBacking {
  readonly name: string | null;
  readonly format: string | undefined;
  readonly share: boolean;
}

async function run(given: ImageArguments, output: Output): Promise<number> {
  const { operands } = given;
  if (operands.length !== 1) throw usage("rebase", "Expecting one image file name");
  const isUnsafe = given.has("u");
  const to: NewBacking = { name: given.last("b") ?? null, format: given.last("F", "B"), share: given.has("U") };
  if (!isUnsafe && to.name === null) {
    throw usage("rebase", "Must specify backing file (-b) or use unsafe mode (-u)");
  }
  const progress = progressFor(given, 2);
  progress.set(0);
  try {
    const noFlush = flushesNothing(given);
    checkCache(given.last("T") ?? "writeback", "source cache");
    const { imageOpts, format } = openWishes("rebase", given);
    const image = await openToChange(
      { name: operands[0], imageOpts },
      { format, noFlush, noBacking: isUnsafe },
      output,
    );
    try {
      if (to.format !== undefined && !isKnownFormat(to.format)) {
        throw new ImageCommandError(`Invalid format name: '${to.format}'`);
      }
      if (!isUnsafe) await copyWhatDiffers(image, to, progress);
      await changeName(image, to);
      progress.set(100);
    } finally {
      await image.close();
    }
  } finally {
    progress.end();
  }
  return 0;
}

async function copyWhatDiffers(image: Image, { name, format, share }: NewBacking, progress: Progress): Promise<void> {
  const { copyDifferences, RebaseError } = await import("../image/rebase.ts");
  const qcow2 = asQcow2(image);
  const opened = name === "" ? null : await openNew(image, name!, format, share);
  try {
    const clusterBytes = qcow2 === null ? 65536 : 2 ** qcow2.header.clusterBits;
    await copyDifferences(image, {
      newBacking: opened?.image ?? null,
      depth: opened?.depth,
      unitBytes: qcow2?.header.extendedL2 ? clusterBytes / 32 : clusterBytes,
      hasZeroUnits: qcow2 !== null && qcow2.header.version >= 3,
      onProgress: (done, total) => progress.set(done / total * 100),
    });
  } catch (error) {
    if (!(error instanceof RebaseError)) throw error;
    const { reason, hint } = error.cause;
    const what = {
      map: `error while reading image metadata: ${reason}`,
      old: "error while reading from old backing file",
      new: "error while reading from new backing file",
      write: `Error while writing to COW image: ${reason}`,
    }[error.side];
    throw new ImageCommandError(what, { hint: hint ?? error.cause.message, cause: error });
  } finally {
    if (opened !== null && opened.depth === undefined) await opened.image.close();
  }
}

/** Opens the new backing file, unless the image's chain has it already, so many images behind it. */
async function openNew(
  image: Image,
  name: string,
  format: string | undefined,
  share: boolean,
): Promise<{ image: Image; depth?: number }> {
  try {
    const path = name.includes(":") && /^[^/]*:/.test(name) ? name : resolveName(image.name, name, "backing file");
    const depth = depthOf(image, path);
    if (depth === null) return { image: await openImage(path, { format, share, readOnly: true }) };
    let found = image;
    for (let i = 0; i < depth; i++) found = backingOf(found)!;
    return { image: found, depth };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const why = error.reason.startsWith("Unknown driver") ? error.reason : error.message;
    throw new ImageCommandError(`Could not open new backing file '${name}': ${why}`, {
      hint: error.hint,
      cause: error,
    });
  }
}

async function changeName(image: Image, { name, format }: NewBacking): Promise<void> {
  const failed = (why: string, cause?: BlockError) =>
    new ImageCommandError(`Could not change the backing file to '${name ?? "(null)"}': ${why}`, {
      cause,
      hint: cause?.hint,
    });
  const qcow2 = asQcow2(image);
  const backingName = name === "" ? null : name;
  if (qcow2 === null) throw failed("Operation not supported");
  if (backingName !== null) {
    if (format === undefined) throw failed("backing format must be specified");
    const isTooLong = new TextEncoder().encode(backingName).byteLength > BACKING_NAME_MAX_BYTES;
    if (isTooLong || qcow2.header.externalDataRaw) throw failed("Invalid argument");
  }
  const { replaceHeader } = await import("../image/qcow2/replace_header.ts");
  const backingFormat = backingName === null ? null : format!;
  // What was copied is on stable storage before the name says that it is needed: `exclusive` sees to that.
  try {
    await qcow2.exclusive(({ file }) => replaceHeader(file, { backingName, backingFormat }));
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw failed(error.kind === "no-space" ? "No space left in the file header" : error.message, error);
  }
}
