/**
 * The options of `vblk convert`, checked in qemu-img's order and refused with its words.
 *
 * @module
 */

import { isOptionList } from "../image/create_options.ts";
import type { LongOption } from "../script/getopt.ts";
import { imageArguments, ImageCommandError, numberOption } from "./qemu_img.ts";

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

const LONGS: readonly LongOption[] = [
  { name: "source-format", value: "required", letter: "f" },
  { name: "image-opts", value: "none" },
  { name: "source-cache", value: "required", letter: "T" },
  { name: "snapshot", value: "required", letter: "l" },
  { name: "bitmaps", value: "none" },
  { name: "skip-broken-bitmaps", value: "none" },
  { name: "salvage", value: "none" },
  { name: "target-format", value: "required", letter: "O" },
  { name: "target-image-opts", value: "none" },
  { name: "target-format-options", value: "required", letter: "o" },
  { name: "target-cache", value: "required", letter: "t" },
  { name: "backing", value: "required", letter: "B" },
  { name: "backing-format", value: "required", letter: "F" },
  { name: "sparse-size", value: "required", letter: "S" },
  { name: "no-create", value: "none", letter: "n" },
  { name: "target-is-zero", value: "none" },
  { name: "compress", value: "none", letter: "c" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "rate-limit", value: "required", letter: "r" },
  { name: "parallel", value: "required", letter: "m" },
  { name: "oob-writes", value: "none", letter: "W" },
  { name: "copy-range-offloading", value: "none", letter: "C" },
  { name: "progress", value: "none", letter: "p" },
  { name: "quiet", value: "none", letter: "q" },
  { name: "object", value: "required" },
];

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
  readonly progress: boolean;
  readonly quiet: boolean;
}

const SECTOR_BYTES = 512;
const SPARSE_DEFAULT_BYTES = 4096;
const SPARSE_MAX_BYTES = 16 << 20;
const PARALLEL_MAX = 16;

/**
 * Reads the arguments.
 *
 * @returns `null` when the help was asked for
 * @throws ImageCommandError
 */
export function parseConvert(args: readonly string[]): ConvertOptions | null {
  const given = imageArguments("convert", args, "f:O:b:B:CcF:o:l:S:pt:T:nm:WUr:q", LONGS);
  if (given === null) return null;
  const { options, operands } = given;
  // What is wrong with a value is said before what is wrong with options together.
  for (const { name, value } of options) checkValue(name, value ?? "");
  const has = (...names: string[]) => options.some(({ name }) => names.includes(name));
  const last = (...names: string[]) => options.findLast(({ name }) => names.includes(name))?.value ?? undefined;
  const lists = options.filter(({ name }) => name === "o").map(({ value }) => value);
  checkTogether(has);
  refuse(has);
  const sparse = last("S");
  const rate = last("r");
  return {
    sources: operands.slice(0, -1),
    target: operands.at(-1) ?? "",
    sourceFormat: last("f"),
    imageOpts: has("image-opts"),
    targetFormat: last("O") ?? "raw",
    createOptions: lists.length === 0 ? null : lists.join(","),
    compress: has("c"),
    backing: last("B", "b"),
    backingFormat: last("F"),
    snapshot: last("l"),
    sparseBytes: sparse === undefined ? SPARSE_DEFAULT_BYTES : numberOption("buffer size for sparse output", sparse),
    noCreate: has("n"),
    targetIsZero: has("target-is-zero"),
    bitmaps: has("bitmaps"),
    skipBrokenBitmaps: has("skip-broken-bitmaps"),
    salvage: has("salvage"),
    // As in QEMU, 0 is no limit.
    bytesPerSecond: rate === undefined ? undefined : numberOption("rate limit", rate) || undefined,
    sourceCache: last("T") ?? "writeback",
    targetCache: last("t") ?? "unsafe",
    share: has("U"),
    progress: has("p"),
    quiet: has("q"),
  };
}

function checkValue(name: string, value: string): void {
  switch (name) {
    case "o":
      if (!isOptionList(value)) throw new ImageCommandError(`Invalid option list: ${value}`);
      return;
    case "S": {
      const bytes = numberOption("buffer size for sparse output", value);
      if (bytes % SECTOR_BYTES === 0 && bytes <= SPARSE_MAX_BYTES) return;
      throw new ImageCommandError(
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of " +
          `${SECTOR_BYTES} up to ${SPARSE_MAX_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
      );
    }
    case "r":
      numberOption("rate limit", value);
      return;
    case "m": {
      const number = /^\s*[+]?(0x[0-9a-f]+|\d+)$/i.test(value) ? Number(value) : 0;
      if (number >= 1 && number <= PARALLEL_MAX) return;
      throw new ImageCommandError(
        `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${PARALLEL_MAX}`,
      );
    }
  }
}

/** Options that exclude each other, in the order in which qemu-img looks. */
function checkTogether(has: (...names: string[]) => boolean): void {
  const broken: readonly (readonly [boolean, string])[] = [
    [has("skip-broken-bitmaps") && !has("bitmaps"), "Use of --skip-broken-bitmaps requires --bitmaps"],
    [has("c") && has("C"), "Cannot enable copy offloading when -c is used"],
    [has("S") && has("C"), "Cannot enable copy offloading when -S is used"],
    [has("C") && has("salvage"), "Cannot use copy offloading in salvaging mode"],
    [has("target-image-opts") && !has("n"), "--target-image-opts requires use of -n flag"],
    [has("n") && has("o"), "-o has no effect when skipping image creation"],
    [has("target-is-zero") && !has("n"), "--target-is-zero requires use of -n flag"],
  ];
  const first = broken.find(([is]) => is);
  if (first !== undefined) throw new ImageCommandError(first[1]);
}

/** What qemu-img has and vblk has not. */
function refuse(has: (...names: string[]) => boolean): void {
  if (has("target-image-opts")) {
    throw new ImageCommandError("--target-image-opts: the target is a file name", {
      hint: "-O says its format; --image-opts is for the sources",
    });
  }
  if (has("object")) {
    throw new ImageCommandError("--object: vblk has no objects: no secrets, and no encrypted images", {
      hint: "leave it out where no image is encrypted; otherwise use qemu-img",
    });
  }
}
