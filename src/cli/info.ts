/**
 * `vblk info`: what there is to say about an image, as `qemu-img info` says it. Opens nothing but the image, unless its
 * chain of backing files is asked for.
 *
 * @module
 */

import { type ImageFacts, type Qcow2Facts, readFacts } from "../image/facts.ts";
import type { DetailValue } from "../image/image.ts";
import { detailLines } from "../script/detail_lines.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
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
import type { Subcommand } from "./main.ts";
import { ImageCommandError, usage } from "./qemu_img.ts";
import { humanSize, type Json, qemuJson } from "./qemu_text.ts";
import { snapshotLines } from "./snapshot_list.ts";

const HELP = [
  "Usage: vblk info [-f FORMAT] [--output human|json] [--backing-chain] [-U] IMAGE",
  "",
  "Prints what there is to say about an image. Opens no other file, unless --backing-chain is given.",
  "",
  "  -f, --format FORMAT      raw or qcow2; found out when not given",
  "      --output human|json  text (default), or JSON",
  "      --backing-chain      the images behind it too; those whose format is not recorded lead no further",
  "      --image-opts         IMAGE is driver=...,file.filename=...",
  "  -U, --force-share        take no lock: for an image that a machine uses now",
  "  -h, --help               this text",
  "",
  'The last line of a qcow2 image, and "vblk" in JSON, say how much memory vblk takes for L2 tables, and how much would',
  "hold all of them ('open -o l2-cache-size=' in 'vblk attach' changes it).",
  "",
  "Example: vblk info --output=json disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "info",
  help: HELP,
  options: [
    FORMAT,
    OUTPUT,
    { name: "backing-chain", value: "none" },
    FORCE_SHARE,
    IMAGE_OPTS,
    { ...OBJECT, check: () => refuseObject() },
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  if (given.operands.length !== 1) throw usage("info", "Expecting one image file name");
  const chain = given.has("backing-chain");
  const images = await chainFrom(given.operands[0], given.opening, chain);
  if (given.last("output") === "json") output.out(qemuJson(chain ? images.map(jsonOf) : jsonOf(images[0])));
  else output.out(images.flatMap((facts, i) => [...i === 0 ? [] : [""], ...textOf(facts)]).map(printable));
  return 0;
}

/** The image, and with `chain` those behind it. */
async function chainFrom(
  name: string,
  { format, share, imageOpts }: ImageArguments["opening"],
  chain: boolean,
): Promise<ImageFacts[]> {
  const first = await plainName(name, imageOpts);
  const images: ImageFacts[] = [];
  let next: { path: string; format?: string } | null = { path: first.path, format: format ?? first.format };
  while (next !== null) {
    const { path, format } = next;
    const facts = await factsOf(path, { format, share });
    const before = images.findIndex((other) => other.path === path || (facts.identity ?? "") === other.identity);
    if (before >= 0) throw new ImageCommandError(`Backing file '${path}' creates an infinite loop.`);
    images.push(facts);
    next = chain ? behind(facts, images.length > 1) : null;
  }
  return images;
}

async function factsOf(path: string, options: { format?: string; share: boolean }): Promise<ImageFacts> {
  try {
    return await readFacts(path, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { message, reason, hint } = error;
    const why = /^(?:Unknown driver|Image is not in)/.test(reason) ? reason : message;
    throw new ImageCommandError(`Could not open '${path}': ${why}`, { hint, cause: error });
  }
}

/** Where the chain goes on. */
function behind({ path, probed, qcow2 }: ImageFacts, named: boolean): { path: string; format?: string } | null {
  if (qcow2 === undefined || qcow2.backingPath === null) return null;
  const { backingPath, backingFormat } = qcow2;
  // A guest can write a header with any name to a raw disk.
  if (named && probed) {
    throw new ImageCommandError(
      `The backing file of '${path}' is not opened: nobody recorded the format of that image`,
      {
        hint: "'vblk rebase -u -b FILE -F qcow2 IMAGE' records it, if you trust it",
      },
    );
  }
  if (/^[^/]*:/.test(backingPath)) {
    throw new ImageCommandError(`Could not open '${backingPath}': vblk opens only files by their path`);
  }
  return { path: backingPath, format: backingFormat ?? undefined };
}

/** The file and format in a name: a path, `file:`, `json:{...}`, or options. */
async function plainName(name: string, imageOpts: boolean): Promise<{ path: string; format?: string }> {
  if (!imageOpts && !name.startsWith("json:")) return { path: name.replace(/^file:/, "") };
  const { parseJsonName, parseOptionText } = await import("../image/block_options.ts");
  const options = imageOpts ? parseOptionText(name) : parseJsonName(name);
  const path = options.get("file.filename") ?? options.get("filename");
  const driver = options.get("driver");
  const known = ["driver", "filename", "file.filename", "file.driver", "read-only", "force-share"];
  const strange = [...options.keys()].find((key) => !known.includes(key));
  if (typeof path !== "string" || strange !== undefined || (options.get("file.driver") ?? "file") !== "file") {
    const what = strange === undefined
      ? "the options name no file"
      : `the option '${strange}' says nothing about a file`;
    throw new ImageCommandError(`Could not open '${name}': ${what}`);
  }
  const isFile = driver === "file" || driver === undefined || driver === null;
  return { path, format: isFile ? undefined : String(driver) };
}

function textOf(facts: ImageFacts): string[] {
  const { path, format, sizeBytes, diskBytes, qcow2 } = facts;
  return [
    `image: ${path}`,
    `file format: ${format}`,
    `virtual size: ${humanSize(sizeBytes)} (${sizeBytes} bytes)`,
    `disk size: ${diskBytes === null ? "unavailable" : humanSize(diskBytes)}`,
    ...qcow2 === undefined ? [] : qcow2Text(qcow2),
  ];
}

function qcow2Text(qcow2: Qcow2Facts): string[] {
  const { backingName, backingPath, backingFormat, snapshots, l2CacheBytes, l2TablesBytes } = qcow2;
  const actual = backingPath === backingName ? "" : ` (actual path: ${backingPath})`;
  return [
    `cluster_size: ${qcow2.clusterBytes}`,
    ...qcow2.dirty ? ["cleanly shut down: no"] : [],
    ...backingName === null ? [] : [`backing file: ${backingName}${actual}`],
    ...backingName === null || backingFormat === null ? [] : [`backing file format: ${backingFormat}`],
    ...snapshots.length === 0 ? [] : ["Snapshot list:", ...snapshotLines(snapshots)],
    "Format specific information:",
    ...detailLines(qcow2.specific, "    "),
    `l2 cache: ${humanSize(l2CacheBytes)} at most, ${humanSize(l2TablesBytes)} for the whole disk`,
  ];
}

/** A name comes from an image: what could move the cursor is left out. */
function printable(line: string): string {
  // deno-lint-ignore no-control-regex
  return line.replace(/[\x00-\x1f\x7f-\x9f]/g, "?");
}

/** In the order in which qemu-img prints them. */
function jsonOf({ path, format, sizeBytes, diskBytes, qcow2 }: ImageFacts): Json {
  const { backingName = null, backingPath = null, backingFormat = null, snapshots = [] } = qcow2 ?? {};
  return {
    "backing-filename-format": backingName === null ? undefined : backingFormat ?? undefined,
    "snapshots": snapshots.length === 0 ? undefined : snapshots.map(snapshotJson),
    "virtual-size": sizeBytes,
    "filename": path,
    "cluster-size": qcow2?.clusterBytes,
    "format": format,
    "actual-size": diskBytes ?? undefined,
    "format-specific": qcow2 && { type: "qcow2", data: dashed(qcow2.specific) },
    "full-backing-filename": backingPath ?? undefined,
    "backing-filename": backingName ?? undefined,
    "dirty-flag": qcow2?.dirty ?? false,
    "vblk": qcow2 && { "l2-cache-size": qcow2.l2CacheBytes, "l2-tables-size": qcow2.l2TablesBytes },
  };
}

const SECOND = 1_000_000_000n;

function snapshotJson(snapshot: Qcow2Facts["snapshots"][number]): Json {
  return {
    "icount": snapshot.icount ?? undefined,
    "vm-clock-nsec": snapshot.vmClockNanoseconds % SECOND,
    "name": snapshot.name,
    "date-sec": snapshot.dateSeconds,
    "date-nsec": snapshot.dateNanoseconds,
    "vm-clock-sec": snapshot.vmClockNanoseconds / SECOND,
    "id": snapshot.id,
    "vm-state-size": snapshot.vmStateBytes,
  };
}

/** The names of facts as JSON has them. */
function dashed(value: DetailValue): Json {
  if (typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(dashed);
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name.replaceAll(" ", "-"), dashed(inner)]));
}
