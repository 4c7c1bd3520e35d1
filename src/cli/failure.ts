/**
 * What becomes of a failure: lines on standard error, and an exit code. Users never see a stack trace for a mistake
 * of theirs, and always see one for a mistake of ours.
 *
 * @module
 */

import { BlockError } from "../storage/block_error.ts";
import type { Output } from "../script/session.ts";

/** A failure with, perhaps, a hint at what to do about it. */
abstract class HintedError extends Error {
  readonly hint: string | undefined;

  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }
}

/** The arguments make no sense. */
export class UsageError extends HintedError {
  override readonly name = "UsageError";
}

/** Something else went wrong that the user can do something about. */
export class CommandFailure extends HintedError {
  override readonly name = "CommandFailure";
}

/** Prints a failure; returns the exit code: 2 for a usage error, 1 for any other. Bugs are thrown on. */
export function printFailure(error: unknown, output: Output, command: string): number {
  if (error instanceof UsageError) {
    output.err([`vblk: ${error.message}`, `hint: ${error.hint ?? `'vblk ${command} --help' lists the options`}`]);
    return 2;
  }
  if (!(error instanceof CommandFailure) && !(error instanceof BlockError)) throw error;
  output.err([`vblk: ${error.message}`, ...error.hint === undefined ? [] : [`hint: ${error.hint}`]]);
  return 1;
}
