/**
 * `vblk commit`: writes what an image has into its backing file, as `qemu-img commit` does.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { commitImage, imageBehind } from "../image/commit.ts";
import type { OpenOptions } from "../image/open.ts";
import type { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import type { Output } from "../script/session.ts";
import { depthOf } from "./chain_names.ts";
import { FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand, OBJECT, PROGRESS, QUIET } from "./image_command.ts";
import { CACHE, flushesNothing, type ImageName, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { progressFor } from "./progress.ts";
import { ImageCommandError, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk commit [-f FORMAT] [-b BASE] [-d] [-r RATE] [-p] [-q] IMAGE",
  "",
  "Writes what an image has into its backing file, which grows where it is smaller, and empties the image. The disk holds",
  "the same before and afterwards, and whenever this is interrupted. Other images with that backing file are worthless",
  "afterwards, and so are internal snapshots of IMAGE: they were taken over the backing file as it was.",
  "",
  "  -b, --base BASE        the backing file, of all those behind the image; by default the first. Implies -d: the images",
  "                         between IMAGE and BASE do not fit BASE any more",
  "  -d, --drop             do not empty the image: for one that is not needed any more",
  "  -r, --rate-limit RATE  bytes to write in a second",
  "  -f, --format FORMAT    format of IMAGE; found out when not given",
  "      --image-opts       IMAGE is driver=...,file.filename=...",
  "  -t, --cache MODE       cache mode: only unsafe makes a difference, it flushes nothing",
  "  -p, --progress         print how far it is, as qemu-img does",
  "  -q, --quiet            print errors only",
  "  -h, --help             this text",
  "",
  "Example: vblk commit overlay.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "commit",
  help: HELP,
  options: [
    { name: "base", value: "required", letter: "b" },
    { name: "drop", value: "none", letter: "d" },
    { name: "rate-limit", value: "required", letter: "r", number: "rate limit" },
    FORMAT,
    IMAGE_OPTS,
    CACHE,
    PROGRESS,
    QUIET,
    OBJECT,
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  const { operands } = given;
  if (operands.length !== 1) throw usage("commit", "Expecting one image file name");
  const noFlush = flushesNothing(given);
  const { imageOpts, format } = openWishes("commit", given);
  const called: ImageName = { name: operands[0], imageOpts };
  const opening: OpenOptions = { format, noFlush };
  const depth = await findBase(called, opening, given.last("b"), output);
  const progress = progressFor(given, 1);
  const image = await openToChange(called, { ...opening, writableBacking: depth }, output);
  try {
    progress.set(0);
    // As in QEMU, 0 is no limit.
    const bytesPerSecond = given.number("r") || undefined;
    const onProgress = (done: number, total: number) => progress.set(done / total * 100);
    await commitImage(image, { depth, bytesPerSecond, onProgress });
    // Everything is in the base, and on stable storage there: now the image need not have it.
    if (!given.has("d", "b")) await empty(image);
    progress.set(100);
  } finally {
    progress.end();
    await image.close();
  }
  if (!given.has("q")) output.out(["Image committed."]);
  return 0;
}

/** How many images are before the base. Nothing is written, so the chain is opened for reading. */
async function findBase(
  called: ImageName,
  opening: OpenOptions,
  base: string | undefined,
  output: Output,
): Promise<number> {
  const image = await openToChange(called, { ...opening, readOnly: true }, output);
  try {
    const depth = base === undefined ? 1 : depthOf(image, base);
    if (depth === null) {
      throw new ImageCommandError(`Did not find '${base}' in the backing chain of '${called.name}'`);
    }
    if (imageBehind(image, depth) === null) throw new ImageCommandError("Image does not have a backing file");
    return depth;
  } finally {
    await image.close();
  }
}

async function empty(image: Image): Promise<void> {
  const { makeEmpty } = await import("../image/qcow2/make_empty.ts");
  await (image as Qcow2Image).exclusive((tables) => makeEmpty(tables));
}
