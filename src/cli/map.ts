/**
 * `vblk map`: which parts of a disk are in which file of its chain, where, and which are zeros.
 *
 * @module
 */

import { type ChainExtent, mapChain } from "../image/map_chain.ts";
import type { Output } from "../script/session.ts";
import { fullMap } from "./holes.ts";
import { FORCE_SHARE, FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand, OUTPUT } from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk map [-f FORMAT] [-s OFFSET] [-l LENGTH] [--output human|json] [-U] IMAGE",
  "",
  "Prints which parts of the disk are in which file of the chain, and where. Parts that read as zeros are in the",
  "JSON form only.",
  "",
  "  -f, --format FORMAT        raw or qcow2; found out when not given",
  "      --image-opts           IMAGE is driver=...,file.filename=...",
  "  -s, --start-offset OFFSET  where to start (default: 0)",
  "  -l, --max-length LENGTH    how far to go (default: to the end of the disk)",
  "      --output human|json    text in columns (default), or JSON, which has zeros and compressed parts too",
  "  -U, --force-share          take no lock: for an image that a machine uses now",
  "  -h, --help                 this text",
  "",
  "Holes in raw files are found by looking for zeros.",
  "",
  "Example: vblk map --output=json disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "map",
  help: HELP,
  options: [
    FORMAT,
    { name: "start-offset", value: "required", letter: "s", number: "start offset" },
    { name: "max-length", value: "required", letter: "l", number: "max length" },
    OUTPUT,
    FORCE_SHARE,
    IMAGE_OPTS,
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  if (given.operands.length !== 1) throw usage("map", "Expecting one image file name");
  const start = given.number("s") ?? 0;
  const image = await openForCommand(given.operands[0], { ...given.opening, readOnly: true });
  try {
    const end = Math.min(start + (given.number("l") ?? Infinity), image.sizeBytes);
    const maps = mapChain(image, start, Math.max(0, end - start), fullMap());
    if (given.last("output") === "json") await printJson(merged(maps), start, output);
    else await printText(merged(maps), output);
  } finally {
    await image.close();
  }
  return 0;
}

/** Joins neighbours that nothing tells apart, over the ends of windows too. */
async function* merged(windows: AsyncIterable<ChainExtent[]>): AsyncGenerator<ChainExtent> {
  const pending: ChainExtent[] = [];
  for await (const extents of windows) {
    for (const extent of extents) {
      const last = pending.pop();
      if (last !== undefined && goesOn(last, extent)) {
        pending.push({ ...last, lengthBytes: last.lengthBytes + extent.lengthBytes });
        continue;
      }
      if (last !== undefined) yield last;
      pending.push(extent);
    }
  }
  yield* pending;
}

function goesOn(last: ChainExtent, next: ChainExtent): boolean {
  if (last.zero !== next.zero || last.data !== next.data || last.compressed !== next.compressed) return false;
  if (last.depth !== next.depth || last.present !== next.present) return false;
  if (last.hostOffset === undefined || next.hostOffset === undefined) return last.hostOffset === next.hostOffset;
  return last.hostOffset + last.lengthBytes === next.hostOffset;
}

async function printText(extents: AsyncIterable<ChainExtent>, output: Output): Promise<void> {
  output.out([row("Offset", "Length", "Mapped to", "File")]);
  for await (const { guestOffset, lengthBytes, data, zero, hostOffset, image } of extents) {
    if (!data) continue;
    if (hostOffset === undefined) {
      throw new ImageCommandError("File contains external, encrypted or compressed clusters.", {
        hint: "--output=json prints those too",
      });
    }
    if (!zero) output.out([row(hex(guestOffset), hex(lengthBytes), hex(hostOffset), fileOf(image))]);
  }
}

function row(...[offset, length, host, file]: string[]): string {
  return `${offset.padEnd(16)}${length.padEnd(16)}${host.padEnd(16)}${file}`;
}

/** As printf's `%#x` prints it: zero has no prefix. */
function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

/** The file that holds an image's data. */
function fileOf(image: ChainExtent["image"]): string {
  const { dataStorage } = image as { readonly dataStorage?: { readonly name: string } };
  return dataStorage?.name ?? image.name;
}

async function printJson(extents: AsyncIterable<ChainExtent>, start: number, output: Output): Promise<void> {
  let line = "";
  for await (const extent of extents) {
    if (line !== "") output.out([`${line},`]);
    line = `${line === "" ? "[" : ""}${jsonOf(extent)}`;
  }
  if (line === "") {
    // QEMU prints a run of nothing for an empty range.
    line = `[{ "start": ${start}, "length": 0, "depth": 0, "present": false, "zero": false, "data": false}`;
  }
  output.out([`${line}]`]);
}

function jsonOf({ guestOffset, lengthBytes, depth, present, zero, data, hostOffset }: ChainExtent): string {
  const place = hostOffset === undefined ? "" : `, "offset": ${hostOffset}`;
  return `{ "start": ${guestOffset}, "length": ${lengthBytes}, "depth": ${depth}, "present": ${present}, ` +
    `"zero": ${zero}, "data": ${data}${place}}`;
}
