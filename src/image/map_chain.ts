/**
 * Where the bytes of a disk are, through all the images that are behind each other.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Extent, Image } from "./image.ts";
import { isZeros } from "./zeros.ts";

/** A run of a disk that one image of the chain decides about. */
export interface ChainExtent {
  /** Offset on the disk, in bytes. */
  readonly guestOffset: number;
  /** Length of the run, in bytes. */
  readonly lengthBytes: number;
  /** How many images are in front of the one that decides. */
  readonly depth: number;
  /** Whether that image has something there; otherwise no image has, and zeros are read. */
  readonly present: boolean;
  /** Whether nothing is there because the image behind ends before. */
  readonly pastBacking: boolean;
  /** Whether it reads as zeros, so that nobody need read it. */
  readonly zero: boolean;
  /** Whether there is data in a file. */
  readonly data: boolean;
  /** Whether the data are stored in another form. */
  readonly compressed: boolean;
  /** Where it is in the file, when the bytes are there as they are. */
  readonly hostOffset?: number;
  /** The image that decides. */
  readonly image: Image;
}

/** How to look. */
export interface MapChainOptions {
  /**
   * Whether a raw image should be read to find the pages of zeros in it. No portable call tells where a file's holes
   * are, and a file that takes less space than its size says has some.
   */
  readonly findHoles?: (raw: Image) => boolean;
  /** Splits runs that are not data by where they have a place in the file all the same. Default: nobody asks. */
  readonly places?: (image: Image, extent: Extent) => Promise<readonly Extent[]>;
  /** How many images to look at; what is behind them is neither data nor zero. Default: all. */
  readonly layers?: number;
}

/** Windows grow while little is found: a disk can have terabytes of nothing. */
const WINDOW_FIRST_BYTES = 64 << 20;
const WINDOW_MAX_BYTES = 2 ** 40;
const FEW_EXTENTS = 256;

/**
 * Maps a range of a disk, window by window. Runs are in order and without gaps; neighbours can be alike.
 *
 * @throws BlockError
 */
export async function* mapChain(
  image: Image,
  offset: number,
  lengthBytes: number,
  options: MapChainOptions = {},
): AsyncGenerator<ChainExtent[]> {
  const end = offset + lengthBytes;
  let window = WINDOW_FIRST_BYTES;
  for (let at = offset; at < end;) {
    const take = Math.min(window, end - at);
    const found: ChainExtent[] = [];
    await mapLayer(image, at, take, 0, options, found);
    yield found;
    at += take;
    if (found.length < FEW_EXTENTS) window = Math.min(2 * window, WINDOW_MAX_BYTES);
    else window = WINDOW_FIRST_BYTES;
  }
}

/** What is behind an image. */
export function backingOf(image: Image): Image | null {
  return (image as Image & { readonly backing?: Image | null }).backing ?? null;
}

async function mapLayer(
  image: Image,
  offset: number,
  lengthBytes: number,
  depth: number,
  options: MapChainOptions,
  found: ChainExtent[],
): Promise<void> {
  const mapping = image.map(offset, lengthBytes);
  const mapped = mapping instanceof Promise ? await mapping : mapping;
  const { places } = options;
  const extents = places === undefined ? mapped : await placed(image, mapped, places);
  for (const extent of extents) {
    if (extent.kind === "unallocated") await mapBehind(image, extent, depth, options, found);
    else if (image.format === "raw" && options.findHoles?.(image)) await mapRaw(image, extent, depth, found);
    else found.push(onLayer(image, extent, depth));
  }
}

async function placed(
  image: Image,
  extents: readonly Extent[],
  places: NonNullable<MapChainOptions["places"]>,
): Promise<Extent[]> {
  const split: Extent[] = [];
  for (const extent of extents) {
    if (extent.kind === "zero" || extent.kind === "unallocated") split.push(...await places(image, extent));
    else split.push(extent);
  }
  return split;
}

function onLayer(image: Image, { guestOffset, lengthBytes, kind, hostOffset }: Extent, depth: number): ChainExtent {
  return {
    guestOffset,
    lengthBytes,
    depth,
    present: kind !== "unallocated",
    pastBacking: false,
    zero: kind === "zero" || kind === "unallocated",
    data: kind === "data" || kind === "compressed",
    compressed: kind === "compressed",
    hostOffset: kind === "compressed" ? undefined : hostOffset,
    image,
  };
}

/**
 * What is not in an image is behind it, as far as that goes; then it is zeros, and as in QEMU this image says so.
 * Where nobody may look further, neither is known.
 */
async function mapBehind(
  image: Image,
  extent: Extent,
  depth: number,
  options: MapChainOptions,
  found: ChainExtent[],
): Promise<void> {
  const { guestOffset, lengthBytes } = extent;
  const behind = backingOf(image);
  const reach = behind === null ? 0 : Math.min(lengthBytes, Math.max(0, behind.sizeBytes - guestOffset));
  if (reach > 0) {
    if (depth + 1 < (options.layers ?? Infinity)) {
      await mapLayer(behind!, guestOffset, reach, depth + 1, options, found);
    } else found.push({ ...onLayer(image, { ...extent, lengthBytes: reach }, depth), zero: false });
  }
  if (reach === lengthBytes) return;
  const hostOffset = extent.hostOffset === undefined ? undefined : extent.hostOffset + reach;
  const rest = { ...extent, guestOffset: guestOffset + reach, lengthBytes: lengthBytes - reach, hostOffset };
  found.push({ ...onLayer(image, rest, depth), pastBacking: behind !== null });
}

const SCAN_BYTES = 1 << 20;
/** What file systems leave out. */
const HOLE_BYTES = 4096;

/** Maps a raw image by reading it. */
async function mapRaw(image: Image, extent: Extent, depth: number, found: ChainExtent[]): Promise<void> {
  const end = extent.guestOffset + extent.lengthBytes;
  const bytes = new Uint8Array(Math.min(SCAN_BYTES, extent.lengthBytes));
  let runStart = extent.guestOffset;
  let runIsZero = false;
  const finish = (to: number) => {
    if (to === runStart) return;
    const run = { ...extent, guestOffset: runStart, lengthBytes: to - runStart, hostOffset: runStart };
    found.push({ ...onLayer(image, run, depth), zero: runIsZero, data: !runIsZero });
  };
  for (let at = extent.guestOffset; at < end;) {
    // Up to a multiple of its size, so that pages start where the file system's blocks do.
    const take = Math.min(SCAN_BYTES - at % SCAN_BYTES, end - at, bytes.byteLength);
    const part = bytes.subarray(0, take);
    await image.read(at, SegmentList.over(part));
    for (let from = 0; from < take;) {
      const to = Math.min(take, from + HOLE_BYTES - (at + from) % HOLE_BYTES);
      const zero = isZeros(part, from, to);
      if (zero !== runIsZero) {
        finish(at + from);
        runStart = at + from;
        runIsZero = zero;
      }
      from = to;
    }
    at += take;
  }
  finish(end);
}
