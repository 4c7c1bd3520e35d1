/**
 * The files that the user chose, by block options, in place of those that a qcow2 image names.
 *
 * @module
 */

import { MemoryStorage } from "../storage/memory.ts";
import type { Storage } from "../storage/storage.ts";
import type { NodeOptions } from "./block_options.ts";
import {
  type BackingChoice,
  backingChoice,
  dataFileOpener,
  inChild,
  openTrunk,
  type Overlaid,
  type Trunk,
} from "./block_tree.ts";
import type { Image } from "./image.ts";
import { backingOpener, type Layer } from "./qcow2/chain.ts";
import { RawImage } from "./raw/raw_image.ts";

/** Opens what is behind an image. */
export interface Behind {
  readonly overlaid: Overlaid;
  /** By options of the user's, which name it. */
  openTop(trunk: Trunk, label: string): Promise<Image>;
  /** By a path that the image names, and options of the user's. */
  openPath(path: string, format: string | undefined, node: NodeOptions): Promise<Image>;
}

/** What `Qcow2Image.open` is to use; what is `undefined` is opened as the image says. */
export interface NamedFiles {
  readonly openBacking: ((name: string, format: string | null) => Promise<Image>) | undefined;
  readonly openDataFile: (() => Storage) | undefined;
  /** Closes the image and fails when something was said of files that it has not. */
  checkUsed(image: Image & { readonly backing: Image | null }): Promise<void>;
}

/**
 * Reads the choice from the options of an image.
 *
 * @param layers the image and those before it
 * @param overlaid opens the files of the image itself
 */
export function namedFiles(
  node: NodeOptions,
  layers: readonly Layer[],
  overlaid: Overlaid,
  behind: Behind,
): NamedFiles {
  const backing = backingChoice(node);
  const dataFile = dataFileOpener(node, overlaid);
  let usedDataFile = dataFile === null;
  const openDataFile = dataFile === null ? undefined : () => {
    usedDataFile = true;
    return dataFile();
  };
  const checkUsed = async (image: Image & { readonly backing: Image | null }) => {
    const reason = !usedDataFile
      ? "'data-file' can only be set for images with an external data file"
      : backing?.which === "other" && image.backing === null
      ? "'backing' can only be set for images that have a backing file"
      : null;
    if (reason === null) return;
    await image.close();
    throw node.error(reason);
  };
  return { openBacking: backingBy(node, backing, layers, behind), openDataFile, checkUsed };
}

function backingBy(
  node: NodeOptions,
  backing: BackingChoice | null,
  layers: readonly Layer[],
  behind: Behind,
): NamedFiles["openBacking"] {
  switch (backing?.which) {
    case "none":
      return () => Promise.resolve(new RawImage(new MemoryStorage(0)));
    case "other":
      return async () => {
        try {
          const trunk = openTrunk({ node: backing.node, name: null }, undefined, behind.overlaid);
          return await behind.openTop(trunk, node.path);
        } catch (error) {
          throw inChild(node, "backing file", error);
        }
      };
    case "recorded":
      return recordedBacking(node, backing.node, layers, behind);
  }
}

/** Opens the backing image that the image names, by options of the user's. */
function recordedBacking(
  node: NodeOptions,
  backing: NodeOptions,
  layers: readonly Layer[],
  { openPath }: Behind,
): (name: string, format: string | null) => Promise<Image> {
  let failure: unknown;
  const open = backingOpener(layers, async (path, recorded) => {
    try {
      return await openPath(path, backing.text("driver") ?? recorded, backing);
    } catch (error) {
      throw failure = inChild(node, "backing file", error);
    }
  });
  // The words are QEMU's already.
  return (name, format) => open(name, format).catch((error) => Promise.reject(failure ?? error));
}
