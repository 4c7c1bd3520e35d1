/**
 * Internal snapshots: taken, gone back to, deleted (QEMU's docs/interop/qcow2, "Snapshots").
 *
 * A snapshot is an L1 table of its own, and one reference more to everything that can be reached from it. Whether a
 * cluster may be written in place (COPIED) follows from its count, so counts and flags change together; no order of
 * writes makes that one step. In version 3 the dirty bit is set meanwhile: after a crash the next one who writes counts
 * again. Version 2 has no such bit; there a crash leaves flags that do not match, which are harmless (a cluster is
 * copied that need not be, or is counted too high) and which a check repairs.
 *
 * What refers to a snapshot, one entry of the table of snapshots, is written when all that it needs is there, and
 * deleted before anything that it needs.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { COMPRESSED, compressedClusters, CORRUPT } from "./l2_entry.ts";
import { noteSnapshots } from "./open_for_writing.ts";
import { COPIED_HIGH, L1_MAX_BYTES, OFFSET_HIGH_MASK, OFFSET_LOW_MASK, SNAPSHOTS_MAX } from "./qcow2_layout.ts";
import { corrupt } from "./refuse.ts";
import { encodeSnapshots, readSnapshots, readSnapshotTable, type Snapshot } from "./snapshot_table.ts";
import type { WriteBack } from "./write_back.ts";

/** Keeps the disk as it is under a name; returns the id. The image is clean, and nobody writes. */
export async function createSnapshot(tables: WriteBack, name: string, dateMilliseconds: number): Promise<string> {
  const { file, mapping } = tables;
  const { header } = file;
  assertPossible(tables);
  const snapshots = await readSnapshots(file.storage, header);
  if (snapshots.length >= SNAPSHOTS_MAX) throw refused(tables, `There are ${SNAPSHOTS_MAX} snapshots already`);
  const numbers = snapshots.map(({ id }) => /^\d{1,15}$/.test(id) ? Number(id) : 0);
  const id = String(1 + Math.max(0, ...numbers));
  await beginCounting(tables);
  const l1 = new Uint8Array(header.l1Entries * 8);
  l1.set(new Uint8Array(mapping.l1.buffer, mapping.l1.byteOffset, l1.byteLength));
  const view = new DataView(l1.buffer);
  // The flag means nothing in a table that is not the active one.
  for (let at = 0; at < l1.byteLength; at += 8) view.setUint32(at, view.getUint32(at) & ~COPIED_HIGH);
  const l1Offset = await writeNew(tables, l1);
  await countNew(tables, view, l1Offset, l1.byteLength);
  // Before anything can refer to the snapshot: a cluster of its must not be written in place.
  await tables.flush();
  await tables.settle();
  await writeTable(tables, [...snapshots, {
    id,
    name,
    l1Offset,
    l1Entries: header.l1Entries,
    dateSeconds: Math.floor(dateMilliseconds / 1000),
    dateNanoseconds: dateMilliseconds % 1000 * 1_000_000,
    vmClockNanoseconds: 0n,
    vmStateBytes: 0,
    diskBytes: header.sizeBytes,
    icount: null,
    extraData: new Uint8Array(),
  }]);
  return id;
}

/** Makes the disk what it was in a snapshot, which stays. The image is clean, and nobody writes. */
export async function applySnapshot(tables: WriteBack, idOrName: string): Promise<void> {
  const { file, mapping } = tables;
  assertPossible(tables);
  const snapshot = findSnapshot(tables, await readSnapshots(file.storage, file.header), idOrName);
  const { l1Offset: oldOffset, l1Entries: oldEntries } = file.header;
  const old = new DataView(mapping.l1.buffer.slice(mapping.l1.byteOffset, mapping.l1.byteOffset + oldEntries * 8));
  const kept = await readL1(tables, snapshot);
  const entries = Math.max(snapshot.l1Entries, Math.ceil(snapshot.diskBytes / mapping.tableSpan));
  const l1 = new Uint8Array(entries * 8);
  l1.set(new Uint8Array(kept.buffer));
  await tables.bitmaps?.beforeResize(file, snapshot.diskBytes);
  await beginCounting(tables);
  const l1Offset = await writeNew(tables, l1);
  await countNew(tables, kept, l1Offset, l1.byteLength);
  await tables.flush();
  await file.writeHeader({ l1Offset, l1Entries: entries, sizeBytes: snapshot.diskBytes });
  // Memory follows the header, whether the barrier succeeds or not.
  mapping.replaceL1(new DataView(l1.buffer), l1Offset);
  tables.noteTables();
  tables.bitmaps?.replaced(snapshot.diskBytes);
  await file.barrier();
  await countTree(tables, old, -1);
  if (oldEntries > 0) tables.release(oldOffset, clustersOf(tables, oldEntries * 8));
  await tables.flush();
}

/** Deletes a snapshot, and frees what only it used. The image is clean, and nobody writes. */
export async function deleteSnapshot(tables: WriteBack, idOrName: string): Promise<void> {
  const { file } = tables;
  const snapshots = await readSnapshots(file.storage, file.header);
  const snapshot = findSnapshot(tables, snapshots, idOrName);
  const l1 = await readL1(tables, snapshot);
  await beginCounting(tables);
  await writeTable(tables, snapshots.filter((other) => other !== snapshot));
  await countTree(tables, l1, -1);
  if (snapshot.l1Entries > 0) tables.release(snapshot.l1Offset, clustersOf(tables, l1.byteLength));
  await tables.flush();
}

/** From here on counts and flags may differ, until the flags have been set again: at the end, whatever fails before. */
async function beginCounting(tables: WriteBack): Promise<void> {
  await tables.file.setDirty(true);
  tables.unsettled = () => setCopiedFlags(tables);
}

/** The snapshot that is meant: by its id, or else its name. */
function findSnapshot(tables: WriteBack, snapshots: readonly Snapshot[], idOrName: string): Snapshot {
  const found = snapshots.find(({ id }) => id === idOrName) ?? snapshots.find(({ name }) => name === idOrName);
  if (found !== undefined) return found;
  throw refused(tables, `Can't find snapshot '${idOrName}'`);
}

function assertPossible(tables: WriteBack): void {
  if (!tables.file.header.externalData) return;
  throw refused(tables, "An image with an external data file has no internal snapshots");
}

/** A snapshot's L1 table, from a place that must be checked first. */
async function readL1(tables: WriteBack, { name, l1Offset, l1Entries }: Snapshot): Promise<DataView<ArrayBuffer>> {
  const { file } = tables;
  const lengthBytes = l1Entries * 8;
  if (lengthBytes > L1_MAX_BYTES || l1Offset % file.clusterBytes !== 0 || l1Offset + lengthBytes > file.endBytes) {
    throw corrupt(file.storage.name, "read", `The L1 table of snapshot '${name}' is not where it could be`, l1Offset);
  }
  const bytes = new Uint8Array(lengthBytes);
  if (lengthBytes > 0) await file.storage.read(l1Offset, SegmentList.over(bytes));
  return new DataView(bytes.buffer);
}

/** Writes a table to new clusters, which nothing refers to yet; returns where. */
async function writeNew(tables: WriteBack, bytes: Uint8Array): Promise<number> {
  const { file, refcounts } = tables;
  const clusters = Math.max(1, clustersOf(tables, bytes.byteLength));
  const padded = new Uint8Array(clusters * file.clusterBytes);
  padded.set(bytes);
  const offset = await refcounts.allocate(clusters);
  await file.write("snapshot table", offset, padded);
  tables.mapping.grow(file.endBytes);
  return offset;
}

/** Puts another table of snapshots in the place of the one there is. */
async function writeTable(tables: WriteBack, snapshots: readonly Snapshot[]): Promise<void> {
  const { file } = tables;
  const { snapshotsOffset: oldOffset } = file.header;
  const { lengthBytes: oldBytes } = await readSnapshotTable(file.storage, file.header);
  const bytes = encodeSnapshots(snapshots);
  const snapshotsOffset = snapshots.length === 0 ? 0 : await writeNew(tables, bytes);
  await tables.flush();
  await file.writeHeader({ snapshotsOffset, snapshotCount: snapshots.length });
  noteSnapshots(tables, { snapshots, lengthBytes: bytes.byteLength });
  await file.barrier();
  if (oldBytes > 0) tables.release(oldOffset, clustersOf(tables, oldBytes));
}

/** Writes the table of snapshots anew, with all fields that version 3 asks for. The image is clean, and nobody writes. */
export async function rewriteSnapshots(tables: WriteBack): Promise<void> {
  await writeTable(tables, await readSnapshots(tables.file.storage, tables.file.header));
}

/** What a tree of tables refers to: clusters in a row. */
type Places = AsyncGenerator<{ first: number; clusters: number }>;

/** Changes the counts of everything that can be reached from an L1 table. */
async function countTree(tables: WriteBack, l1: DataView, change: 1 | -1): Promise<void> {
  const { refcounts } = tables;
  let done = 0;
  try {
    for await (const { first, clusters } of placesIn(tables, l1)) {
      if (change === 1) await refcounts.add(first, clusters, 1);
      else tables.release(first * tables.file.clusterBytes, clusters);
      done++;
      await tables.relieve();
    }
  } catch (error) {
    // A count that can't be higher: the others are as they were before.
    if (change === 1 && tables.file.damage === null) await takeBack(tables, l1, done);
    throw error;
  }
}

/** Counts what a new L1 table refers to; takes the table back where that can't be. */
async function countNew(tables: WriteBack, l1: DataView, l1Offset: number, lengthBytes: number): Promise<void> {
  try {
    await countTree(tables, l1, 1);
  } catch (error) {
    await tables.giveBack(l1Offset, Math.max(1, clustersOf(tables, lengthBytes)));
    throw error;
  }
}

async function takeBack(tables: WriteBack, l1: DataView, count: number): Promise<void> {
  let left = count;
  for await (const { first, clusters } of placesIn(tables, l1)) {
    if (left-- === 0) return;
    await tables.refcounts.add(first, clusters, -1);
  }
}

async function* placesIn(tables: WriteBack, l1: DataView): Places {
  const { file, mapping } = tables;
  const { entry } = mapping;
  const { clusterBytes } = file;
  const table = new DataView(new ArrayBuffer(clusterBytes));
  for (let index = 0; index < l1.byteLength / 8; index++) {
    const offset = (l1.getUint32(index * 8) & OFFSET_HIGH_MASK) * 0x1_0000_0000 +
      ((l1.getUint32(index * 8 + 4) & OFFSET_LOW_MASK) >>> 0);
    if (offset === 0) continue;
    if (offset % clusterBytes !== 0 || offset + clusterBytes > file.endBytes) {
      throw corrupt(file.storage.name, "read", `Entry ${index} of an L1 table does not refer to a cluster`, offset);
    }
    // The image is clean, so what is in the file is what is in memory.
    await file.storage.read(offset, SegmentList.over(new Uint8Array(table.buffer)));
    yield { first: offset / clusterBytes, clusters: 1 };
    for (let at = 0; at < clusterBytes; at += mapping.entryBytes) {
      const kind = entry.read(table, at, 0);
      if (kind === CORRUPT) {
        const reason = `An entry of an L2 table ${entry.faultText()}`;
        throw corrupt(file.storage.name, "read", reason, offset + at);
      }
      if (kind === COMPRESSED) yield compressedClusters(entry, clusterBytes);
      else if (entry.placed) {
        // To count what is far behind the end would make tables for all that is between.
        if (entry.hostOffset >= file.endBytes) {
          throw corrupt(file.storage.name, "read", "An entry of an L2 table lies behind the end", offset + at);
        }
        yield { first: entry.hostOffset / clusterBytes, clusters: 1 };
      }
    }
  }
}

/** Makes the COPIED flags of the active tables agree with the counts, which are in the file. */
async function setCopiedFlags(tables: WriteBack): Promise<void> {
  const { mapping, refcounts, file } = tables;
  const { l1 } = mapping;
  for (let index = 0; index < l1.byteLength / 8; index++) {
    const offset = mapping.tableOffset(index);
    if (offset === 0) continue;
    tables.setTableCopied(index, await refcounts.get(offset / file.clusterBytes) === 1);
    const start = index * mapping.tableSpan;
    for (let at = start; at < start + mapping.tableSpan; at += mapping.sliceSpan) {
      await tables.relieve();
      await setSliceFlags(tables, at);
    }
  }
  await tables.flush();
}

async function setSliceFlags(tables: WriteBack, start: number): Promise<void> {
  const { mapping, refcounts, file } = tables;
  const key = start / mapping.sliceSpan;
  for (let at = start; at < start + mapping.sliceSpan; at += file.clusterBytes) {
    const place = mapping.inSlice(at);
    const kind = mapping.entry.read(mapping.cache.get(key) ?? await tables.slice(at), place, at);
    const { placed, copied, hostOffset } = mapping.entry;
    if (kind === COMPRESSED || kind === CORRUPT || !placed) continue;
    const cluster = hostOffset / file.clusterBytes;
    const isAlone = (refcounts.getCached(cluster) ?? await refcounts.get(cluster)) === 1;
    if (isAlone === copied) continue;
    const slice = await mapping.cache.dirty(key, mapping.sliceOffset(mapping.tableOffset(mapping.l1Index(at)), at));
    const high = slice.getUint32(place);
    slice.setUint32(place, isAlone ? high | COPIED_HIGH : high & ~COPIED_HIGH);
  }
}

function clustersOf(tables: WriteBack, lengthBytes: number): number {
  return Math.ceil(lengthBytes / tables.file.clusterBytes);
}

function refused(tables: WriteBack, reason: string): BlockError {
  return new BlockError({ kind: "invalid", path: tables.file.storage.name, operation: "write", reason });
}
