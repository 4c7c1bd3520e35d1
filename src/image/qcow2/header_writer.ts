/**
 * Changes the header of a qcow2 image in a file, so that a crash at any moment leaves the old header or the new one.
 *
 * A disk writes a sector of 512 bytes whole or not at all. The fields and most extensions are in the first sector, and
 * go to the disk in one write. What a header has behind it (the end of a long list of extensions, the name of the backing
 * file) is written before, to places that the header in the file does not refer to; then a barrier; then the first sector,
 * and another barrier.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";
import type { Qcow2Header } from "./header.ts";
import { type EncodedHeader, layOut } from "./header_encode.ts";
import { EXTENSION, HEADER, V2_HEADER_BYTES } from "./qcow2_layout.ts";

export { changeHeader, encodeHeader, newHeader } from "./header_encode.ts";

/** A range of the first cluster, in bytes. */
type Range = readonly [from: number, to: number];

/**
 * Replaces the header in the file. Everything else that the new header refers to has been written and flushed before.
 *
 * @param from what is in the file now
 * @param to made of `from` by `changeHeader`
 * @returns what is in the file afterwards: `to`, with the place that the backing file's name got
 * @throws BlockError when the header does not fit into the first cluster, or what the storage failed with
 */
export async function writeHeader(storage: Storage, from: Qcow2Header, to: Qcow2Header): Promise<Qcow2Header> {
  const old = new Uint8Array(2 ** from.clusterBits);
  const stored = Math.min(old.byteLength, storage.sizeBytes);
  await storage.read(0, SegmentList.over(old.subarray(0, stored)));
  let current = old;
  let nameOffset = 0;
  for (const step of stepsBetween(old, from, to, storage.name)) {
    current = await takeStep(storage, current, step);
    ({ nameOffset } = step);
  }
  await tidy(storage, current);
  return { ...to, backingNameOffset: nameOffset };
}

/** Layouts to go through, the last of them of `to`. */
function stepsBetween(old: Uint8Array, from: Qcow2Header, to: Qcow2Header, path: string): EncodedHeader[] {
  const plain = layOut(to, path);
  const direct = safeStep(old, to, path);
  if (direct !== null) return [direct];
  // The names of the features take most of the room, push what follows out of the first sector, and can be missed: the
  // change is made without them.
  const first = safeStep(old, withoutFeatureNames(from), path);
  const second = first === null
    ? null
    : safeStep(overlaid(old, first), withoutFeatureNames(to), path, plain.extensionsEnd);
  const last = second === null ? null : safeStep(overlaid(overlaid(old, first!), second), to, path);
  if (last !== null) return [first!, second!, last];
  // Only where names of hundreds of bytes are among the extensions, or hardly any room is left in the cluster.
  return [plain];
}

function withoutFeatureNames(header: Qcow2Header): Qcow2Header {
  return { ...header, extensions: header.extensions.filter(({ type }) => type !== EXTENSION.featureNames) };
}

/** A layout of `to` that changes nothing behind the first sector that the header in `old` refers to. */
function safeStep(old: Uint8Array, to: Qcow2Header, path: string, nameFrom = 0): EncodedHeader | null {
  const used = rangesOf(old);
  const usedEnd = Math.ceil(Math.max(...used.map(([, end]) => end)) / 8) * 8;
  // Where the name is already, where QEMU puts it, or behind everything.
  for (const start of [nameOffsetOf(old), 0, usedEnd]) {
    const step = tryLayOut(to, path, Math.max(start, nameFrom));
    if (step !== null && isSafe(old, overlaid(old, step), used)) return step;
  }
  return null;
}

function tryLayOut(to: Qcow2Header, path: string, nameFrom: number): EncodedHeader | null {
  try {
    return layOut(to, path, nameFrom);
  } catch (error) {
    if (error instanceof BlockError && error.kind === "no-space") return null;
    throw error;
  }
}

function isSafe(old: Uint8Array, next: Uint8Array, used: readonly Range[]): boolean {
  return used.every(([from, to]) => {
    for (let at = Math.max(from, SECTOR_BYTES); at < to; at++) {
      if (old[at] !== next[at]) return false;
    }
    return true;
  });
}

/** The cluster after a step: what the new header does not refer to is as it was. */
function overlaid(
  old: Uint8Array,
  { bytes, extensionsEnd, nameOffset, nameBytes }: EncodedHeader,
): Uint8Array<ArrayBuffer> {
  const next = old.slice();
  // The first sector is written whole in any case.
  const end = Math.max(extensionsEnd, Math.min(SECTOR_BYTES, bytes.byteLength));
  next.set(bytes.subarray(0, end));
  next.set(bytes.subarray(nameOffset, nameOffset + nameBytes), nameOffset);
  return next;
}

function nameOffsetOf(cluster: Uint8Array): number {
  const view = new DataView(cluster.buffer, cluster.byteOffset, cluster.byteLength);
  return Number(view.getBigUint64(HEADER.backingFileOffset));
}

/** What of a cluster its header refers to; the contents of the feature name table count only if `withNames`. */
function rangesOf(cluster: Uint8Array, withNames = false): Range[] {
  const view = new DataView(cluster.buffer, cluster.byteOffset, cluster.byteLength);
  const headerBytes = view.getUint32(HEADER.version) === 2 ? V2_HEADER_BYTES : view.getUint32(HEADER.headerLength);
  const nameOffset = nameOffsetOf(cluster);
  const end = nameOffset === 0 ? cluster.byteLength : Math.min(nameOffset, cluster.byteLength);
  const ranges: Range[] = [[0, headerBytes]];
  for (let at = headerBytes; at + 8 <= end;) {
    const type = view.getUint32(at);
    const next = at + 8 + (type === EXTENSION.end ? 0 : Math.ceil(view.getUint32(at + 4) / 8) * 8);
    // Half-changed names of features do no harm: they are only read to be put into a message.
    ranges.push([at, type === EXTENSION.featureNames && !withNames ? at + 8 : next]);
    if (type === EXTENSION.end) break;
    at = next;
  }
  if (nameOffset !== 0) ranges.push([nameOffset, nameOffset + view.getUint32(HEADER.backingFileSize)]);
  return ranges;
}

/** Writes what is behind the first sector, then the first sector. */
async function takeStep(storage: Storage, old: Uint8Array, step: EncodedHeader): Promise<Uint8Array<ArrayBuffer>> {
  const next = overlaid(old, step);
  if (await writeChanged(storage, old, next)) await storage.flush();
  await storage.write(0, SegmentList.over(next.subarray(0, SECTOR_BYTES)));
  await storage.flush();
  return next;
}

/** Writes the sectors behind the first that differ, from the first such to the last; says whether there were any. */
async function writeChanged(storage: Storage, old: Uint8Array, next: Uint8Array<ArrayBuffer>): Promise<boolean> {
  let from = SECTOR_BYTES;
  let to = next.byteLength;
  while (from < to && old[from] === next[from]) from++;
  while (to > from && old[to - 1] === next[to - 1]) to--;
  if (from >= to) return false;
  from -= from % SECTOR_BYTES;
  to = Math.ceil(to / SECTOR_BYTES) * SECTOR_BYTES;
  await storage.write(from, SegmentList.over(next.subarray(from, to)));
  return true;
}

/** Clears what the header does not refer to any more, so that no old name stays in the file. Needs no barrier. */
async function tidy(storage: Storage, cluster: Uint8Array<ArrayBuffer>): Promise<void> {
  const clean = new Uint8Array(cluster.byteLength);
  for (const [from, to] of rangesOf(cluster, true)) clean.set(cluster.subarray(from, to), from);
  await writeChanged(storage, cluster, clean);
}
