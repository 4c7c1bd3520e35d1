/**
 * Repairs of the snapshot table: entries that are too many, and entries that have to be written anew.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import type { StoredRefcounts } from "./check_refcounts.ts";
import type { References } from "./check_references.ts";
import type { Findings } from "./check_report.ts";
import { encodeSnapshotTable, type SnapshotTable } from "./check_snapshots.ts";
import type { Survey } from "./check_survey.ts";
import type { Qcow2Header } from "./header.ts";
import { HEADER } from "./qcow2_layout.ts";
import { patchHeader } from "./repair_header.ts";
import { rebuildRefcounts } from "./repair_rebuild.ts";

/** Has the header count only the entries that were read. Their clusters are leaked, and given back later. */
export async function dropSnapshots(
  storage: Storage,
  header: Qcow2Header,
  { entries, dropped }: SnapshotTable,
  findings: Findings,
): Promise<Qcow2Header> {
  await patchHeader(storage, (view) => view.setUint32(HEADER.nbSnapshots, entries.length));
  await storage.flush();
  findings.corruptions -= dropped;
  findings.corruptionsFixed += dropped;
  return { ...header, snapshotCount: entries.length };
}

/**
 * Writes the table to a new place, after the refcounts have been repaired: table and refcounts first, then the header,
 * then the old place is given back.
 *
 * @returns the header that is in the file now
 */
export async function rewriteSnapshots(
  storage: Storage,
  header: Qcow2Header,
  table: SnapshotTable,
  { references, stored }: Survey,
  findings: Findings,
): Promise<Qcow2Header> {
  const { clusterBytes } = references;
  const bytes = encodeSnapshotTable(table.entries, header.sizeBytes);
  const clusters = Math.ceil(bytes.byteLength / clusterBytes);
  let changed = header;
  const place = await findFree(references, stored, clusters);
  const first = place ?? references.clusterCount;
  const whole = new Uint8Array(clusters * clusterBytes);
  whole.set(bytes);
  await storage.write(first * clusterBytes, SegmentList.over(whole));
  for (let i = 0; i < clusters; i++) {
    references.addCluster(first + i, 1);
    if (place !== null) await stored.set(first + i, 1);
  }
  // No block has room for it: that is rare enough for writing all of them.
  if (place === null) changed = await rebuildRefcounts(storage, header, references, findings);
  await storage.flush();
  await patchHeader(storage, (view) => {
    view.setUint32(HEADER.nbSnapshots, table.entries.length);
    view.setBigUint64(HEADER.snapshotsOffset, BigInt(first * clusterBytes));
  });
  await storage.flush();
  return { ...changed, snapshotCount: table.entries.length, snapshotsOffset: first * clusterBytes };
}

/** Free clusters that follow each other and have a refcount; `null` when there are none. */
async function findFree(references: References, stored: StoredRefcounts, clusters: number): Promise<number | null> {
  let found = 0;
  for (let cluster = 1; cluster < references.clusterCount + clusters; cluster++) {
    const free = stored.covers(cluster) && references.counts.get(cluster) === 0 &&
      await stored.get(cluster, references) === 0;
    found = free ? found + 1 : 0;
    if (found === clusters) return cluster - clusters + 1;
  }
  return null;
}
