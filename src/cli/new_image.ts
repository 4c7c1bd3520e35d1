/**
 * What the commands share that make an image: its options, its format, its backing file, and the words for what goes
 * wrong.
 *
 * @module
 */

import { type CreateFormat, CreateOptionsError, type CreateValues, isOptionList } from "../image/create_options.ts";
import { BlockError } from "../storage/block_error.ts";
import type { ImageOption } from "./image_command.ts";
import { ImageCommandError } from "./qemu_img.ts";

/** `-o`: options of an image, `name=value,...`. May be given again. */
export const OPTIONS: ImageOption = { name: "options", value: "required", letter: "o", check: checkOptionList };

/** Refuses what is no list of options. */
export function checkOptionList(value: string): void {
  if (!isOptionList(value)) throw new ImageCommandError(`Invalid option list: ${value}`);
}

/**
 * The format of a new image.
 *
 * @param file the image, as messages name it
 * @throws ImageCommandError
 */
export function createFormat(format: string, file?: string): CreateFormat {
  if (format === "raw" || format === "qcow2") return format;
  throw new ImageCommandError(`${file === undefined ? "" : `${file}: `}Unknown file format '${format}'`, {
    hint: "vblk makes raw and qcow2 images; qemu-img makes others",
  });
}

/** What is behind a new image, by options that have letters of their own: these win over the same in `-o`. */
export interface BackingWishes {
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
}

/** @throws CreateOptionsError where the format has no backing files */
export function addBacking(
  values: CreateValues,
  format: CreateFormat,
  { backing, backingFormat }: BackingWishes,
): void {
  if (backing !== undefined) {
    if (format === "raw") throw new CreateOptionsError("Backing file not supported for file format 'raw'");
    values.set("backing_file", backing);
  }
  if (backingFormat !== undefined) {
    if (format === "raw") throw new CreateOptionsError("Backing file format not supported for file format 'raw'");
    values.set("backing_fmt", backingFormat);
  }
}

/**
 * Makes the target of a copy.
 *
 * @param doing what the command was about, as messages name it
 * @throws ImageCommandError
 */
export async function createTarget(
  name: string,
  format: CreateFormat,
  values: CreateValues,
  doing: string,
): Promise<void> {
  const { createImageFile } = await import("./create_file.ts");
  try {
    await createImageFile(name, format, values);
  } catch (error) {
    if (!(error instanceof CreateOptionsError) && !(error instanceof BlockError)) throw error;
    const { message, hint } = error;
    throw new ImageCommandError(`${name}: error while ${doing}: ${message}`, { hint, cause: error });
  }
}
