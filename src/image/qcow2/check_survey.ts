/**
 * Counts all references in an image: the first half of a check, and of a repair.
 *
 * @module
 */

import type { Storage } from "../../storage/storage.ts";
import { walkBitmaps } from "./check_bitmaps.ts";
import { StoredRefcounts } from "./check_refcounts.ts";
import { References, WorkBudget } from "./check_references.ts";
import type { CheckReport, Findings } from "./check_report.ts";
import { type SnapshotTable, snapshotText } from "./check_snapshots.ts";
import type { AllocationStatistics, WalkContext } from "./check_l2.ts";
import { type L1Place, walkL1Tables } from "./check_tables.ts";
import type { Qcow2Header } from "./header.ts";
import type { MetadataMap } from "./metadata_map.ts";
import { EXTENSION, L1_MAX_BYTES } from "./qcow2_layout.ts";
import { refcountEntries } from "./refcount_entry.ts";

/** What was counted, and what it is to be compared with. */
export interface Survey {
  readonly context: WalkContext;
  readonly references: References;
  readonly stored: StoredRefcounts;
  readonly statistics: AllocationStatistics;
}

/** What a survey needs to know. */
export interface SurveyOptions {
  readonly storage: Storage;
  readonly header: Qcow2Header;
  readonly snapshots: SnapshotTable;
  readonly findings: Findings;
  /** `null` when nothing is to be changed. */
  readonly repairInto: MetadataMap | null;
  readonly onProgress?: (part: number) => void;
}

/**
 * Walks everything that refers to clusters.
 *
 * @throws CheckFailure when the rest would make no sense; BlockError
 */
export async function survey(options: SurveyOptions): Promise<Survey> {
  const { storage, header, snapshots, findings } = options;
  const fileBytes = storage.sizeBytes;
  const { max } = refcountEntries(header.refcountBits);
  const references = new References(fileBytes, 2 ** header.clusterBits, max, findings);
  const context: WalkContext = { ...options, references, budget: new WorkBudget(fileBytes, storage.name) };
  const statistics = { allocatedClusters: 0, compressedClusters: 0, fragmentedClusters: 0 };
  references.add(0, references.clusterBytes);
  await walkL1Tables(context, [{ offset: header.l1Offset, entries: header.l1Entries }], statistics);
  await walkL1Tables({ ...context, onProgress: undefined }, snapshotTables(snapshots, context), null);
  references.add(snapshots.offset, snapshots.lengthBytes);
  references.add(header.refcountTableOffset, header.refcountTableClusters * references.clusterBytes);
  const encryption = header.extensions.find(({ type }) => type === EXTENSION.encryption)?.data;
  if (encryption?.byteLength === 16) {
    const view = new DataView(encryption.buffer, encryption.byteOffset, encryption.byteLength);
    references.add(Number(view.getBigUint64(0)), Number(view.getBigUint64(8)));
  }
  if (header.bitmaps !== null) await walkBitmaps(context, header.bitmaps);
  const stored = await StoredRefcounts.open(storage, header);
  stored.checkBlocks(references, findings, options.repairInto !== null);
  return { context, references, stored, statistics };
}

/** The L1 tables of snapshots. */
function snapshotTables({ entries }: SnapshotTable, { header, findings, references }: WalkContext): L1Place[] {
  if (header.externalData && entries.length > 0) {
    findings.corruption(`ERROR ${entries.length} snapshots in image with data file`);
  }
  return entries.map(({ id, name, l1Offset, l1Entries }) => {
    const place = { offset: l1Offset, entries: l1Entries };
    const who = () => `ERROR snapshot ${snapshotText(id)} (${snapshotText(name)})`;
    if (l1Offset % references.clusterBytes !== 0) {
      const where = `l1_offset=0x${BigInt(l1Offset).toString(16)}`;
      return { ...place, fault: `${who()} ${where}: L1 table is not cluster aligned; snapshot table entry corrupted` };
    }
    if (l1Entries > L1_MAX_BYTES / 8) {
      const size = `l1_size=0x${l1Entries.toString(16)}`;
      return { ...place, fault: `${who()} ${size}: L1 table is too large; snapshot table entry corrupted` };
    }
    return place;
  });
}

/** The report of what has been found so far. */
export function reportOf(
  header: Qcow2Header,
  findings: Findings,
  surveyed: Survey | null,
  failure: string | null,
): CheckReport {
  const clusterBytes = 2 ** header.clusterBits;
  const { checkErrors, corruptions, leaks, corruptionsFixed, leaksFixed } = findings;
  const statistics = surveyed?.statistics;
  return {
    checkErrors,
    corruptions,
    leaks,
    corruptionsFixed,
    leaksFixed,
    imageEndOffset: surveyed === null ? 0 : (surveyed.stored.highestCluster + 1) * clusterBytes,
    totalClusters: Math.ceil(header.sizeBytes / clusterBytes),
    allocatedClusters: statistics?.allocatedClusters ?? 0,
    compressedClusters: statistics?.compressedClusters ?? 0,
    fragmentedClusters: statistics?.fragmentedClusters ?? 0,
    findings: findings.lines,
    findingsLeftOut: findings.leftOut,
    failure,
  };
}
