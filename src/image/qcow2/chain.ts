/**
 * From an image to the files that it names: its backing image and its data file. What may be opened is decided here.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import type { Image } from "../image.ts";
import { resolveName } from "./file_names.ts";
import { unsupported } from "./refuse.ts";

/** Most images behind each other. A read may have to go through all of them, and each takes a file and its tables. */
export const CHAIN_MAX = 200;

/** An image that is being opened. */
export interface Layer {
  readonly path: string;
  /** The same for all names of one file; `null` when nobody knows. */
  readonly identity: string | null;
  /** Whether its format was given, by the user or by the image before it, and not guessed from its bytes. */
  readonly recorded: boolean;
}

/**
 * Opens the backing image of the last layer.
 *
 * @param open opens an image by path and format, which is `undefined` when it must be probed
 */
export function backingOpener(
  layers: readonly Layer[],
  open: (path: string, format: string | undefined) => Promise<Image>,
): (name: string, format: string | null) => Promise<Image> {
  const { path } = layers[layers.length - 1];
  return async (name, format) => {
    checkTrust(layers, `backing file '${name}'`);
    const target = resolveName(path, name, "backing file");
    if (layers.length >= CHAIN_MAX) {
      throw unsupported(path, `More than ${CHAIN_MAX} images are behind each other`);
    }
    try {
      return await open(target, format ?? undefined);
    } catch (error) {
      throw within(path, "backing file", error);
    }
  };
}

/** Opens the external data file of the last layer. */
export function dataFileOpener(
  layers: readonly Layer[],
  open: (path: string) => Storage,
): (name: string) => Storage {
  const { path } = layers[layers.length - 1];
  return (name) => {
    checkTrust(layers, `data file '${name}'`);
    const target = resolveName(path, name, "data file");
    try {
      return open(target);
    } catch (error) {
      throw within(path, "data file", error);
    }
  };
}

/**
 * Refuses to follow a chain into itself, and names that a guest may have written: a raw disk whose guest wrote a qcow2
 * header to its first sector is found to be qcow2 by probing.
 */
function checkTrust(layers: readonly Layer[], what: string): void {
  const last = layers[layers.length - 1];
  const { path, identity, recorded } = last;
  const again = layers.findIndex((layer) => layer === last || (identity !== null && layer.identity === identity));
  if (layers[again] !== last) {
    throw unsupported(path, "The chain of backing files leads back to an image that is in it");
  }
  if (recorded) return;
  throw unsupported(
    path,
    `Its ${what} is not opened: the image before it does not record this image's format`,
    "if you trust it, record the format with 'vblk rebase -u -b FILE -F qcow2 IMAGE'",
  );
}

/** Says which image needed what could not be opened. */
function within(path: string, what: string, cause: unknown): unknown {
  if (!(cause instanceof BlockError)) return cause;
  const { kind, message } = cause;
  // What is said of a name that a user mistyped does not help with one in an image.
  const hint = kind === "not-found" ? "the name is in the image; 'vblk rebase -u' changes it" : cause.hint;
  return new BlockError({ kind, path, operation: "open", reason: `Could not open ${what}: ${message}`, hint, cause });
}
