/**
 * What an image is locked for: one who writes is alone, readers share. As QEMU for a disk that a guest has.
 *
 * @module
 */

import type { LockWish } from "../host/file_lock.ts";
import { BlockError } from "./block_error.ts";

/** The bytes to lock, in QEMU's words. */
export function imageLockWish(readOnly: boolean): LockWish {
  return {
    uses: readOnly ? ["consistent read"] : ["consistent read", "write", "resize"],
    refuses: ["write", "resize"],
  };
}

/**
 * Somebody is in the way.
 *
 * @param reason QEMU's words, where it was QEMU's lock that could not be had
 */
export function lockedError(
  path: string,
  readOnly: boolean,
  reason: string = `Failed to get ${readOnly ? "shared " : ""}"write" lock`,
): BlockError {
  const who = readOnly ? "another process has the image open for writing" : "another process has the image open";
  return new BlockError({
    kind: "locked",
    path,
    operation: "open",
    reason: `${reason}: ${who}`,
    hint: readOnly
      ? "close the other process first, or give -U (--force-share) to read anyway, at the risk of torn data"
      : "close the other process first; if it only reads, -r opens the image beside it",
  });
}
