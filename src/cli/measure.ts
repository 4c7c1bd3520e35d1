/**
 * `vblk measure`: how large a file an image would take, as `qemu-img measure` says it.
 *
 * @module
 */

import { CreateOptionsError, type CreateValues, isOptionList, readCreateOptions } from "../image/create_options.ts";
import { type Image, SECTOR_BYTES } from "../image/image.ts";
import type { MeasureShape } from "../image/qcow2/measure.ts";
import type { LongOption } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import type { Subcommand } from "./main.ts";
import { ending, imageArguments, ImageCommandError, numberOption, openForCommand, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk measure [-O FORMAT] [-o OPTIONS] [--output human|json] --size N",
  "       vblk measure [-O FORMAT] [-o OPTIONS] [--output human|json] [-f FORMAT] [-l SNAPSHOT] [-U] IMAGE",
  "",
  "Says how large a file a disk would take: at first, and when all of it is written.",
  "",
  "  -O, --target-format FORMAT  raw (default) or qcow2",
  "  -o, --options OPTIONS       of the new image; 'vblk create -o help' lists them",
  "  -s, --size N                a new disk of this size",
  "  -f, --format FORMAT         of IMAGE: raw or qcow2; found out when not given",
  "      --image-opts            IMAGE is driver=...,file.filename=...",
  "  -l, --snapshot SNAPSHOT     an internal snapshot of IMAGE, by id or name",
  "      --output human|json     text (default), or JSON",
  "  -U, --force-share           take no lock: for an image that a machine uses now",
  "  -h, --help                  this text",
  "",
  "Example: vblk measure -O qcow2 -o cluster_size=128k disk.raw",
];

const LONGS: readonly LongOption[] = [
  { name: "format", value: "required", letter: "f" },
  { name: "target-format", value: "required", letter: "O" },
  { name: "options", value: "required", letter: "o" },
  { name: "size", value: "required", letter: "s" },
  { name: "snapshot", value: "required", letter: "l" },
  { name: "output", value: "required" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "image-opts", value: "none" },
  { name: "object", value: "required" },
];

/** The subcommand. */
export const subcommand: Subcommand = { help: HELP, run: (args, output) => ending(output, () => run(args, output)) };

interface Wishes {
  format?: string;
  target: string;
  options: string[];
  sizeBytes?: number;
  snapshot?: string;
  json: boolean;
  share: boolean;
  imageOpts: boolean;
}

/** What is printed, in bytes. */
interface Measures {
  readonly required: number;
  readonly fullyAllocated: number;
  readonly bitmaps?: number;
}

async function run(args: readonly string[], output: Output): Promise<number> {
  const given = imageArguments("measure", args, "f:O:o:s:l:U", LONGS);
  if (given === null) {
    output.out(HELP);
    return 0;
  }
  const wishes: Wishes = { target: "raw", options: [], json: false, share: false, imageOpts: false };
  for (const { name, value } of given.options) readOption(wishes, name, value ?? "");
  const name = checkedOperand(given.operands, wishes);
  const image = name === undefined ? null : await openSource(name, wishes);
  try {
    const measures = await measure(image, wishes);
    output.out(wishes.json ? jsonOf(measures) : textOf(measures));
  } catch (error) {
    if (!(error instanceof CreateOptionsError)) throw error;
    throw new ImageCommandError(error.message, { hint: error.hint, cause: error });
  } finally {
    await image?.close();
  }
  return 0;
}

function readOption(wishes: Wishes, name: string, value: string): void {
  switch (name) {
    case "f":
      wishes.format = value;
      break;
    case "O":
      wishes.target = value;
      break;
    case "o":
      if (!isOptionList(value)) throw new ImageCommandError(`Invalid option list: ${value}`);
      wishes.options.push(value);
      break;
    case "s":
      wishes.sizeBytes = numberOption("image size", value);
      break;
    case "l":
      wishes.snapshot = value;
      break;
    case "U":
      wishes.share = true;
      break;
    case "image-opts":
      wishes.imageOpts = true;
      break;
    case "output":
      if (value !== "human" && value !== "json") {
        throw usage("measure", "--output must be used with human or json as argument.");
      }
      wishes.json = value === "json";
      break;
    case "object":
      throw new ImageCommandError("--object: vblk has no objects: no secrets, and no encrypted images");
  }
}

function checkedOperand(
  operands: readonly string[],
  { format, snapshot, sizeBytes, imageOpts }: Wishes,
): string | undefined {
  const [name] = operands;
  if (operands.length > 1) throw usage("measure", "At most one filename argument is allowed.");
  if (name === undefined && (imageOpts || format !== undefined || snapshot !== undefined)) {
    throw usage("measure", "--image-opts, -f, and -l require a filename argument.");
  }
  if (name !== undefined && sizeBytes !== undefined) {
    throw usage("measure", "--size N cannot be used together with a filename.");
  }
  if (name === undefined && sizeBytes === undefined) {
    throw usage("measure", "Either --size N or one filename must be specified.");
  }
  return name;
}

async function openSource(name: string, { format, share, snapshot, imageOpts }: Wishes): Promise<Image> {
  if (imageOpts && format !== undefined) throw usage("measure", "--image-opts and --format are mutually exclusive");
  const image = await (imageOpts ? openOptions(name, share) : openForCommand(name, { format, share, readOnly: true }));
  if (snapshot === undefined) return image;
  const { openSnapshotForCommand } = await import("./convert_snapshot.ts");
  return await openSnapshotForCommand(image, snapshot);
}

async function openOptions(text: string, share: boolean): Promise<Image> {
  const { openImageOptions } = await import("../image/open.ts");
  try {
    return await openImageOptions(text, { share, readOnly: true });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new ImageCommandError(`Could not open '${text}': ${error.message}`, { hint: error.hint, cause: error });
  }
}

async function measure(image: Image | null, wishes: Wishes): Promise<Measures> {
  const { target } = wishes;
  if (target !== "raw" && target !== "qcow2") {
    throw new ImageCommandError(`Unknown file format '${target}'`, { hint: "vblk makes raw and qcow2 images" });
  }
  const values = optionsFor(target, wishes);
  const sizeBytes = Number(values.get("size") ?? 0);
  if (target === "qcow2") return await measureQcow2(image, values, sizeBytes);
  const bytes = image?.sizeBytes ?? Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  return { required: bytes, fullyAllocated: bytes };
}

function optionsFor(target: "raw" | "qcow2", { options, sizeBytes }: Wishes): CreateValues {
  try {
    const values = readCreateOptions(target, options.join(","));
    if (sizeBytes !== undefined) values.set("size", sizeBytes);
    return values;
  } catch (error) {
    if (!(error instanceof CreateOptionsError)) throw error;
    const lines = [error.message, `Invalid options for file format '${target}'`];
    throw new ImageCommandError(lines, { hint: error.hint, cause: error });
  }
}

async function measureQcow2(image: Image | null, values: CreateValues, givenBytes: number): Promise<Measures> {
  const { bitmapsBytes, checkShape, fullyAllocatedBytes } = await import("../image/qcow2/measure.ts");
  const shape = shapeOf(values);
  checkShape(shape, givenBytes);
  const preallocation = values.get("preallocation") ?? "off";
  if (!["off", "metadata", "falloc", "full"].includes(String(preallocation))) {
    throw new CreateOptionsError(`invalid parameter value: ${preallocation}`);
  }
  const { clusterBytes, version } = shape;
  const diskBytes = Math.ceil((image?.sizeBytes ?? givenBytes) / clusterBytes) * clusterBytes;
  const fullyAllocated = fullyAllocatedBytes(shape, diskBytes);
  let dataBytes = 0;
  // Nobody knows how much of the new backing file is the same as the image.
  if (preallocation === "falloc" || preallocation === "full" || image !== null && values.has("backing_file")) {
    dataBytes = diskBytes;
  } else if (image !== null) dataBytes = await dataBytesIn(image, clusterBytes);
  const required = fullyAllocated - diskBytes + dataBytes;
  const specific = version === 3 && image?.format === "qcow2" ? (await image.details?.())?.specific : undefined;
  // Only version 3 has bitmaps to copy.
  if (specific === undefined || specific["compat"] === "0.10") return { required, fullyAllocated };
  const bitmaps = bitmapsBytes(specific["bitmaps"], image!.sizeBytes, clusterBytes);
  return { required, fullyAllocated, bitmaps };
}

function shapeOf(values: CreateValues): MeasureShape {
  const compat = values.get("compat") ?? "1.1";
  if (values.has("encrypt.format")) {
    throw new CreateOptionsError("vblk does not make encrypted images ('encrypt.format')", "qemu-img measures them");
  }
  const shape = {
    version: compat === "0.10" ? 2 : 3,
    clusterBytes: Number(values.get("cluster_size") ?? 65536),
    refcountBits: Number(values.get("refcount_bits") ?? 16),
    extendedL2: values.get("extended_l2") === true,
  } as const;
  if (compat !== "0.10" && compat !== "1.1") throw new CreateOptionsError(`Invalid compatibility level: '${compat}'`);
  return shape;
}

/** Bytes of the clusters that hold anything but zeros. */
async function dataBytesIn(image: Image, clusterBytes: number): Promise<number> {
  const [{ mapChain }, { fullMap }] = await Promise.all([import("../image/map_chain.ts"), import("./holes.ts")]);
  const { findHoles } = fullMap();
  let total = 0;
  let counted = 0;
  for await (const extents of mapChain(image, 0, image.sizeBytes, { findHoles })) {
    for (const { guestOffset, lengthBytes, data, zero } of extents) {
      if (!data || zero) continue;
      const start = Math.max(counted, Math.floor(guestOffset / clusterBytes) * clusterBytes);
      const end = Math.ceil((guestOffset + lengthBytes) / clusterBytes) * clusterBytes;
      total += Math.max(0, end - start);
      counted = Math.max(counted, end);
    }
  }
  return total;
}

function textOf({ required, fullyAllocated, bitmaps }: Measures): string[] {
  return [
    `required size: ${required}`,
    `fully allocated size: ${fullyAllocated}`,
    ...bitmaps === undefined ? [] : [`bitmaps size: ${bitmaps}`],
  ];
}

function jsonOf({ required, fullyAllocated, bitmaps }: Measures): string[] {
  const facts = [["bitmaps", bitmaps], ["required", required], ["fully-allocated", fullyAllocated]];
  const lines = facts.flatMap(([name, bytes]) => bytes === undefined ? [] : [`    "${name}": ${bytes}`]);
  return ["{", ...lines.map((line, i) => i === lines.length - 1 ? line : `${line},`), "}"];
}
