/**
 * An internal snapshot as an image of its own, for reading.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import { Qcow2Image } from "./qcow2_image.ts";
import { readSnapshots, type Snapshot } from "./snapshot_table.ts";

/**
 * Opens the disk as it was in a snapshot, on the files of an image that is open already. These are closed with the
 * snapshot; the image is not to be used any more, nor closed.
 *
 * @param which says which snapshot is meant
 * @returns `null`, and the image is as it was, when there is none like that
 * @throws BlockError
 */
export async function openSnapshot(
  image: Qcow2Image,
  which: (snapshot: Snapshot) => boolean,
): Promise<Qcow2Image | null> {
  const snapshot = (await readSnapshots(image.storage, image.header)).find(which);
  if (snapshot === undefined) return null;
  const { storage, dataStorage, backing } = image;
  return await Qcow2Image.open(storage, {
    readOnly: true,
    snapshot,
    openBacking: (name) => {
      if (backing !== null) return Promise.resolve(backing);
      throw new BlockError({ kind: "invalid", path: image.name, operation: "open", reason: `'${name}' is not open` });
    },
    openDataFile: () => dataStorage,
  });
}
