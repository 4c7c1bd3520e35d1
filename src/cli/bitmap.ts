/**
 * `vblk bitmap`: adds, changes and removes the persistent bitmaps of an image, as `qemu-img bitmap` does.
 *
 * @module
 */

import type { Image } from "../image/image.ts";
import type { PersistentBitmaps } from "../image/qcow2/bitmaps.ts";
import type { Output } from "../script/session.ts";
import { BlockError } from "../storage/block_error.ts";
import { FORMAT, IMAGE_OPTS, type ImageArguments, imageCommand, OBJECT } from "./image_command.ts";
import { asQcow2, openToChange, openWishes } from "./image_to_change.ts";
import type { Subcommand } from "./main.ts";
import { ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

const HELP = [
  "Usage: vblk bitmap [-f FORMAT] ACTION... IMAGE BITMAP",
  "",
  "Changes a persistent bitmap of a qcow2 image. An enabled bitmap notes every write to the disk, for backups of what",
  "has changed. Actions are done in the order in which they are given.",
  "",
  "      --add                   add the bitmap, enabled; with --disable behind it, disabled",
  "  -g, --granularity SIZE      how much of the disk a bit stands for; default: a cluster, between 4k and 64k",
  "      --remove                remove it",
  "      --clear                 forget all that it has noted",
  "      --enable, --disable     have it note writes, or not",
  "      --merge SOURCE          note in it what bitmap SOURCE has noted",
  "  -b, --source-file FILE      the image that has SOURCE; default: IMAGE",
  "  -F, --source-format FORMAT  format of FILE",
  "  -f, --format FORMAT         raw or qcow2; found out when not given",
  "      --image-opts            IMAGE is driver=...,file.filename=...",
  "  -h, --help                  this text",
  "",
  "Example: vblk bitmap --add -g 64k disk.qcow2 since-monday",
];

const ACTIONS = ["add", "remove", "clear", "enable", "disable", "merge"];

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "bitmap",
  help: HELP,
  options: [
    { name: "add", value: "none" },
    { name: "granularity", value: "required", letter: "g", number: "granularity" },
    { name: "remove", value: "none" },
    { name: "clear", value: "none" },
    { name: "enable", value: "none" },
    { name: "disable", value: "none" },
    { name: "merge", value: "required" },
    { name: "source-file", value: "required", letter: "b" },
    { name: "source-format", value: "required", letter: "F" },
    FORMAT,
    IMAGE_OPTS,
    OBJECT,
  ],
  run,
});

interface Action {
  readonly name: string;
  /** Of a merge: the other bitmap. */
  readonly source: string;
}

interface Wishes {
  readonly actions: readonly Action[];
  readonly granularityBytes: number | undefined;
  readonly sourceFile: string | undefined;
  readonly sourceFormat: string | undefined;
  readonly image: { readonly name: string; readonly imageOpts: boolean };
  readonly format: string | undefined;
  readonly bitmap: string;
}

async function run(given: ImageArguments, output: Output): Promise<number> {
  const wishes = wishesOf(given);
  const { format, sourceFile, sourceFormat } = wishes;
  // What is behind the image is of no interest, and need not be there.
  const image = await openToChange(wishes.image, { format, noBacking: true }, output);
  try {
    const source = sourceFile === undefined
      ? null
      : await openForCommand(sourceFile, { format: sourceFormat, readOnly: true, noBacking: true });
    try {
      await act(image, source, wishes);
    } finally {
      await source?.close();
    }
  } finally {
    await image.close();
  }
  return 0;
}

function wishesOf(given: ImageArguments): Wishes {
  const { options, operands } = given;
  // As in QEMU, 0 is as good as none.
  const granularityBytes = given.number("g") || undefined;
  const actions = options.filter(({ name }) => ACTIONS.includes(name))
    .map(({ name, value }) => ({ name, source: value ?? "" }));
  const [sourceFile, sourceFormat] = [given.last("b"), given.last("F")];
  const broken: readonly (readonly [boolean, string])[] = [
    [actions.length === 0, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"],
    [
      granularityBytes !== undefined && !actions.some(({ name }) => name === "add"),
      "granularity only supported with --add",
    ],
    [sourceFormat !== undefined && sourceFile === undefined, "-F only supported with -b"],
    [
      sourceFile !== undefined && !actions.some(({ name }) => name === "merge"),
      "Merge bitmap source file only supported with --merge",
    ],
    [operands.length !== 2, "Expecting filename and bitmap name"],
  ];
  const first = broken.find(([is]) => is);
  if (first !== undefined) throw usage("bitmap", first[1]);
  const { format, imageOpts } = openWishes("bitmap", given);
  const [name, bitmap] = operands;
  return { actions, granularityBytes, sourceFile, sourceFormat, image: { name, imageOpts }, format, bitmap };
}

async function act(image: Image, source: Image | null, wishes: Wishes): Promise<void> {
  const qcow2 = asQcow2(image);
  if (qcow2 === null) throw failed(wishes.actions[0], wishes.bitmap, noBitmaps(image, wishes));
  await qcow2.editBitmaps(async (bitmaps) => {
    const others = source === null ? bitmaps : await bitmapsOf(source);
    for (const action of wishes.actions) {
      try {
        await actOn(bitmaps, others, action, wishes);
      } catch (error) {
        if (error instanceof BlockError) throw failed(action, wishes.bitmap, error.reason, error);
        throw error;
      }
    }
  });
}

async function actOn(
  bitmaps: PersistentBitmaps,
  others: PersistentBitmaps | null,
  action: Action,
  { bitmap, granularityBytes }: Wishes,
): Promise<void> {
  switch (action.name) {
    case "add":
      bitmaps.add(bitmap, granularityBytes);
      return;
    case "remove":
      return bitmaps.remove(bitmap);
    case "clear":
      return bitmaps.clear(bitmap);
    case "enable":
    case "disable":
      return bitmaps.enable(bitmap, action.name === "enable");
  }
  bitmaps.find(bitmap);
  if (others === null) throw failed(action, bitmap, `Dirty bitmap '${action.source}' not found`);
  others.find(action.source);
  bitmaps.use(bitmap);
  await bitmaps.merge(bitmap, others.use(action.source));
}

async function bitmapsOf(image: Image): Promise<PersistentBitmaps | null> {
  const qcow2 = asQcow2(image);
  if (qcow2 === null) return null;
  const { PersistentBitmaps } = await import("../image/qcow2/bitmaps.ts");
  return await PersistentBitmaps.open(qcow2.storage, qcow2.header);
}

/** Why an image that is not qcow2 can't do what was asked for first. */
function noBitmaps({ name }: Image, { actions, bitmap }: Wishes): string {
  if (actions[0].name !== "add") return `Dirty bitmap '${bitmap}' not found`;
  if (bitmap === "") return "Bitmap name cannot be empty";
  return `Can't store persistent bitmaps to ${name}: Operation not supported`;
}

function failed({ name }: Action, bitmap: string, why: string, cause?: BlockError): ImageCommandError {
  return new ImageCommandError(`Operation ${name} on bitmap ${bitmap} failed: ${why}`, { hint: cause?.hint, cause });
}
