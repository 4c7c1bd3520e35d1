/**
 * `vblk compare`: whether two images hold the same disk.
 *
 * @module
 */

import { CompareError, compareImages } from "../image/compare.ts";
import type { Image } from "../image/image.ts";
import type { LongOption } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { fullMap } from "./holes.ts";
import type { Subcommand } from "./main.ts";
import { Progress } from "./progress.ts";
import { checkCache, ending, imageArguments, ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

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

const LONGS: readonly LongOption[] = [
  { name: "a-format", value: "required", letter: "f" },
  { name: "b-format", value: "required", letter: "F" },
  { name: "image-opts", value: "none" },
  { name: "strict", value: "none", letter: "s" },
  { name: "cache", value: "required", letter: "T" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "progress", value: "none", letter: "p" },
  { name: "quiet", value: "none", letter: "q" },
];

/** The subcommand. */
export const subcommand: Subcommand = { help: HELP, run: (args, output) => ending(output, () => run(args, output)) };

const OPEN_FAILED = 2;
const MAP_FAILED = 3;
const READ_FAILED = 4;

async function run(args: readonly string[], output: Output): Promise<number> {
  const given = imageArguments("compare", args, "f:F:sT:Upq", LONGS);
  if (given === null) {
    output.out(HELP);
    return 0;
  }
  const last = (name: string) => given.options.findLast((option) => option.name === name)?.value ?? undefined;
  const has = (name: string) => given.options.some((option) => option.name === name);
  if (given.operands.length !== 2) throw usage("compare", "Expecting two image file names");
  const quiet = has("q");
  const progress = new Progress({ mode: quiet ? "none" : has("p") ? "percent" : "bar", step: 2 });
  const images: Image[] = [];
  try {
    checkCache(last("T") ?? "writeback", "source cache", OPEN_FAILED);
    for (const [i, name] of given.operands.entries()) {
      const options = {
        format: last(i === 0 ? "f" : "F"),
        share: has("U"),
        imageOpts: has("image-opts"),
        readOnly: true,
      };
      images.push(await openForCommand(name, options, OPEN_FAILED));
    }
    return await compare([images[0], images[1]], has("s"), progress, (line) => {
      progress.clear();
      if (!quiet) output.out([line]);
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
