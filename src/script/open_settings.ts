/**
 * How an image is opened, in QEMU's words: cache, discard and aio modes, shared by the command line's flags and the
 * commands `open` and `reopen`.
 *
 * @module
 */

import type { BlockOptions } from "../image/block_options.ts";

/** What a cache mode means. */
export interface CacheMode {
  /** Completed writes may wait for a flush. */
  readonly writeback: boolean;
  /** The host's page cache should be bypassed. */
  readonly direct: boolean;
  /** Flushes are ignored. */
  readonly noFlush: boolean;
}

/** Cache modes by QEMU's names. */
export const CACHE_MODES: Readonly<Record<string, CacheMode>> = {
  writeback: { writeback: true, direct: false, noFlush: false },
  writethrough: { writeback: false, direct: false, noFlush: false },
  none: { writeback: true, direct: true, noFlush: false },
  off: { writeback: true, direct: true, noFlush: false },
  directsync: { writeback: false, direct: true, noFlush: false },
  unsafe: { writeback: true, direct: false, noFlush: true },
};

/** Whether discards reach the image, by QEMU's names. */
export const DISCARD_MODES: Readonly<Record<string, boolean>> = { ignore: false, off: false, unmap: true, on: true };

/** Engines that QEMU has; here the choice changes nothing. */
export const AIO_MODES: readonly string[] = ["threads", "native", "io_uring"];

/** Choices for one image. */
export interface OpenSettings {
  readonly format?: string;
  readonly readOnly: boolean;
  readonly snapshot: boolean;
  readonly share: boolean;
  readonly cache: CacheMode;
  readonly discard: boolean;
  /** What to do with writes of nothing but zeros. */
  readonly detectZeroes?: "off" | "on" | "unmap";
  /** Options of the image's drivers. */
  readonly block?: BlockOptions;
}

/** An image that is to be opened. */
export interface OpenRequest {
  /** What the user called it; `null` when the options say it. */
  readonly name: string | null;
  readonly settings: OpenSettings;
}

/**
 * What is chosen when nothing is said. The cache is a writeback one, as virtio-blk in QEMU has it and unlike in
 * qemu-io, whose default is writethrough: with that a flush has nothing left to do.
 */
export const DEFAULT_SETTINGS: OpenSettings = {
  readOnly: false,
  snapshot: false,
  share: false,
  cache: CACHE_MODES.writeback,
  discard: true,
};

/** A mode that does not exist. The message is qemu-io's. */
export class SettingError extends Error {
  override readonly name = "SettingError";
}

/**
 * Applies a flag that qemu-io has, given to the program or to `open`.
 *
 * @returns `null` when there is no such flag
 * @throws SettingError
 */
export function applyFlag(settings: OpenSettings, letter: string, value: string | null): OpenSettings | null {
  const text = value ?? "";
  switch (letter) {
    case "r":
      return { ...settings, readOnly: true };
    case "s":
      return { ...settings, snapshot: true };
    case "U":
      return { ...settings, share: true };
    case "n":
      return { ...settings, cache: CACHE_MODES.none };
    case "f":
      return { ...settings, format: text };
    case "t":
      return { ...settings, cache: lookUp(CACHE_MODES, text, "cache") };
    case "d":
      return { ...settings, discard: lookUp(DISCARD_MODES, text, "discard") };
    case "i":
      if (!AIO_MODES.includes(text)) throw new SettingError(`Invalid aio option: ${text}`);
      return settings;
    // Copy-on-read, native AIO and misaligned buffers: nothing here that they could change.
    case "C":
    case "k":
    case "m":
      return settings;
    default:
      return null;
  }
}

/** Applies one `key=value` of `reopen -o`. */
export function applyOption(settings: OpenSettings, key: string, value: string): OpenSettings {
  const on = value === "on" || value === "";
  switch (key) {
    case "read-only":
      return { ...settings, readOnly: on };
    case "discard":
      return { ...settings, discard: lookUp(DISCARD_MODES, value, "discard") };
    case "cache.direct":
      return { ...settings, cache: { ...settings.cache, direct: on } };
    case "cache.no-flush":
      return { ...settings, cache: { ...settings.cache, noFlush: on } };
    default:
      throw new SettingError(`Cannot change the option '${key}'`);
  }
}

/**
 * Takes the options of an image apart: what is common to all images becomes settings, the rest is for its drivers.
 *
 * @param texts option texts in order (`key=value,...`), each of which adds to those before
 * @throws BlockOptionError
 */
export async function applyBlockOptions(
  name: string | null,
  settings: OpenSettings,
  texts: readonly string[],
): Promise<OpenRequest> {
  // Most images are named by a path and nothing else.
  if (texts.length === 0 && !name?.startsWith("json:")) return { name, settings };
  const [{ describe }, { parseOptionText }] = await Promise.all([
    import("../image/block_tree.ts"),
    import("../image/block_options.ts"),
  ]);
  const given = new Map(texts.flatMap((text) => [...parseOptionText(text)]));
  const { node, name: rest, common } = describe(name, given, name ?? "");
  const { cache } = settings;
  return {
    name: rest,
    settings: {
      ...settings,
      readOnly: settings.readOnly || (common.readOnly ?? false),
      share: settings.share || (common.share ?? false),
      cache: { ...cache, direct: common.direct ?? cache.direct, noFlush: common.noFlush ?? cache.noFlush },
      discard: common.discard ?? settings.discard,
      detectZeroes: common.detectZeroes,
      block: node.options,
    },
  };
}

function lookUp<T>(table: Readonly<Record<string, T>>, name: string, what: string): T {
  if (!Object.hasOwn(table, name)) throw new SettingError(`Invalid ${what} option: ${name}`);
  return table[name];
}
