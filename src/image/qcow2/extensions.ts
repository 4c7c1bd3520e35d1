/**
 * Header extensions (QEMU's docs/interop/qcow2, "Header extensions"), and the texts in a header.
 *
 * @module
 */

import { EXTENSION } from "./qcow2_layout.ts";
import { corrupt } from "./refuse.ts";

/** One header extension; `data` is a view. */
export interface HeaderExtension {
  /** What kind of extension it is. */
  readonly type: number;
  /** Its contents, without padding. */
  readonly data: Uint8Array;
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
