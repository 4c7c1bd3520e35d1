/**
 * Opens the image that a command changes.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { openImageOptions, type OpenOptions, probeWarning } from "../image/open.ts";
import type { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import { CACHE_MODES } from "../script/open_settings.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { type ImageArguments, type ImageOption, NO_OBJECTS_HINT, OBJECT, refuseObject } from "./image_command.ts";
import { checkCache, ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

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
  const image = imageOpts ? await openByOptions(name, options) : await openForCommand(name, options);
  output.err(probeWarning(image));
  return image;
}

/**
 * Opens what a list of options says.
 *
 * @throws ImageCommandError
 */
export async function openByOptions(text: string, options: OpenOptions): Promise<Image> {
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

/** The options that say how to open an image; refuses those that no command here can do. */
export function openWishes(command: string, given: ImageArguments): { format?: string; imageOpts: boolean } {
  if (given.has(OBJECT.name)) refuseObject(NO_OBJECTS_HINT);
  const { format, imageOpts } = given.opening;
  if (imageOpts && format !== undefined) throw usage(command, "--image-opts and --format are mutually exclusive");
  return { format, imageOpts };
}

/** The cache mode of the image. */
export const CACHE: ImageOption = { name: "cache", value: "required", letter: "t" };

/** Whether the cache mode has nothing flushed, which is the only difference that one makes; refuses those unknown. */
export function flushesNothing(given: ImageArguments): boolean {
  const cache = given.last("t") ?? "writeback";
  checkCache(cache, "cache");
  return CACHE_MODES[cache].noFlush;
}

/** The image if it is a qcow2 one, by its methods: not all who ask have its module loaded. */
export function asQcow2(image: Image): Qcow2Image | null {
  return image.format === "qcow2" && "exclusive" in image ? image as Qcow2Image : null;
}
