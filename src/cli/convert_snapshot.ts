/**
 * The source of `vblk convert -l`: an internal snapshot, by id or name.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import { openSnapshot } from "../image/qcow2/open_snapshot.ts";
import { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import { readSnapshots, type Snapshot } from "../image/qcow2/snapshot_table.ts";
import { BlockError } from "../storage/block_error.ts";
import { ImageCommandError } from "./qemu_img.ts";

const PREFIX = "Failed to load snapshot: ";

/**
 * Opens the snapshot in place of the image, which is closed when that fails.
 *
 * @param text an id or a name, or `snapshot.id=ID,snapshot.name=NAME`
 * @throws ImageCommandError
 */
export async function openSnapshotForCommand(image: Image, text: string): Promise<Image> {
  try {
    if (!(image instanceof Qcow2Image)) {
      const reason =
        `Block format '${image.format}' used by device '' does not support temporarily loading internal snapshots`;
      throw new ImageCommandError(PREFIX + reason);
    }
    const which = await choice(image, text);
    const opened = await openSnapshot(image, which);
    if (opened !== null) return opened;
    throw new ImageCommandError(`${PREFIX}Can't find snapshot`);
  } catch (error) {
    await image.close();
    if (!(error instanceof BlockError)) throw error;
    throw new ImageCommandError(PREFIX + error.reason, { hint: error.hint, cause: error });
  }
}

async function choice(image: Qcow2Image, text: string): Promise<(snapshot: Snapshot) => boolean> {
  if (text.startsWith("snapshot.")) return byOptions(text);
  // As in QEMU an id comes before a name that looks the same.
  const snapshots = await readSnapshots(image.storage, image.header);
  const isId = snapshots.some(({ id }) => id === text);
  return isId ? ({ id }) => id === text : ({ name }) => name === text;
}

function byOptions(text: string): (snapshot: Snapshot) => boolean {
  const wanted = new Map<string, string>();
  for (const part of text.split(",")) {
    const [, key, value] = /^([^=]*)=?(.*)$/s.exec(part)!;
    if (key !== "snapshot.id" && key !== "snapshot.name") {
      throw new ImageCommandError([`Invalid parameter '${key}'`, `Failed in parsing snapshot param '${text}'`]);
    }
    wanted.set(key, value);
  }
  const id = wanted.get("snapshot.id");
  const name = wanted.get("snapshot.name");
  return (snapshot) => (id === undefined || snapshot.id === id) && (name === undefined || snapshot.name === name);
}
