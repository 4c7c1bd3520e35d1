/**
 * The options of `vblk convert`, checked in qemu-img's order and refused with its words.
 *
 * @module
 */

import { parseSize } from "../image/size.ts";
import {
  FORCE_SHARE,
  IMAGE_OPTS,
  type ImageArguments,
  type ImageOption,
  OBJECT,
  PROGRESS,
  QUIET,
  refuseObject,
} from "./image_command.ts";
import { checkOptionList } from "./new_image.ts";
import { ImageCommandError } from "./qemu_img.ts";

/** What `vblk convert --help` prints. */
export const CONVERT_HELP: readonly string[] = [
  "Usage: vblk convert [OPTIONS]... SOURCE... TARGET",
  "",
  "Copies a disk into an image of another format. Several sources become one disk, one behind the other.",
  "",
  "  -f, --source-format FORMAT  format of the sources: raw or qcow2; found out when not given",
  "      --image-opts            the sources are driver=...,file.filename=...",
  "  -O, --target-format FORMAT  format of the target: raw (default) or qcow2",
  "  -o, --target-format-options OPTIONS",
  "                              name=value,...; '-O qcow2 -o help' lists them",
  "  -c, --compress              compress the clusters of a qcow2 target, on all cores",
  "  -B, -b, --backing FILE      leave out what the first image of the source's chain leaves out; the target gets FILE",
  "                              behind it",
  "  -F, --backing-format FORMAT format of FILE, which must be said",
  "  -l, --snapshot SNAPSHOT     copy an internal snapshot: its id or its name, or snapshot.id=ID, snapshot.name=NAME",
  "  -S, --sparse-size SIZE      so many zeros in a row are left out (default: 4k); 0 writes everything",
  "  -n, --no-create             the target exists, and is large enough",
  "      --target-is-zero        with -n: it reads as zeros",
  "      --bitmaps               copy the persistent bitmaps of the source too",
  "      --skip-broken-bitmaps   leave out those that were not closed",
  "      --salvage               what cannot be read becomes zeros",
  "  -r, --rate-limit BYTES      write no more than so many bytes in a second",
  "  -t, --target-cache CACHE    unsafe (default) leaves it to the system when the target reaches the disk; any other",
  "                              waits for that at the end",
  "  -T, --source-cache CACHE    changes nothing here",
  "  -m, --parallel NUMBER, -W, --oob-writes, -C, --copy-range-offloading",
  "                              accepted; nothing here that they could change",
  "  -U, --force-share           take no lock on the sources: for images that a machine uses now",
  "  -p, --progress              print how far it is, as qemu-img does",
  "  -q, --quiet                 print errors only",
  "  -h, --help                  this text",
  "",
  "Example: vblk convert -O qcow2 -c disk.raw disk.qcow2",
];

/** Its options. */
export const CONVERT_OPTIONS: readonly ImageOption[] = [
  { name: "source-format", value: "required", letter: "f" },
  IMAGE_OPTS,
  { name: "source-cache", value: "required", letter: "T" },
  { name: "snapshot", value: "required", letter: "l" },
  { name: "bitmaps", value: "none" },
  { name: "skip-broken-bitmaps", value: "none" },
  { name: "salvage", value: "none" },
  { name: "target-format", value: "required", letter: "O" },
  { name: "target-image-opts", value: "none" },
  { name: "target-format-options", value: "required", letter: "o", check: checkOptionList },
  { name: "target-cache", value: "required", letter: "t" },
  { name: "backing", value: "required", letter: "B" },
  { name: "backing-format", value: "required", letter: "F" },
  {
    name: "sparse-size",
    value: "required",
    letter: "S",
    number: "buffer size for sparse output",
    check: checkSparse,
  },
  { name: "no-create", value: "none", letter: "n" },
  { name: "target-is-zero", value: "none" },
  { name: "compress", value: "none", letter: "c" },
  FORCE_SHARE,
  { name: "rate-limit", value: "required", letter: "r", number: "rate limit" },
  { name: "parallel", value: "required", letter: "m", check: checkParallel },
  { name: "oob-writes", value: "none", letter: "W" },
  { name: "copy-range-offloading", value: "none", letter: "C" },
  PROGRESS,
  QUIET,
  OBJECT,
];

/** `-b` is an older name of `-B`. */
export const CONVERT_LETTERS = "b:";

/** What was asked for. */
export interface ConvertOptions {
  readonly sources: readonly string[];
  /** Empty when only the help for `-o` was asked for. */
  readonly target: string;
  readonly sourceFormat: string | undefined;
  /** The sources are lists of options. */
  readonly imageOpts: boolean;
  readonly targetFormat: string;
  /** `-o`, joined; `null` when not given. */
  readonly createOptions: string | null;
  readonly compress: boolean;
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
  readonly snapshot: string | undefined;
  readonly sparseBytes: number;
  readonly noCreate: boolean;
  readonly targetIsZero: boolean;
  readonly bitmaps: boolean;
  readonly skipBrokenBitmaps: boolean;
  readonly salvage: boolean;
  readonly bytesPerSecond: number | undefined;
  /** Cache modes as they were given: whether they exist is looked at later, as there. */
  readonly sourceCache: string;
  readonly targetCache: string;
  readonly share: boolean;
  readonly quiet: boolean;
}

const SECTOR_BYTES = 512;
const SPARSE_DEFAULT_BYTES = 4096;
const SPARSE_MAX_BYTES = 16 << 20;
const PARALLEL_MAX = 16;

/**
 * What the arguments ask for.
 *
 * @throws ImageCommandError
 */
export function convertOptions(given: ImageArguments): ConvertOptions {
  checkTogether(given);
  refuse(given);
  const { operands } = given;
  const { format: sourceFormat, imageOpts, share } = given.opening;
  return {
    sources: operands.slice(0, -1),
    target: operands.at(-1) ?? "",
    sourceFormat,
    imageOpts,
    targetFormat: given.last("O") ?? "raw",
    createOptions: given.has("o") ? given.all("o").join(",") : null,
    compress: given.has("c"),
    backing: given.last("B", "b"),
    backingFormat: given.last("F"),
    snapshot: given.last("l"),
    sparseBytes: given.number("S") ?? SPARSE_DEFAULT_BYTES,
    noCreate: given.has("n"),
    targetIsZero: given.has("target-is-zero"),
    bitmaps: given.has("bitmaps"),
    skipBrokenBitmaps: given.has("skip-broken-bitmaps"),
    salvage: given.has("salvage"),
    // As in QEMU, 0 is no limit.
    bytesPerSecond: given.number("r") || undefined,
    sourceCache: given.last("T") ?? "writeback",
    targetCache: given.last("t") ?? "unsafe",
    share,
    quiet: given.has("q"),
  };
}

function checkSparse(value: string): void {
  const bytes = parseSize(value);
  if (typeof bytes === "number" && bytes % SECTOR_BYTES === 0 && bytes <= SPARSE_MAX_BYTES) return;
  throw new ImageCommandError(
    "Invalid buffer size for sparse output specified. Valid sizes are multiples of " +
      `${SECTOR_BYTES} up to ${SPARSE_MAX_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
  );
}

function checkParallel(value: string): void {
  const number = /^\s*[+]?(0x[0-9a-f]+|\d+)$/i.test(value) ? Number(value) : 0;
  if (number >= 1 && number <= PARALLEL_MAX) return;
  throw new ImageCommandError(
    `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${PARALLEL_MAX}`,
  );
}

/** Options that exclude each other, in the order in which qemu-img looks. */
function checkTogether(given: ImageArguments): void {
  const broken: readonly (readonly [boolean, string])[] = [
    [given.has("skip-broken-bitmaps") && !given.has("bitmaps"), "Use of --skip-broken-bitmaps requires --bitmaps"],
    [given.has("c") && given.has("C"), "Cannot enable copy offloading when -c is used"],
    [given.has("S") && given.has("C"), "Cannot enable copy offloading when -S is used"],
    [given.has("C") && given.has("salvage"), "Cannot use copy offloading in salvaging mode"],
    [given.has("target-image-opts") && !given.has("n"), "--target-image-opts requires use of -n flag"],
    [given.has("n") && given.has("o"), "-o has no effect when skipping image creation"],
    [given.has("target-is-zero") && !given.has("n"), "--target-is-zero requires use of -n flag"],
  ];
  const first = broken.find(([is]) => is);
  if (first !== undefined) throw new ImageCommandError(first[1]);
}

/** What qemu-img has and vblk has not. */
function refuse(given: ImageArguments): void {
  if (given.has("target-image-opts")) {
    throw new ImageCommandError("--target-image-opts: the target is a file name", {
      hint: "-O says its format; --image-opts is for the sources",
    });
  }
  if (given.has(OBJECT.name)) {
    refuseObject("leave it out where no image is encrypted; otherwise use qemu-img");
  }
}
