/**
 * `vblk measure`: how large a file an image would take, as `qemu-img measure` says it.
 *
 * @module
 */

import { CreateOptionsError, type CreateValues, readCreateOptions } from "../image/create_options.ts";
import { type Image, SECTOR_BYTES } from "../image/image.ts";
import type { MeasureShape } from "../image/qcow2/measure.ts";
import type { Output } from "../script/session.ts";
import {
  FORCE_SHARE,
  FORMAT,
  IMAGE_OPTS,
  type ImageArguments,
  imageCommand,
  OBJECT,
  OUTPUT,
  refuseObject,
} from "./image_command.ts";
import { openByOptions } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { OPTIONS } from "./new_image.ts";
import { ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

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

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "measure",
  help: HELP,
  options: [
    FORMAT,
    { name: "target-format", value: "required", letter: "O" },
    OPTIONS,
    { name: "size", value: "required", letter: "s", number: "image size" },
    { name: "snapshot", value: "required", letter: "l" },
    OUTPUT,
    FORCE_SHARE,
    IMAGE_OPTS,
    { ...OBJECT, check: () => refuseObject() },
  ],
  run,
});

/** What is printed, in bytes. */
interface Measures {
  readonly required: number;
  readonly fullyAllocated: number;
  readonly bitmaps?: number;
}

async function run(given: ImageArguments, output: Output): Promise<number> {
  const name = checkedOperand(given);
  const image = name === undefined ? null : await openSource(name, given);
  try {
    const measures = await measure(image, given);
    output.out(given.last("output") === "json" ? jsonOf(measures) : textOf(measures));
  } catch (error) {
    if (!(error instanceof CreateOptionsError)) throw error;
    throw new ImageCommandError(error.message, { hint: error.hint, cause: error });
  } finally {
    await image?.close();
  }
  return 0;
}

function checkedOperand(given: ImageArguments): string | undefined {
  const [name] = given.operands;
  if (given.operands.length > 1) throw usage("measure", "At most one filename argument is allowed.");
  if (name === undefined && given.has(IMAGE_OPTS.name, "f", "l")) {
    throw usage("measure", "--image-opts, -f, and -l require a filename argument.");
  }
  if (name !== undefined && given.has("s")) {
    throw usage("measure", "--size N cannot be used together with a filename.");
  }
  if (name === undefined && !given.has("s")) {
    throw usage("measure", "Either --size N or one filename must be specified.");
  }
  return name;
}

async function openSource(name: string, given: ImageArguments): Promise<Image> {
  const { format, share, imageOpts } = given.opening;
  if (imageOpts && format !== undefined) throw usage("measure", "--image-opts and --format are mutually exclusive");
  const options = { format, share, readOnly: true };
  const image = await (imageOpts ? openByOptions(name, options) : openForCommand(name, options));
  const snapshot = given.last("l");
  if (snapshot === undefined) return image;
  const { openSnapshotForCommand } = await import("./convert_snapshot.ts");
  return await openSnapshotForCommand(image, snapshot);
}

async function measure(image: Image | null, given: ImageArguments): Promise<Measures> {
  const target = given.last("O") ?? "raw";
  if (target !== "raw" && target !== "qcow2") {
    throw new ImageCommandError(`Unknown file format '${target}'`, { hint: "vblk makes raw and qcow2 images" });
  }
  const values = optionsFor(target, given);
  const sizeBytes = Number(values.get("size") ?? 0);
  if (target === "qcow2") return await measureQcow2(image, values, sizeBytes);
  const bytes = image?.sizeBytes ?? Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  return { required: bytes, fullyAllocated: bytes };
}

function optionsFor(target: "raw" | "qcow2", given: ImageArguments): CreateValues {
  const sizeBytes = given.number("s");
  try {
    const values = readCreateOptions(target, given.all("o").join(","));
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
