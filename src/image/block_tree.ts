/**
 * From block options to what an image is opened of. The options form a tree: a format, what it is read through, what is
 * behind it.
 *
 * @module
 */

import { BlockError, BlockOptionError } from "../storage/block_error.ts";
import { NullStorage } from "../storage/null.ts";
import type { Storage } from "../storage/storage.ts";
import { BLOCK_DRIVERS, checkOptions, type CommonOptions, commonOptions, driverNamed } from "./block_drivers.ts";
import { type BlockOptions, JSON_PREFIX, NodeOptions, type OptionValue, parseJsonName } from "./block_options.ts";
import { checkReadable } from "./probe.ts";
import { fileNode, type FileOptions, openProtocol, rawRange } from "./protocols.ts";
import { type Qcow2Choices, qcow2Choices } from "./qcow2_choices.ts";
import type { RawOptions } from "./raw/raw_image.ts";

/** What the user said, put in order. */
export interface Description {
  readonly node: NodeOptions;
  /** A name that is no set of options. */
  readonly name: string | null;
  readonly common: CommonOptions;
}

/** Options that `commonOptions` reads. */
const COMMON = ["read-only", "auto-read-only", "force-share", "cache.direct", "cache.no-flush", "discard"];

/**
 * Puts a name and options together. Options that are given count for more than those in a name.
 *
 * @param label what the image is called in messages
 * @throws BlockOptionError
 */
export function describe(name: string | null, block: BlockOptions, label: string): Description {
  let options: BlockOptions = block;
  if (name?.startsWith(JSON_PREFIX)) {
    options = new Map([...parseJsonName(name), ...block]);
    name = null;
  }
  const common = commonOptions(new NodeOptions(label, options));
  const rest = new Map<string, OptionValue>();
  for (const [key, value] of options) {
    if (![...COMMON, "detect-zeroes"].includes(key)) rest.set(key, value);
  }
  return { node: new NodeOptions(label, rest), name, common };
}

/** What an image is made of, before its options are looked at. */
export interface Trunk {
  readonly storage: Storage;
  /** The format; `undefined` when it has to be probed. */
  readonly format: string | undefined;
  /** The options of the format; `undefined` when there is none, and what is opened is its own bytes. */
  readonly node: NodeOptions | undefined;
}

/** Opens a storage with the options of an image, of which `open` gets those that it needs. */
export type Overlaid = (open: (files: FileOptions) => Storage) => Storage;

/**
 * Opens what a format is read through.
 *
 * @param overlaid opens a storage with the options of the image
 * @throws BlockError
 */
export function openTrunk(
  { node, name }: Pick<Description, "node" | "name">,
  format: string | undefined,
  overlaid: Overlaid,
): Trunk {
  const given = node.raw("driver");
  const driver = format ?? (typeof given === "string" ? given : undefined);
  const known = driver === undefined ? undefined : driverNamed(driver);
  if (driver !== undefined && known === null) {
    // A format that QEMU has, or no driver at all.
    checkReadable(node.path, driver, "asked for");
  }
  if (known && BLOCK_DRIVERS[known].kind === "protocol") {
    const whole = node.with("driver", known);
    const storage = overlaid((files) => openProtocol({ node: whole, name: name ?? undefined, child: "file" }, files));
    return { storage, format: "raw", node: undefined };
  }
  const file = fileNode(node, "file");
  if (file.keys.length === 0 && name === null && driver === undefined) {
    throw node.error("Must specify either driver or file");
  }
  const storage = overlaid((files) => openProtocol({ node: file, name: name ?? undefined, child: "file" }, files));
  return { storage, format: driver, node };
}

/** What the options of a format come to. */
export interface Settled {
  /** What holds the disk: what was opened, or a part of it. */
  readonly storage: Storage;
  readonly raw: RawOptions;
  readonly choices: Qcow2Choices;
}

/**
 * Checks and reads the options of a format.
 *
 * @throws BlockOptionError
 */
export function settle({ node, storage }: Trunk, format: string): Settled {
  const raw: RawOptions = storage instanceof NullStorage ? { extentKind: "unallocated" } : {};
  if (node === undefined) return { storage, raw, choices: {} };
  checkOptions(node, format, "child");
  if (format !== "raw") return { storage, raw, choices: qcow2Choices(node) };
  return { storage: rawRange(node, storage), raw: { ...raw, fileOffset: node.size("offset") }, choices: {} };
}

/** What the user said about the backing image. */
export interface BackingChoice {
  readonly node: NodeOptions;
  /** `none`: there shall be none. `other`: the options name it. `recorded`: the image does. */
  readonly which: "none" | "other" | "recorded";
}

/** Reads the options about the backing image; `null` when there are none. */
export function backingChoice(node: NodeOptions): BackingChoice | null {
  const backing = node.child("backing");
  const value = node.raw("backing");
  if (value === null || value === "") return { node: backing, which: "none" };
  if (value !== undefined) {
    try {
      fileNode(node, "backing");
    } catch (error) {
      throw inChild(node, "backing file", error);
    }
  }
  if (backing.keys.length === 0) return null;
  const driver = driverNamed(backing.text("driver") ?? "");
  const isProtocol = driver !== null && BLOCK_DRIVERS[driver].kind === "protocol";
  const isNamed = isProtocol || backing.keys.some((key) => key === "file" || key.startsWith("file."));
  return { node: backing, which: isNamed ? "other" : "recorded" };
}

/** Opens the data file that the options name; `null` when they name none. */
export function dataFileOpener(
  node: NodeOptions,
  overlaid: Overlaid,
): (() => Storage) | null {
  const file = fileNode(node, "data-file");
  if (file.keys.length === 0) return null;
  return () => overlaid((files) => openProtocol({ node: file, child: "data-file" }, files));
}

/** Says of which part of the options an error is. */
export function inChild(node: NodeOptions, what: string, cause: unknown): unknown {
  if (!(cause instanceof BlockError)) return cause;
  const { message, reason, hint } = cause;
  const isAboutOptions = cause instanceof BlockOptionError || reason.startsWith("Image is not in ");
  const why = isAboutOptions ? reason : message;
  return node.error(`Could not open ${what}: ${why}`, hint);
}
