/**
 * Makes an image one of version 2 (`compat=0.10`), which has no feature bits and no zero clusters.
 *
 * Each L2 table, those of snapshots too, is written anew in its place: where there is no backing image a zero cluster
 * becomes one that is not allocated, otherwise one that is stored. Both read as before, in version 3 too, so a crash in
 * between leaves a good image: new clusters are counted, and on stable storage, before the entry refers to them, and old
 * ones are given up after. At last the header changes, in one sector.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { COMPRESSED, CORRUPT, writeEntry, ZERO } from "./l2_entry.ts";
import { INCOMPATIBLE, L1_MAX_BYTES, OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import { corrupt, hex } from "./refuse.ts";
import { replaceHeader } from "./replace_header.ts";
import { readSnapshots } from "./snapshot_table.ts";
import type { WriteBack } from "./write_back.ts";

/**
 * Makes the image one of version 2. It is clean, and nobody writes; it must be closed afterwards.
 *
 * @param onProgress told which part of the work is done, from 0 to 1
 * @throws BlockError when it has what version 2 has not, before anything is changed; or what the storage failed with
 */
export async function downgrade(tables: WriteBack, onProgress: (part: number) => void): Promise<void> {
  await assertPossible(tables);
  const places = await tablesOf(tables);
  if (tables.file.header.compression !== "zlib") await assertNothingCompressed(tables, places);
  for (let i = 0; i < places.length; i++) {
    await expandTable(tables, places[i]);
    onProgress((i + 1) / places.length);
  }
  // What is in memory is as it was.
  tables.mapping.cache.clear();
  await tables.finish();
  await replaceHeader(tables.file, { version: 2 });
}

async function assertPossible(tables: WriteBack): Promise<void> {
  const { storage, header } = tables.file;
  const refused = (reason: string, hint?: string) =>
    new BlockError({ kind: "unsupported", path: storage.name, operation: "write", reason, hint });
  if (header.refcountBits !== 16) throw refused("compat=0.10 requires refcount_bits=16");
  if (header.externalData) throw refused("Cannot downgrade an image with a data file");
  const snapshots = await readSnapshots(storage, header);
  if (snapshots.some(({ vmStateBytes, diskBytes }) => vmStateBytes >= 2 ** 32 || diskBytes !== header.sizeBytes)) {
    throw refused("Internal snapshots prevent downgrade of image");
  }
  const features = header.incompatible & ~(INCOMPATIBLE.compressionType | INCOMPATIBLE.dirty);
  if (features !== 0n) {
    throw refused(`Cannot downgrade an image with incompatible features 0x${features.toString(16)} set`);
  }
  if (header.bitmaps !== null) {
    // QEMU lets them leak, and warns each time that the image is opened.
    throw refused("Cannot downgrade an image with persistent bitmaps", "'vblk bitmap --remove' removes them");
  }
}

/** Offsets of all L2 tables, each once. */
async function tablesOf({ file, mapping }: WriteBack): Promise<number[]> {
  const { storage, header, clusterBytes, endBytes } = file;
  const found = new Set<number>();
  const add = (l1: DataView) => {
    for (let at = 0; at < l1.byteLength; at += 8) {
      const offset = (l1.getUint32(at) & OFFSET_HIGH_MASK) * 0x1_0000_0000 +
        ((l1.getUint32(at + 4) & OFFSET_LOW_MASK) >>> 0);
      if (offset === 0) continue;
      if (offset % clusterBytes !== 0 || offset + clusterBytes > endBytes) {
        throw corrupt(storage.name, "read", "An entry of an L1 table does not refer to a cluster", offset);
      }
      found.add(offset);
    }
  };
  add(mapping.l1);
  for (const { name, l1Offset, l1Entries } of await readSnapshots(storage, header)) {
    const lengthBytes = l1Entries * 8;
    if (lengthBytes > L1_MAX_BYTES || l1Offset % clusterBytes !== 0 || l1Offset + lengthBytes > endBytes) {
      throw corrupt(storage.name, "read", `The L1 table of snapshot '${name}' is not where it could be`, l1Offset);
    }
    if (l1Entries === 0) continue;
    const bytes = new Uint8Array(lengthBytes);
    await storage.read(l1Offset, SegmentList.over(bytes));
    add(new DataView(bytes.buffer));
  }
  return [...found];
}

/** The kinds of entries are told by a reader that the mapping lends; it keeps the last one's fields. */
function kindAt({ file, mapping }: WriteBack, table: DataView, at: number, offset: number): number {
  const kind = mapping.entry.read(table, at, 0);
  if (kind !== CORRUPT) return kind;
  const reason = `An entry of the L2 table at ${hex(offset)} ${mapping.entry.faultText()}`;
  throw corrupt(file.storage.name, "read", reason, offset + at);
}

async function readTable({ file }: WriteBack, offset: number): Promise<DataView<ArrayBuffer>> {
  const table = new DataView(new ArrayBuffer(file.clusterBytes));
  await file.storage.read(offset, SegmentList.over(new Uint8Array(table.buffer)));
  return table;
}

async function assertNothingCompressed(tables: WriteBack, places: readonly number[]): Promise<void> {
  for (const offset of places) {
    const table = await readTable(tables, offset);
    for (let at = 0; at < table.byteLength; at += 8) {
      if (kindAt(tables, table, at, offset) !== COMPRESSED) continue;
      const reason = "Cannot downgrade an image with zstd compression type and existing compressed clusters";
      throw new BlockError({ kind: "unsupported", path: tables.file.storage.name, operation: "write", reason });
    }
  }
}

/** Leaves no zero cluster in a table, which the active L1 table and those of snapshots may share. */
async function expandTable(tables: WriteBack, offset: number): Promise<void> {
  const { file, mapping, refcounts } = tables;
  const { clusterBytes } = file;
  const table = await readTable(tables, offset);
  const users = await refcounts.get(offset / clusterBytes);
  // Each of them has its own L1 table: a larger count is a lie, and would be believed that many times below.
  if (users > file.header.snapshotCount + 1) throw tooManyUsers(tables, offset, users);
  const given: number[] = [];
  let changed = false;
  for (let at = 0; at < table.byteLength; at += 8) {
    if (kindAt(tables, table, at, offset) !== ZERO) continue;
    changed = true;
    if (mapping.entry.placed) given.push(mapping.entry.hostOffset);
    if (file.header.backingName === null) writeEntry(table, at, 0, false, false);
    else writeEntry(table, at, await storedZeros(tables, users), users === 1, false);
  }
  if (!changed) return;
  // The counts and the zeros first, then what refers to them, then what nothing refers to any more.
  await tables.flush();
  await file.write("active L2 table", offset, new Uint8Array(table.buffer));
  for (const place of given) {
    for (let i = 0; i < users; i++) tables.release(place, 1);
  }
  await tables.flush();
}

function tooManyUsers({ file }: WriteBack, offset: number, users: number): BlockError {
  const reason = `The L2 table at ${hex(offset)} has a refcount of ${users}, more than there are snapshots and disks`;
  return corrupt(file.storage.name, "read", reason, offset);
}

async function storedZeros({ file, refcounts }: WriteBack, users: number): Promise<number> {
  const hostOffset = await refcounts.allocate(1);
  if (users > 1) await refcounts.add(hostOffset / file.clusterBytes, 1, users - 1);
  await file.writeData(hostOffset, SegmentList.over(new Uint8Array(file.clusterBytes)));
  return hostOffset;
}
