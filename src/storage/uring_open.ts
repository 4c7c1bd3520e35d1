/**
 * Opening a file for io_uring: what may be opened, with which flags and locks, and what to say when it fails.
 *
 * @module
 */

import { EINVAL, HostError } from "../host/errno.ts";
import { FileLock } from "../host/file_lock.ts";
import * as host from "../host/libc.ts";
import { BlockError } from "./block_error.ts";
import { checkIsDisk, openHint } from "./deno_file.ts";
import { imageLockWish, lockedError } from "./image_lock.ts";

/** Refuses what is no disk, and what Deno's user has not allowed: libc would not ask. */
export function checkName(path: string, readOnly: boolean): void {
  if (path === "") {
    throw new BlockError({ kind: "invalid", path, operation: "open", reason: "A file name is required" });
  }
  // To open a FIFO would wait for somebody at its other end.
  checkIsDisk(Deno.statSync(path), path);
  if (readOnly || Deno.permissions.querySync({ name: "write", path }).state === "granted") return;
  const hint = `run again with --allow-read=${path} --allow-write=${path} (right after 'deno run')`;
  throw new BlockError({ kind: "not-capable", path, operation: "open", hint });
}

/** Opens a file or block device, and nothing else. */
export function openDisk(path: string, readOnly: boolean, direct: boolean): number {
  const descriptor = openFile(path, readOnly, direct);
  try {
    // The name may stand for something else since it was looked at.
    const { kind } = host.fstat(descriptor);
    if (kind !== "file" && kind !== "block") {
      const reason = "Neither a regular file nor a block device";
      throw new BlockError({ kind: "unsupported", path, operation: "open", reason });
    }
    // It was only for the opening; io_uring would fail operations that have to wait.
    host.setNonBlocking(descriptor, false);
    return descriptor;
  } catch (error) {
    host.close(descriptor);
    throw error;
  }
}

function openFile(path: string, readOnly: boolean, direct: boolean): number {
  const { O } = host;
  try {
    return host.open(path, (readOnly ? O.RDONLY : O.RDWR) | O.NONBLOCK | (direct ? O.DIRECT : 0));
  } catch (error) {
    if (!direct || !(error instanceof HostError) || error.errno !== EINVAL) throw error;
    throw new BlockError({
      kind: "unsupported",
      path,
      operation: "open",
      reason: "The file system has no direct I/O (O_DIRECT)",
      hint: "leave out --direct, or use a cache mode that goes through the page cache",
      cause: error,
    });
  }
}

/** What an error on the way means to the user. */
export function openFailure(error: unknown, path: string, readOnly: boolean): BlockError {
  if (error instanceof host.HostUnavailable) {
    const kind = host.libcProblem()?.hint === undefined ? "unsupported" : "not-capable";
    return new BlockError({ kind, path, operation: "open", reason: error.message, hint: error.hint, cause: error });
  }
  return BlockError.from(error, { path, operation: "open", hint: openHint(error, path, readOnly) });
}

/** As QEMU for a disk that a guest has, and as `DenoFileStorage`: one who writes is alone, readers share. */
export function takeLock(descriptor: number, path: string, readOnly: boolean): FileLock {
  const lock = FileLock.acquire(descriptor, imageLockWish(readOnly));
  if (!(lock instanceof FileLock)) throw lockedError(path, readOnly, lock.reason);
  if (host.tryFlock(descriptor, !readOnly)) return lock;
  throw lockedError(path, readOnly);
}
