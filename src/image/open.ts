/**
 * From what the user called an image to an open image: name, format, storage.
 *
 * @module
 */

import type { BlkdebugStorage } from "../storage/blkdebug.ts";
import { DenoFileStorage } from "../storage/deno_file.ts";
import { MemoryStorage } from "../storage/memory.ts";
import { OverlayStorage } from "../storage/overlay.ts";
import type { Storage } from "../storage/storage.ts";
import type { BlockOptions, NodeOptions } from "./block_options.ts";
import type { CommonOptions } from "./block_drivers.ts";
import type { Overlaid, Trunk } from "./block_tree.ts";
import type { Image } from "./image.ts";
import { MEMORY_PREFIX, memoryStorage, protocolOf } from "./names.ts";
import { checkReadable, probe } from "./probe.ts";
import type { Layer } from "./qcow2/chain.ts";
import type { JournalStore } from "./qcow2/journal.ts";
import type { Qcow2Image } from "./qcow2/qcow2_image.ts";
import type { Qcow2Choices } from "./qcow2_choices.ts";
import { RawImage } from "./raw/raw_image.ts";

/** How to open an image. */
export interface OpenOptions {
  /** Name of the format; found out when not given. */
  format?: string;
  /** Open for reading only. Default: false. */
  readOnly?: boolean;
  /** Keep all writes in memory and forget them at the end. Default: false. */
  snapshot?: boolean;
  /** Take no lock. Default: false. */
  share?: boolean;
  /** Never wait for the disk: for a file that is worthless unless it is finished. Default: false. */
  noFlush?: boolean;
  /** Most memory for the tables of a qcow2 image and of what is behind it, in bytes. Default: 32 MiB. */
  l2CacheBytes?: number;
  /** Open the image without what is behind it; that then reads as zeros. Default: false. */
  noBacking?: boolean;
  /** Which of the images behind this one is opened for writing too, counted from 1. Default: none. */
  writableBacking?: number;
  /** Opens a file by its path; must say its `identity`. Default: `DenoFileStorage.open`. */
  openFile?: (path: string, files: { readOnly: boolean; share: boolean }) => Storage;
  /** Makes the journal of a qcow2 image that the user named and that is written, by its file's identity. */
  journal?: (identity: string) => JournalStore;
}

/**
 * Opens an image: a path, or `mem:SIZE` for a disk in memory that starts as zeros. The other names of QEMU's that make
 * sense here are taken too: `json:{...}`, `blkdebug:CONFIG:FILE`, `null-co://`, `file:PATH`.
 *
 * A qcow2 image is opened with the files that it names, each for reading only. Those are paths and nothing else,
 * relative to the image's folder, in the formats that the image records. Where it records none the file is probed, as
 * in QEMU; but what was found by probing may lead to no further file, since a guest may have written that name.
 *
 * A raw image whose format was found by probing takes no write that would make it look like another one.
 *
 * @throws BlockError
 */
export async function openImage(name: string, options: OpenOptions = {}): Promise<Image> {
  const isMemory = name.startsWith(MEMORY_PREFIX);
  // What is said in other ways is taken apart by code that most have no use for.
  if (!isMemory && protocolOf(name) !== null) return await openBlock(name, new Map(), options);
  const { format } = options;
  if (format !== undefined && format !== "raw" && format !== "qcow2") {
    const { driverNamed } = await import("./block_drivers.ts");
    if (driverNamed(format) !== null) return await openBlock(name, new Map(), options);
    checkReadable(name, format, "asked for");
  }
  const storage = isMemory ? memoryStorage(name, options.readOnly) : undefined;
  if (storage === undefined) return shareCaches(await openPath(name, options, []));
  return await openTop({ storage, format, node: undefined }, name, options);
}

/**
 * Opens an image by block options in QEMU's text form: `driver=qcow2,file.filename=disk.qcow2`.
 *
 * @throws BlockError
 */
export async function openImageOptions(text: string, options: OpenOptions = {}): Promise<Image> {
  const { parseOptionText } = await import("./block_options.ts");
  return await openBlock(null, parseOptionText(text), options, text);
}

/**
 * Opens an image by a name, which may be left out, and block options.
 *
 * @param label what the image is called in messages
 * @throws BlockError
 */
export async function openBlock(
  name: string | null,
  block: BlockOptions,
  options: OpenOptions,
  label: string = name ?? "",
): Promise<Image> {
  const { describe, openTrunk } = await import("./block_tree.ts");
  const described = describe(name, block, label);
  const { common } = described;
  const settled = {
    ...options,
    readOnly: (options.readOnly ?? false) || (common.readOnly ?? false),
    share: (options.share ?? false) || (common.share ?? false),
  };
  const trunk = openTrunk(described, options.format, overlaidBy(settled));
  const image = shareCaches(await openTop(trunk, label, settled));
  if ("setBreakpoint" in trunk.storage) debuggers.set(image, trunk.storage as BlkdebugStorage);
  return await withPolicy(image, common);
}

const debuggers = new WeakMap<Image, BlkdebugStorage>();

/** The blkdebug that an image is read through, if there is one. */
export function blkdebugOf(image: Image): BlkdebugStorage | undefined {
  return debuggers.get(image);
}

/**
 * What to say to the user of an image that was found to be raw and may be written: QEMU's lines.
 *
 * @param name what the user called it
 */
export function probeWarning(image: Image, name: string | null = null): readonly string[] {
  if (!(image as Partial<RawImage>).probed || image.readOnly) return [];
  const shown = name?.startsWith("blkdebug:") ? name : image.name;
  return [
    `WARNING: Image format was not specified for '${shown}' and probing guessed raw.`,
    "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be " +
    "restricted.",
    "         Specify the 'raw' format explicitly to remove the restrictions.",
  ];
}

async function withPolicy(image: Image, { noFlush, discard, detectZeroes }: CommonOptions): Promise<Image> {
  const policy = {
    ignoreFlush: noFlush ?? false,
    ignoreDiscard: discard === false,
    detectZeroes: detectZeroes === "off" ? undefined : detectZeroes,
  };
  if (!policy.ignoreFlush && !policy.ignoreDiscard && policy.detectZeroes === undefined) return image;
  const { PolicyImage } = await import("./policy.ts");
  return new PolicyImage(image, policy);
}

/** Lets the images of a chain share the memory for tables. */
function shareCaches(image: Image): Image {
  const length = chainLength(image);
  if (length > 1) (image as Qcow2Image).shareCache(length);
  return image;
}

function chainLength(image: Image): number {
  const { backing = null } = image as Partial<Qcow2Image>;
  return backing === null ? 1 : 1 + chainLength(backing);
}

function openFile(path: string, files: { readOnly: boolean; share: boolean }, { openFile }: OpenOptions): Storage {
  return openFile === undefined ? DenoFileStorage.open(path, files) : openFile(path, files);
}

/** Opens storages as the options say: for a snapshot for reading only, below one that takes the writes. */
function overlaidBy({ readOnly = false, share = false, snapshot = false }: OpenOptions): Overlaid {
  return (open) => snapshot ? new OverlayStorage(open({ readOnly: true, share }), readOnly) : open({ readOnly, share });
}

/**
 * Opens a path, whatever it looks like, with what the user said of it, behind the images of `above`.
 *
 * @param node options of an image that is named elsewhere
 */
async function openPath(
  path: string,
  options: OpenOptions,
  above: readonly Layer[],
  node?: NodeOptions,
): Promise<Image> {
  const storage = overlaidBy(options)((files) => openFile(path, files, options));
  return await openTop({ storage, format: options.format, node }, path, options, above);
}

/**
 * Makes an image of a storage that is open, behind those of `above`; takes it over, even when it fails.
 *
 * @param label what the image is called in messages
 * @param isNamed whether the user named it, so that no guest chose what it is
 */
async function openTop(
  trunk: Trunk,
  label: string,
  options: OpenOptions,
  above: readonly Layer[] = [],
  isNamed = above.length === 0,
): Promise<Image> {
  const { storage, format, node } = trunk;
  try {
    const found = format ?? await probe(storage);
    checkReadable(label, found, format === undefined ? "found" : "asked for");
    const settled = node === undefined ? undefined : (await import("./block_tree.ts")).settle(trunk, found);
    if (found === "qcow2") return await openQcow2(trunk, options, settled?.choices, above, isNamed);
    // In memory nobody will ever guess again.
    const probed = format === undefined && !options.snapshot && !(storage instanceof MemoryStorage);
    return new RawImage(settled?.storage ?? storage, { ...settled?.raw, probed });
  } catch (error) {
    storage.close();
    throw error;
  }
}

async function openQcow2(
  { storage, format, node }: Trunk,
  options: OpenOptions,
  choices: Qcow2Choices | undefined,
  above: readonly Layer[],
  isNamed: boolean,
): Promise<Image> {
  // Only those who have such an image wait for the code that reads it.
  const [{ Qcow2Image }, chain] = await Promise.all([
    import("./qcow2/qcow2_image.ts"),
    import("./qcow2/chain.ts"),
  ]);
  const path = storage.name;
  const { readOnly = false, share } = options;
  const { identity = null } = storage as { identity?: string | null };
  const layers = [...above, { path, identity, recorded: format !== undefined || isNamed }];
  const l2CacheBytes = choices?.l2CacheBytes ?? options.l2CacheBytes;
  const { noBacking = false, writableBacking } = options;
  const below = {
    readOnly: layers.length !== writableBacking,
    share,
    l2CacheBytes,
    writableBacking,
    openFile: options.openFile,
  };
  const overlaid = overlaidBy(options);
  const nothing = () => Promise.resolve(new RawImage(new MemoryStorage(0)));
  const named = node === undefined ? null : (await import("./named_files.ts")).namedFiles(node, layers, overlaid, {
    overlaid: overlaidBy(below),
    openTop: (trunk, label) => openTop(trunk, label, below, layers, true),
    openPath: (path, format, node) => openPath(path, { ...below, format }, layers, node),
  });
  const image = await Qcow2Image.open(storage, {
    readOnly,
    noFlush: options.noFlush,
    journal: isNamed && !readOnly && !options.snapshot && identity !== null ? options.journal?.(identity) : undefined,
    l2CacheBytes,
    discards: choices?.passDiscardRequest,
    openBacking: noBacking ? nothing : named?.openBacking ??
      chain.backingOpener(layers, (path, format) => openPath(path, { ...below, format }, layers)),
    openDataFile: named?.openDataFile ??
      chain.dataFileOpener(layers, (path) => overlaid((files) => openFile(path, files, options))),
  });
  if (named !== null) await named.checkUsed(image);
  return image;
}
