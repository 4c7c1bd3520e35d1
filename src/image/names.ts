/**
 * Names of images as users give them.
 *
 * @module
 */

import { BlockError } from "../storage/block_error.ts";
import { MEMORY_STORAGE_MAX_BYTES, MemoryStorage } from "../storage/memory.ts";
import { parseSize } from "./size.ts";

/** What the name of a disk in memory starts with. */
export const MEMORY_PREFIX = "mem:";

/** The protocol that a name starts with, as in QEMU: what is before a colon, if no slash comes first. */
export function protocolOf(name: string): string | null {
  const protocol = /^([^/:]*):/.exec(name)?.[1] ?? null;
  const isDrive = Deno.build.os === "windows" && protocol?.length === 1;
  return isDrive ? null : protocol;
}

/**
 * Makes the disk in memory that `mem:SIZE` stands for. It starts as zeros.
 *
 * @throws BlockError
 */
export function memoryStorage(name: string, readOnly = false): MemoryStorage {
  const size = parseSize(name.slice(MEMORY_PREFIX.length));
  if (typeof size === "number" && size <= MEMORY_STORAGE_MAX_BYTES) return new MemoryStorage(size, { name, readOnly });
  throw new BlockError({
    kind: "invalid",
    path: name,
    operation: "open",
    reason: size === "not-a-number" ? "The size is not a number" : "The size is too large: it must be below 16 TiB",
    hint: "write it as in mem:64M",
  });
}
