/**
 * Failures in the words of strerror(3), as qemu-io prints them.
 *
 * @module
 */

import { VIRTIO_BLK_S_UNSUPP } from "../blk/blk_layout.ts";
import { GuestMemoryError } from "../guest/allocator.ts";
import { GuestIoError, GuestRangeError } from "../guest/guest_error.ts";
import { BlockError } from "../storage/block_error.ts";
import { CommandError } from "./command.ts";
import type { Session } from "./session.ts";

/** What to do about a device that needs a reset. */
const RESET_HINT = "'reset' brings it back";

/**
 * Why a request failed, in the words that people and scripts know.
 *
 * @returns `null` for what is no failure of a request
 */
export function failureText(error: unknown): string | null {
  if (error instanceof GuestIoError) {
    return error.status === VIRTIO_BLK_S_UNSUPP ? "Operation not supported" : "Input/output error";
  }
  // A guest's block layer refuses such a request before a driver sees it.
  if (error instanceof GuestRangeError) return "Input/output error";
  if (error instanceof GuestMemoryError) return "Cannot allocate memory";
  // What the JavaScript engine says when there is no memory for a buffer of 2 GiB.
  if (error instanceof RangeError && /allocation failed|Invalid typed array length/.test(error.message)) {
    return "Cannot allocate memory";
  }
  if (error instanceof BlockError) return error.reason;
  return null;
}

/** The failure of the command `verb`: `read failed: Input/output error`. What is no such failure is thrown on. */
export function commandFailure(verb: string, error: unknown, session: Session): CommandError {
  const text = failureText(error);
  if (text === null) throw error;
  return new CommandError(`${verb} failed: ${text}`, { hint: hintFor(error, session) });
}

function hintFor(error: unknown, session: Session): string | undefined {
  if (session.isOpen && session.machine.guest.driver.needsReset) return RESET_HINT;
  // qemu-io's words for it are those of a broken disk.
  if (error instanceof GuestRangeError) return error.message;
  if (error instanceof GuestMemoryError) return "--ram gives the guest more memory";
}

/** Refuses to send requests to a device that takes none. */
export function checkDevice(session: Session): void {
  if (!session.machine.guest.driver.needsReset) return;
  throw new CommandError("the device needs a reset, and takes no requests until then", {
    stream: "stderr",
    hint: RESET_HINT,
  });
}
