/**
 * Which format an image has, by its first bytes, as QEMU guesses it.
 *
 * A guest writes what it likes to a raw disk. What is guessed is therefore only good for an image that no guest could
 * write, or together with a guard on the first sector (see `RawImage`).
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { BlockError } from "../storage/block_error.ts";
import type { Storage } from "../storage/storage.ts";

/** Formats by what their first bytes look like: offset, bytes. */
const MAGICS: readonly (readonly [format: string, offset: number, magic: string])[] = [
  ["qcow", 0, "QFI\xfb\0\0\0\x01"],
  ["qcow2", 0, "QFI\xfb"],
  ["qed", 0, "QED\0"],
  ["vmdk", 0, "KDMV"],
  ["vmdk", 0, "COWD"],
  ["vmdk", 0, "# Disk DescriptorFile"],
  ["vdi", 64, "\x7f\x10\xda\xbe"],
  ["vhdx", 0, "vhdxfile"],
  ["vpc", 0, "conectix"],
  ["parallels", 0, "WithoutFreeSpace"],
  ["parallels", 0, "WithouFreSpacExt"],
  ["luks", 0, "LUKS\xba\xbe"],
  ["bochs", 0, "Bochs Virtual HD Image"],
  ["cloop", 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"],
];

/**
 * The text form of vmdk: comments and blank lines before the version. QEMU takes no blank line that is quite empty, so
 * neither does this; it must see at least all that QEMU sees.
 */
const VMDK_TEXT = /^(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n/;

/** Formats that have a name here but are not read. */
const OTHERS: readonly string[] = ["dmg", "vvfat"];

/** So many bytes are looked at. */
export const PROBE_BYTES = 512;

/** Formats that are read. */
const READABLE = ["raw", "qcow2"];

/**
 * Refuses formats that are not read.
 *
 * @param how where the name of the format comes from
 * @throws BlockError
 */
export function checkReadable(path: string, format: string, how: "asked for" | "found"): void {
  if (READABLE.includes(format)) return;
  const known = OTHERS.includes(format) || MAGICS.some(([name]) => name === format);
  throw new BlockError({
    kind: "unsupported",
    path,
    operation: "open",
    reason: known ? `The image's format is ${format}, which vblk does not read` : `Unknown driver '${format}'`,
    hint: how === "found"
      ? `convert it with 'qemu-img convert -O raw', or give -f raw to see its bytes as they are`
      : "vblk reads raw and qcow2 images: give -f raw, or convert it with 'qemu-img convert -O raw'",
  });
}

/** The format that the first bytes of an image belong to; `"raw"` when to none that is known. */
export function formatOf(bytes: Uint8Array): string {
  const text = String.fromCharCode(...bytes.subarray(0, PROBE_BYTES));
  const found = MAGICS.find(([, offset, magic]) => text.startsWith(magic, offset))?.[0];
  return found ?? (VMDK_TEXT.test(text) ? "vmdk" : "raw");
}

/**
 * Reads the first bytes, and guesses.
 *
 * @throws BlockError
 */
export async function probe(storage: Storage): Promise<string> {
  const bytes = new Uint8Array(Math.min(PROBE_BYTES, storage.sizeBytes));
  await storage.read(0, SegmentList.over(bytes));
  return formatOf(bytes);
}
