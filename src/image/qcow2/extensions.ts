/**
 * Header extensions (QEMU's docs/interop/qcow2, "Header extensions"), and the texts in a header.
 *
 * @module
 */

import { AUTOCLEAR, BITMAP_DIRECTORY_MAX_BYTES, BITMAPS_MAX, EXTENSION } from "./qcow2_layout.ts";
import { checkedU64, corrupt } from "./refuse.ts";

/** One header extension; `data` is a view. */
export interface HeaderExtension {
  /** What kind of extension it is. */
  readonly type: number;
  /** Its contents, without padding. */
  readonly data: Uint8Array;
}

/** Where the directory of persistent bitmaps is. */
export interface BitmapDirectory {
  /** Number of bitmaps. */
  readonly count: number;
  /** Where the directory starts in the file, in bytes. */
  readonly offset: number;
  /** Length of the directory, in bytes. */
  readonly lengthBytes: number;
}

/**
 * The extensions between two offsets of the first cluster.
 *
 * @throws BlockError when one goes beyond the end, or appears twice
 */
export function parseExtensions(cluster: Uint8Array, from: number, end: number, path: string): HeaderExtension[] {
  const view = new DataView(cluster.buffer, cluster.byteOffset, cluster.byteLength);
  const found: HeaderExtension[] = [];
  // As in QEMU, an area that ends without an end mark is complete all the same.
  for (let at = from; at < end;) {
    if (end - at < 8) throw corrupt(path, "open", "A header extension is cut off", at);
    const type = view.getUint32(at);
    const lengthBytes = view.getUint32(at + 4);
    if (type === EXTENSION.end) break;
    if (lengthBytes > end - at - 8) throw corrupt(path, "open", "Header extension too large", at);
    // Two backing formats would be two answers to one question; the text allows one of each type.
    if (isKnown(type) && found.some((other) => other.type === type)) {
      throw corrupt(path, "open", `Header extension 0x${type.toString(16)} appears twice`, at);
    }
    found.push({ type, data: cluster.subarray(at + 8, at + 8 + lengthBytes) });
    at += 8 + Math.ceil(lengthBytes / 8) * 8;
  }
  return found;
}

function isKnown(type: number): boolean {
  return Object.values(EXTENSION).some((known) => known === type);
}

const FEATURE_BYTES = 48;
const INCOMPATIBLE_TYPE = 0;

/**
 * Names of the incompatible features in `bits`, from the image's feature name table where it has them. A name is
 * printed, and the image is nobody's friend: what could move a terminal's cursor is left out.
 */
export function featureNames(bits: bigint, table: Uint8Array | undefined): string[] {
  const names: string[] = [];
  let left = bits;
  for (let at = 0; table !== undefined && at + FEATURE_BYTES <= table.byteLength; at += FEATURE_BYTES) {
    const bit = 1n << BigInt(table[at + 1] & 63);
    if (table[at] !== INCOMPATIBLE_TYPE || table[at + 1] > 63 || (left & bit) === 0n) continue;
    const text = printable(table.subarray(at + 2, at + FEATURE_BYTES));
    if (text === "") continue;
    names.push(text);
    left &= ~bit;
  }
  if (left !== 0n) names.push(`Unknown incompatible feature: ${left.toString(16)}`);
  return names;
}

function printable(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  // deno-lint-ignore no-control-regex
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end)).replace(/[\x00-\x1f\x7f-\x9f]/g, "");
}

/**
 * A text that names a file or format. NUL or bytes that are not UTF-8 would name another file than QEMU opens, so
 * they are refused.
 *
 * @throws BlockError
 */
export function nameFrom(bytes: Uint8Array, what: string, path: string): string {
  if (bytes.includes(0)) throw corrupt(path, "open", `The ${what} contains a NUL`);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw corrupt(path, "open", `The ${what} is not UTF-8`);
  }
}

/** The text in an extension of at most so many bytes; `null` when there is none, or it is empty. */
export function textOf(
  extensions: readonly HeaderExtension[],
  type: number,
  most: number,
  what: string,
  path: string,
): string | null {
  const data = extensions.find((extension) => extension.type === type)?.data;
  if (data === undefined) return null;
  if (data.byteLength > most) throw corrupt(path, "open", `The ${what} is too long: ${data.byteLength} bytes`);
  const text = nameFrom(data, what, path);
  return text === "" ? null : text;
}

/** Where the bitmaps are: facts for `info`, as a disk is read without them. */
export function bitmapsOf(
  extensions: readonly HeaderExtension[],
  autoclear: bigint,
  clusterBytes: number,
  fileBytes: number,
  path: string,
): BitmapDirectory | null {
  const data = extensions.find(({ type }) => type === EXTENSION.bitmaps)?.data;
  // Without the bit a program that knows no bitmaps has written to the image since.
  if (data === undefined || (autoclear & AUTOCLEAR.bitmaps) === 0n) return null;
  const bad = (reason: string) => corrupt(path, "open", `bitmaps_ext: ${reason}`);
  if (data.byteLength !== 24) throw bad("Invalid extension length");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const count = view.getUint32(0);
  if (view.getUint32(4) !== 0) throw bad("Reserved field is not zero");
  const lengthBytes = checkedU64(view, 8, "The bitmap directory's size", path);
  const offset = checkedU64(view, 16, "The bitmap directory's offset", path);
  if (count === 0) throw bad("found bitmaps extension with zero bitmaps");
  if (count > BITMAPS_MAX) throw bad(`${count} bitmaps, ${BITMAPS_MAX} at most`);
  if (offset % clusterBytes !== 0 || offset + lengthBytes > fileBytes) throw bad("invalid bitmap directory offset");
  if (lengthBytes > BITMAP_DIRECTORY_MAX_BYTES) throw bad("the bitmap directory is too large");
  return { count, offset, lengthBytes };
}
