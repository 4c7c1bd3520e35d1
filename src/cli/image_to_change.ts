/**
 * Opens the image that a command changes.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { openImageOptions, type OpenOptions, probeWarning } from "../image/open.ts";
import type { GivenOption } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

/** How the user names the image. */
export interface ImageName {
  readonly name: string;
  readonly imageOpts: boolean;
}

/**
 * Opens an image, and warns about one whose format was guessed, as qemu-img does.
 *
 * @throws ImageCommandError
 */
export async function openToChange(
  { name, imageOpts }: ImageName,
  options: OpenOptions,
  output: Output,
): Promise<Image> {
  const image = imageOpts ? await openOptions(name, options) : await openForCommand(name, options);
  output.err(probeWarning(image));
  return image;
}

async function openOptions(text: string, options: OpenOptions): Promise<Image> {
  if (options.format !== undefined) {
    throw new ImageCommandError("--image-opts and --format are mutually exclusive");
  }
  try {
    return await openImageOptions(text, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new ImageCommandError(`Could not open '${text}': ${error.message}`, { hint: error.hint, cause: error });
  }
}

/** The options that say how to open an image, and those that no command here can do. */
export function openWishes(command: string, options: readonly GivenOption[]): { format?: string; imageOpts: boolean } {
  if (options.some(({ name }) => name === "object")) {
    throw new ImageCommandError("--object: vblk has no objects: no secrets, and no encrypted images", {
      hint: "leave it out where the image is not encrypted; otherwise use qemu-img",
    });
  }
  const imageOpts = options.some(({ name }) => name === "image-opts");
  const format = options.findLast(({ name }) => name === "f")?.value ?? undefined;
  if (imageOpts && format !== undefined) throw usage(command, "--image-opts and --format are mutually exclusive");
  return { format, imageOpts };
}
