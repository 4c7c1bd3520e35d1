/**
 * `vblk snapshot`: lists, takes, goes back to and deletes the internal snapshots of an image, as `qemu-img snapshot` does.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import type { Snapshot } from "../image/qcow2/snapshot_table.ts";
import type { GivenOption } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { FORCE_SHARE, FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand, OBJECT, QUIET } from "./image_command.ts";
import { asQcow2, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { ImageCommandError, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk snapshot [-l | -c NAME | -a NAME | -d NAME] [-f FORMAT] [-U] [-q] IMAGE",
  "",
  "Internal snapshots of a qcow2 image. Names need not differ: the first that fits is meant.",
  "",
  "  -l, --list           list them (default)",
  "  -c, --create NAME    keep the disk as it is now",
  "  -a, --apply NAME     make the disk what it was; NAME may be an ID. What was written since is lost",
  "  -d, --delete NAME    delete a snapshot, by its name only",
  "  -f, --format FORMAT  raw or qcow2; found out when not given",
  "      --image-opts     IMAGE is driver=...,file.filename=...",
  "  -U, --force-share    take no lock: for an image that a machine uses now; only with -l",
  "  -q, --quiet          print nothing but the list and errors",
  "  -h, --help           this text",
  "",
  "Example: vblk snapshot -c before-upgrade disk.qcow2",
];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "snapshot",
  help: HELP,
  options: [
    { name: "list", value: "none", letter: "l" },
    { name: "create", value: "required", letter: "c" },
    { name: "apply", value: "required", letter: "a" },
    { name: "delete", value: "required", letter: "d" },
    FORMAT,
    IMAGE_OPTS,
    FORCE_SHARE,
    QUIET,
    OBJECT,
  ],
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  const { options, operands } = given;
  const action = actionOf(options);
  if (operands.length !== 1) throw usage("snapshot", "Expecting one image file name");
  const [name] = operands;
  const { imageOpts, format } = openWishes("snapshot", given);
  const share = given.has("U");
  const readOnly = action.name === "l";
  if (share && !readOnly) {
    throw new ImageCommandError(`Could not open '${name}': force-share=on can only be used with read-only images`);
  }
  const image = await openToChange({ name, imageOpts }, { format, share, readOnly }, output);
  try {
    await act(image, action.name, action.value ?? "", output);
  } finally {
    await image.close();
  }
  return 0;
}

function actionOf(options: readonly GivenOption[]): GivenOption {
  const actions = options.filter(({ name }) => "lacd".includes(name));
  if (actions.length > 1) throw usage("snapshot", "Cannot mix '-l', '-a', '-c', '-d'");
  return actions[0] ?? { name: "l", value: null, word: 0 };
}

async function act(image: Image, action: string, name: string, output: Output): Promise<void> {
  switch (action) {
    case "c":
      return await create(image, name);
    case "a":
      return await apply(image, name);
    case "d":
      return await remove(image, name);
  }
  const snapshots = await snapshotsOf(image);
  if (snapshots.length === 0) return;
  const { snapshotLines } = await import("./snapshot_list.ts");
  output.out(["Snapshot list:", ...snapshotLines(snapshots)]);
}

async function snapshotsOf(image: Image): Promise<readonly Snapshot[]> {
  const qcow2 = asQcow2(image);
  if (qcow2 === null) return [];
  const { readSnapshots } = await import("../image/qcow2/snapshot_table.ts");
  return await readSnapshots(qcow2.storage, qcow2.header);
}

async function create(image: Image, name: string): Promise<void> {
  const failed = (why: string, cause?: BlockError) =>
    new ImageCommandError(`Could not create snapshot '${name}': ${why}`, { cause, hint: cause?.hint });
  const qcow2 = asQcow2(image);
  if (qcow2 === null || qcow2.header.externalData) throw failed("-95 (Operation not supported)");
  try {
    await qcow2.createSnapshot(shortened(name));
  } catch (error) {
    throw error instanceof BlockError ? failed(error.message, error) : error;
  }
}

const NAME_MAX_BYTES = 255;

/** As in QEMU, a name that is too long is cut; here not inside a character. */
function shortened(name: string): string {
  const { read } = new TextEncoder().encodeInto(name, new Uint8Array(NAME_MAX_BYTES));
  return name.slice(0, read);
}

async function apply(image: Image, name: string): Promise<void> {
  const failed = (why: string, cause?: BlockError) =>
    new ImageCommandError(`Could not apply snapshot '${name}': ${why}`, { cause, hint: cause?.hint });
  const qcow2 = asQcow2(image);
  if (qcow2 === null) throw failed("Block driver does not support snapshots");
  if (qcow2.header.externalData) throw failed("Failed to load snapshot: Operation not supported");
  const snapshots = await snapshotsOf(image);
  if (!snapshots.some((snapshot) => snapshot.id === name || snapshot.name === name)) {
    throw failed("Failed to load snapshot: No such file or directory");
  }
  try {
    await qcow2.applySnapshot(name);
  } catch (error) {
    throw error instanceof BlockError ? failed(`Failed to load snapshot: ${error.message}`, error) : error;
  }
}

async function remove(image: Image, name: string): Promise<void> {
  const failed = (why: string, cause?: BlockError) =>
    new ImageCommandError(`Could not delete snapshot '${name}': ${why}`, { cause, hint: cause?.hint });
  const found = (await snapshotsOf(image)).find((snapshot) => snapshot.name === name);
  if (found === undefined) throw failed("snapshot not found");
  try {
    await asQcow2(image)!.deleteSnapshot(found.id);
  } catch (error) {
    throw error instanceof BlockError ? failed(error.message, error) : error;
  }
}
