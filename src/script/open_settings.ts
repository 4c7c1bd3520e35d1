/**
 * How an image is opened, in QEMU's words: cache, discard and aio modes, shared by the command line's flags and the
 * commands `open` and `reopen`.
 *
 * @module
 */

import { parseSize } from "../image/size.ts";

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
  /** Most memory for the tables of a qcow2 image, in bytes. */
  readonly l2CacheBytes?: number;
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

/** Applies one `key=value` of `open -o` and `reopen -o`. */
export function applyOption(settings: OpenSettings, key: string, value: string): OpenSettings {
  const on = value === "on" || value === "";
  switch (key) {
    case "driver":
      return { ...settings, format: value };
    case "read-only":
      return { ...settings, readOnly: on };
    case "force-share":
      return { ...settings, share: on };
    case "discard":
      return { ...settings, discard: lookUp(DISCARD_MODES, value, "discard") };
    case "cache.direct":
      return { ...settings, cache: { ...settings.cache, direct: on } };
    case "cache.no-flush":
      return { ...settings, cache: { ...settings.cache, noFlush: on } };
    case "l2-cache-size":
      return { ...settings, l2CacheBytes: sizeOf(key, value) };
    default:
      throw new SettingError(`Block format '${settings.format ?? "raw"}' does not support the option '${key}'`);
  }
}

function sizeOf(key: string, value: string): number {
  const size = parseSize(value);
  if (typeof size === "number") return size;
  throw new SettingError(`Parameter '${key}' expects a non-negative number below 2^64`);
}

function lookUp<T>(table: Readonly<Record<string, T>>, name: string, what: string): T {
  if (!Object.hasOwn(table, name)) throw new SettingError(`Invalid ${what} option: ${name}`);
  return table[name];
}
