/**
 * `vblk compare`: whether two images hold the same disk.
 *
 * @module
 */

import { CompareError, compareImages } from "../image/compare.ts";
import type { Image } from "../image/image.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { fullMap } from "./holes.ts";
import { FORCE_SHARE, IMAGE_OPTS, type ImageArguments, imageCommand, PROGRESS, QUIET } from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { type Progress, progressFor } from "./progress.ts";
import { checkCache, ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk compare [-f FORMAT] [-F FORMAT] [-s] [-T CACHE] [-U] [-p] [-q] A B",
  "",
  "Says whether two images hold the same disk. A longer one may go on with zeros.",
  "",
  "  -f, --a-format FORMAT  format of A: raw or qcow2; found out when not given",
  "  -F, --b-format FORMAT  format of B",
  "      --image-opts       A and B are driver=...,file.filename=...",
  "  -s, --strict           sizes must be equal, and what is allocated too",
  "  -T, --cache CACHE      a cache mode of QEMU's; changes nothing here",
  "  -U, --force-share      take no lock: for an image that a machine uses now",
  "  -p, --progress         print how far it is, as qemu-img does",
  "  -q, --quiet            print errors only",
  "  -h, --help             this text",
  "",
  "Exit codes: 0 the same, 1 different (or wrong options), 2 an image could not be opened, 3 its tables or 4 its data",
  "could not be read.",
  "",
  "Example: vblk compare disk.raw disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "compare",
  help: HELP,
  options: [
    { name: "a-format", value: "required", letter: "f" },
    { name: "b-format", value: "required", letter: "F" },
    IMAGE_OPTS,
    { name: "strict", value: "none", letter: "s" },
    { name: "cache", value: "required", letter: "T" },
    FORCE_SHARE,
    PROGRESS,
    QUIET,
  ],
  run,
});

const OPEN_FAILED = 2;
const MAP_FAILED = 3;
const READ_FAILED = 4;

async function run(given: ImageArguments, output: Output): Promise<number> {
  if (given.operands.length !== 2) throw usage("compare", "Expecting two image file names");
  const progress = progressFor(given, 2);
  const images: Image[] = [];
  try {
    checkCache(given.last("T") ?? "writeback", "source cache", OPEN_FAILED);
    for (const [i, name] of given.operands.entries()) {
      const options = { ...given.opening, format: given.last(i === 0 ? "f" : "F"), readOnly: true };
      images.push(await openForCommand(name, options, OPEN_FAILED));
    }
    return await compare([images[0], images[1]], given.has("s"), progress, (line) => {
      progress.clear();
      if (!given.has("q")) output.out([line]);
    });
  } finally {
    progress.end();
    for (const image of images) await image.close();
  }
}

async function compare(
  [a, b]: readonly [Image, Image],
  strict: boolean,
  progress: Progress,
  say: (line: string) => void,
): Promise<number> {
  const longest = Math.max(a.sizeBytes, b.sizeBytes);
  progress.set(0);
  try {
    const result = await compareImages(a, b, {
      strict,
      ...strict ? fullMap() : {},
      onProgress: (bytes) => progress.add(bytes / longest * 100),
    });
    if (
      "sizesDiffer" in result && result.sizesDiffer &&
      (result.same || result.offset >= Math.min(a.sizeBytes, b.sizeBytes))
    ) {
      say("Warning: Image size mismatch!");
    }
    if (result.same) say("Images are identical.");
    else if (result.why === "size") say("Strict mode: Image size mismatch!");
    else if (result.why === "status") say(`Strict mode: Offset ${result.offset} block status mismatch!`);
    else say(`Content mismatch at offset ${result.offset}!`);
    return result.same ? 0 : 1;
  } catch (error) {
    if (error instanceof CompareError) throw failure(error);
    throw error;
  }
}

function failure({ image, operation, offset, cause }: CompareError): ImageCommandError {
  if (!(cause instanceof BlockError)) throw cause;
  const options = { hint: cause.hint, cause };
  if (operation === "map") {
    return new ImageCommandError(`Sector allocation test failed for ${image.name}`, { ...options, code: MAP_FAILED });
  }
  const message = `Error while reading offset ${offset} of ${image.name}: ${cause.reason}`;
  return new ImageCommandError(message, { ...options, code: READ_FAILED });
}
