/**
 * Names of files in an image, which whoever made the image chose.
 *
 * A name is a path, relative to the folder of the image that holds it, as in QEMU. Anything else that QEMU would
 * understand (`nbd://...`, `json:{...}`) is refused by name: it could reach any host, and any option.
 *
 * @module
 */

import { unsupported } from "./refuse.ts";

/**
 * The path that `name` stands for in the image at `imagePath`.
 *
 * @param what what the name is of, for the message
 * @throws BlockError
 */
export function resolveName(imagePath: string, name: string, what: string): string {
  // As in QEMU: a colon before the first slash ends a protocol.
  if (/^[^/]*:/.test(name)) {
    throw unsupported(
      imagePath,
      `Its ${what} is '${name}', and vblk opens only files by their path`,
      "convert the image and what it refers to with 'qemu-img convert' into one file",
    );
  }
  if (name.startsWith("/")) return name;
  // Not `join`: to take `..` away from a path through a symbolic link names another file.
  return imagePath.slice(0, imagePath.lastIndexOf("/") + 1) + name;
}
