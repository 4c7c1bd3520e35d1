/**
 * Changes the size of a qcow2 image's disk.
 *
 * Growing: the L1 table grows first, then what must read as zeros is made so, and at last one sector of the header has
 * the new size. Shrinking: first the size changes, then the entries behind the new end go, then the file is cut; so a
 * crash leaves the old disk or the new one. What it leaves behind the end goes when the disk grows again.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import { SECTOR_BYTES } from "../image.ts";
import type { OldContents } from "./cluster_writer.ts";
import { UNALLOCATED, writeEntry, writeSubclusters } from "./l2_entry.ts";
import { L1_MAX_BYTES } from "./qcow2_layout.ts";
import type { WriteBack } from "./write_back.ts";
import type { Qcow2Writer } from "./writer.ts";

/**
 * Gives the disk another size, with the lock held and the image clean.
 *
 * @throws BlockError
 */
export async function resizeQcow2(writer: Qcow2Writer, old: OldContents, sizeBytes: number): Promise<void> {
  const { tables } = writer;
  const { file } = tables;
  const { header } = file;
  if (sizeBytes % SECTOR_BYTES !== 0) {
    throw refused(file.storage.name, `The new size must be a multiple of ${SECTOR_BYTES}`);
  }
  if (header.version < 3 && header.snapshotCount > 0) {
    throw refused(file.storage.name, "Can't resize a v2 image which has snapshots");
  }
  if (sizeBytes === header.sizeBytes) return;
  await tables.bitmaps?.beforeResize(file, sizeBytes);
  if (sizeBytes > header.sizeBytes) await grow(writer, old, sizeBytes);
  else await shrink(tables, sizeBytes);
}

async function grow(writer: Qcow2Writer, old: OldContents, sizeBytes: number): Promise<void> {
  const { tables } = writer;
  const { file } = tables;
  const { sizeBytes: before, externalDataRaw } = file.header;
  // The state of a virtual machine, or what somebody left when he shrank the disk, must not become a part of it.
  await dropFrom(tables, before);
  await growL1(tables, sizeBytes);
  if (externalDataRaw) {
    await file.data.truncate(sizeBytes);
    file.noteDataEnd(sizeBytes);
  }
  const clusterEnd = Math.ceil(before / file.clusterBytes) * file.clusterBytes;
  const hiddenEnd = old.isZeroBehind(before) ? clusterEnd : old.backingBytes;
  const end = Math.min(sizeBytes, Math.max(clusterEnd, hiddenEnd));
  if (end > before) await writer.zeros.zero(before, end - before, true, sizeBytes);
  await tables.flush();
  await file.writeHeader({ sizeBytes });
  tables.bitmaps?.resized(sizeBytes);
  await file.barrier();
}

/** A longer L1 table at another place, if it has to be longer. */
async function growL1(tables: WriteBack, sizeBytes: number): Promise<void> {
  const { file, mapping, refcounts } = tables;
  const { l1Entries: had, l1Offset: oldOffset } = file.header;
  const l1Entries = Math.ceil(sizeBytes / mapping.tableSpan);
  if (l1Entries <= had) return;
  if (l1Entries * 8 > L1_MAX_BYTES) {
    throw refused(file.storage.name, "Failed to grow the L1 table: File too large");
  }
  await tables.flush();
  await file.event("l1_grow_alloc_table");
  const clusters = (entries: number) => Math.ceil(entries * 8 / file.clusterBytes);
  const l1Offset = await refcounts.allocate(clusters(l1Entries));
  const bytes = new Uint8Array(clusters(l1Entries) * file.clusterBytes);
  bytes.set(new Uint8Array(mapping.l1.buffer, mapping.l1.byteOffset, had * 8));
  await file.write("active L1 table", l1Offset, bytes);
  // The counts of its clusters first, then what refers to it.
  await tables.flush();
  await file.writeHeader({ l1Offset, l1Entries });
  // Memory follows the header, whether the barrier succeeds or not.
  mapping.resizeL1(new DataView(bytes.buffer, 0, l1Entries * 8), l1Offset);
  tables.noteTables();
  await file.barrier();
  if (had > 0) tables.release(oldOffset, clusters(had));
}

async function shrink(tables: WriteBack, sizeBytes: number): Promise<void> {
  const { file } = tables;
  await file.writeHeader({ sizeBytes });
  tables.bitmaps?.resized(sizeBytes);
  await file.barrier();
  await dropFrom(tables, sizeBytes);
  if (file.header.externalDataRaw) await file.data.truncate(sizeBytes);
  await tables.finish();
  await tables.cut();
}

/** Gives up all clusters that lie behind the one that `sizeBytes` ends in. */
async function dropFrom(tables: WriteBack, sizeBytes: number): Promise<void> {
  const { file, mapping } = tables;
  const start = Math.ceil(sizeBytes / file.clusterBytes) * file.clusterBytes;
  const entries = file.header.l1Entries;
  const firstWhole = Math.ceil(start / mapping.tableSpan);
  const end = Math.min(firstWhole, entries) * mapping.tableSpan;
  if (start < end && mapping.tableOffset(mapping.l1Index(start)) !== 0) {
    for (let at = start; at < end; at += file.clusterBytes) await dropCluster(tables, at);
  }
  for (let index = firstWhole; index < entries; index++) {
    if (mapping.tableOffset(index) === 0) continue;
    await tables.relieve();
    await tables.dropTable(index);
  }
}

async function dropCluster(tables: WriteBack, at: number): Promise<void> {
  const { mapping } = tables;
  for (let miss = mapping.lookup(at, 1); miss !== undefined; miss = mapping.lookup(at, 1)) await miss;
  if (mapping.kind === UNALLOCATED && !mapping.entry.placed) return;
  await tables.relieve();
  const slice = await tables.tableFor(at);
  const place = mapping.inSlice(at);
  tables.releasePlace(mapping.entry.read(slice, place, at));
  writeEntry(slice, place, 0, false, false);
  if (mapping.subclusters > 1) writeSubclusters(slice, place, 0, 0);
}

function refused(path: string, reason: string): BlockError {
  return new BlockError({ kind: "invalid", path, operation: "resize", reason });
}
