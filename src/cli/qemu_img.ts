/**
 * What the commands share that qemu-img has too: numbers, opening an image, and messages in its words.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { openImage, openImageOptions, type OpenOptions } from "../image/open.ts";
import { parseSize } from "../image/size.ts";
import { CACHE_MODES } from "../script/open_settings.ts";
import type { Output } from "../script/session.ts";
import { BlockError, BlockOptionError } from "../storage/block_error.ts";

/** The end of a command: lines for standard error without the program's name, and the exit code. */
export class ImageCommandError extends Error {
  override readonly name = "ImageCommandError";
  readonly lines: readonly string[];
  readonly code: number;
  readonly hint: string | undefined;

  constructor(lines: string | readonly string[], options: { code?: number; hint?: string; cause?: unknown } = {}) {
    const all = typeof lines === "string" ? [lines] : lines;
    super(all.join(" "), { cause: options.cause });
    this.lines = all;
    this.code = options.code ?? 1;
    this.hint = options.hint;
  }
}

/** A command line that makes no sense. As in qemu-img the exit code is 1. */
export function usage(command: string, message: string): ImageCommandError {
  return new ImageCommandError(message, { hint: `'vblk ${command} --help' lists the options` });
}

/** Runs a command's body; prints an ImageCommandError or a BlockError and returns its code. Others are thrown on. */
export async function ending(output: Output, body: () => Promise<number>): Promise<number> {
  try {
    return await body();
  } catch (error) {
    if (error instanceof BlockError) return printEnd(output, [error.message], error.hint, 1);
    if (error instanceof ImageCommandError) return printEnd(output, error.lines, error.hint, error.code);
    throw error;
  }
}

function printEnd(output: Output, lines: readonly string[], hint: string | undefined, code: number): number {
  output.err([...lines.map((line) => `vblk: ${line}`), ...hint === undefined ? [] : [`hint: ${hint}`]]);
  return code;
}

/** Largest number that QEMU takes where it names no other. */
const INT64_MAX = 2 ** 63;

/**
 * Reads a number with an optional suffix.
 *
 * @param what what it is, as messages name it
 * @throws ImageCommandError
 */
export function numberOption(what: string, text: string, least = 0, most = INT64_MAX): number {
  const size = parseSize(text);
  if (size === "not-a-number") {
    throw new ImageCommandError([
      `Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`,
      "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    ]);
  }
  if (size === "too-large" || size < least || size > most) {
    const last = most === INT64_MAX ? "9223372036854775807" : String(most);
    throw new ImageCommandError(`Invalid ${what} specified. Must be between ${least} and ${last}.`);
  }
  return size;
}

/** Refuses a cache mode that does not exist. What the modes choose, the host's file API can't do. */
export function checkCache(text: string, what: "source cache" | "cache", code = 1): void {
  if (!Object.hasOwn(CACHE_MODES, text)) throw new ImageCommandError(`Invalid ${what} option: ${text}`, { code });
}

/** How a command opens an image. */
export interface CommandOpenOptions extends OpenOptions {
  /** The name is a list of options: `driver=raw,file.filename=disk.img`. */
  imageOpts?: boolean;
}

/**
 * Opens an image as qemu-img does, with its words when that fails.
 *
 * @param code exit code of a failure
 * @throws ImageCommandError
 */
export async function openForCommand(name: string, options: CommandOpenOptions, code = 1): Promise<Image> {
  const { imageOpts = false, ...others } = options;
  if (imageOpts && options.format !== undefined) {
    throw new ImageCommandError("--image-opts and --format are mutually exclusive", { code });
  }
  try {
    return await (imageOpts ? openImageOptions(name, others) : openImage(name, others));
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { message, reason, hint } = error;
    // Options and formats that are not known never came near the file; what is behind it is another one.
    const isAboutOptions = error instanceof BlockOptionError ||
      /^(?:Unknown driver|Could not open backing file)/.test(reason);
    const why = isAboutOptions ? reason : message;
    throw new ImageCommandError(`Could not open '${name}': ${why}`, { code, hint, cause: error });
  }
}
