/**
 * The directory of persistent bitmaps (QEMU's docs/interop/qcow2, "Bitmap directory"), read, checked and written.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { nameFrom } from "./extensions.ts";
import type { BitmapDirectory } from "./extensions.ts";
import type { Qcow2Header } from "./header.ts";
import { corrupt } from "./refuse.ts";

/** Bits of an entry's flags. */
export const BITMAP_FLAG = { inUse: 1, auto: 2, extraDataCompatible: 4 } as const;

const KNOWN_FLAGS = 7;
const TYPE_DIRTY_TRACKING = 1;
/** Length of an entry's fields, in bytes; extra data and name follow. */
const ENTRY_BYTES = 24;

/** Limits as in QEMU. */
export const BITMAP_LIMIT = {
  tableEntries: 0x8000000,
  bytes: 0x20000000,
  granularityBits: { least: 9, most: 31 },
  nameBytes: 1023,
} as const;

/** One entry: facts about a bitmap. */
export interface BitmapEntry {
  readonly name: string;
  readonly tableOffset: number;
  readonly tableEntries: number;
  readonly flags: number;
  readonly type: number;
  readonly granularityBits: number;
  /** Of a program that knows more than the text. */
  readonly extraData: Uint8Array;
  /** Where the entry is in the directory, in bytes. */
  readonly position: number;
}

/** A new entry without a table. */
export function newEntry(name: string, granularityBits: number, flags: number): BitmapEntry {
  const nothing = { tableOffset: 0, tableEntries: 0, extraData: new Uint8Array(), position: 0 };
  return { name, flags, type: TYPE_DIRTY_TRACKING, granularityBits, ...nothing };
}

/** Length of a bitmap of a disk, in bytes: one bit for each granule. */
export function bitmapBytes(diskBytes: number, granularityBits: number): number {
  return Math.ceil(Math.ceil(diskBytes / 2 ** granularityBits) / 8);
}

/**
 * Reads the directory, which the header's checks have bounded and put inside the file. What an entry says is not
 * checked: `entryFault` does that.
 *
 * @throws BlockError when it is not made of as many entries as the header says
 */
export async function readDirectory(storage: Storage, directory: BitmapDirectory | null): Promise<BitmapEntry[]> {
  if (directory === null) return [];
  const bytes = new Uint8Array(directory.lengthBytes);
  if (bytes.byteLength > 0) await storage.read(directory.offset, SegmentList.over(bytes));
  return parseDirectory(bytes, directory, storage.name);
}

function parseDirectory(bytes: Uint8Array<ArrayBuffer>, { count, offset }: BitmapDirectory, path: string) {
  const view = new DataView(bytes.buffer);
  const bad = (reason: string, at: number) => corrupt(path, "open", reason, offset + at);
  const entries: BitmapEntry[] = [];
  if (bytes.byteLength === 0) throw bad("Requested bitmap directory size is zero", 0);
  for (let at = 0; at < bytes.byteLength;) {
    if (at + ENTRY_BYTES > bytes.byteLength) throw bad("Broken bitmap directory", at);
    if (entries.length === count) throw bad("More bitmaps found than specified in header extension", at);
    const nameBytes = view.getUint16(at + 18);
    const nameStart = at + ENTRY_BYTES + view.getUint32(at + 20);
    const end = at + roundUp(nameStart + nameBytes - at);
    if (end > bytes.byteLength) throw bad("Broken bitmap directory", at);
    entries.push({
      name: nameFrom(bytes.subarray(nameStart, nameStart + nameBytes), "bitmap's name", path),
      tableOffset: Number(view.getBigUint64(at)),
      tableEntries: view.getUint32(at + 8),
      flags: view.getUint32(at + 12),
      type: view.getUint8(at + 16),
      granularityBits: view.getUint8(at + 17),
      extraData: bytes.slice(at + ENTRY_BYTES, nameStart),
      position: at,
    });
    at = end;
  }
  if (entries.length < count) throw bad("Less bitmaps found than specified in header extension", bytes.byteLength);
  return entries;
}

/** Says what is wrong with an entry; `null` when nothing is. */
export function entryFault(entry: BitmapEntry, header: Qcow2Header): string | null {
  const { name, flags, granularityBits, tableEntries, tableOffset, type } = entry;
  const clusterBytes = 2 ** header.clusterBits;
  const { least, most } = BITMAP_LIMIT.granularityBits;
  const good = tableEntries > 0 && tableEntries <= BITMAP_LIMIT.tableEntries &&
    tableEntries * clusterBytes <= BITMAP_LIMIT.bytes && tableOffset > 0 && tableOffset % clusterBytes === 0 &&
    granularityBits >= least && granularityBits <= most && (flags & ~KNOWN_FLAGS) === 0 &&
    type === TYPE_DIRTY_TRACKING && name !== "" && new TextEncoder().encode(name).byteLength <= BITMAP_LIMIT.nameBytes;
  if (!good) return `Bitmap '${name}' doesn't satisfy the constraints`;
  // What is in a bitmap that was not closed may be old, its size too.
  if ((flags & BITMAP_FLAG.inUse) !== 0) return null;
  const needed = Math.ceil(bitmapBytes(header.sizeBytes, granularityBits) / clusterBytes);
  if (needed !== tableEntries) return `Could not read bitmap '${name}' from image: its size is not that of the disk`;
  return null;
}

/** Whether a bitmap may be used, as far as its entry says. */
export function isUsable({ flags, extraData }: BitmapEntry): boolean {
  if ((flags & BITMAP_FLAG.inUse) !== 0) return false;
  return extraData.byteLength === 0 || (flags & BITMAP_FLAG.extraDataCompatible) !== 0;
}

/** Length of the directory of some entries, in bytes. */
export function directoryBytes(entries: readonly { name: string; extraData: Uint8Array }[]): number {
  return entries.reduce((sum, entry) => sum + entryBytes(entry), 0);
}

function entryBytes({ name, extraData }: { name: string; extraData: Uint8Array }): number {
  return roundUp(ENTRY_BYTES + extraData.byteLength + new TextEncoder().encode(name).byteLength);
}

/** The bytes of a directory, and its entries with their places in it. */
export function encodeDirectory(entries: readonly BitmapEntry[]): { bytes: Uint8Array; placed: BitmapEntry[] } {
  const bytes = new Uint8Array(directoryBytes(entries));
  const view = new DataView(bytes.buffer);
  let at = 0;
  const placed = entries.map((entry) => {
    const name = new TextEncoder().encode(entry.name);
    view.setBigUint64(at, BigInt(entry.tableOffset));
    view.setUint32(at + 8, entry.tableEntries);
    view.setUint32(at + 12, entry.flags);
    view.setUint8(at + 16, entry.type);
    view.setUint8(at + 17, entry.granularityBits);
    view.setUint16(at + 18, name.byteLength);
    view.setUint32(at + 20, entry.extraData.byteLength);
    bytes.set(entry.extraData, at + ENTRY_BYTES);
    bytes.set(name, at + ENTRY_BYTES + entry.extraData.byteLength);
    const position = at;
    at += entryBytes(entry);
    return { ...entry, position };
  });
  return { bytes, placed };
}

/** Sets the flag that a bitmap is in use, of entries in the bytes of their directory. */
export function setInUse(bytes: Uint8Array<ArrayBuffer>, entries: readonly BitmapEntry[]): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  for (const { position } of entries) {
    view.setUint32(position + 12, view.getUint32(position + 12) | BITMAP_FLAG.inUse);
  }
}

function roundUp(lengthBytes: number): number {
  return Math.ceil(lengthBytes / 8) * 8;
}
