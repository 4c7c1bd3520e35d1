/**
 * Failures that name what is wrong with a qcow2 image.
 *
 * @module
 */

import { BlockError, type BlockOperation } from "../../storage/block_error.ts";

/** Hint for an image whose metadata are not what they should be. */
const CHECK_HINT = "'vblk check' tells how much of the image is damaged";

/** The image breaks the format. `offset` is a place in the file. */
export function corrupt(path: string, operation: BlockOperation, reason: string, offset?: number): BlockError {
  return new BlockError({ kind: "corrupt", path, operation, offset, reason, hint: CHECK_HINT });
}

/** The image uses what vblk has not got. */
export function unsupported(path: string, reason: string, hint?: string): BlockError {
  return new BlockError({ kind: "unsupported", path, operation: "open", reason, hint });
}

/** An offset as people look for it in a hex dump. */
export function hex(offset: number): string {
  return `0x${offset.toString(16)}`;
}

/** A field of 64 bits as a number, if a number can hold it. */
export function checkedU64(view: DataView, at: number, what: string, path: string): number {
  const value = view.getBigUint64(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw corrupt(path, "open", `${what} is too large: ${value}`, at);
  return Number(value);
}
