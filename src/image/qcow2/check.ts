/**
 * Checks a qcow2 image as `qemu-img check` does: counts the references to every cluster of the file, and compares them
 * with the refcounts (QEMU's docs/interop/qcow2, "Refcount handling") and with the COPIED flags.
 *
 * Nothing is changed. Backing and data files are not looked at.
 *
 * @module
 */

import type { Storage } from "../../storage/storage.ts";
import { checkCopied } from "./check_copied.ts";
import { reportDifferences } from "./check_refcounts.ts";
import { CheckFailure, type CheckOptions, type CheckReport, Findings } from "./check_report.ts";
import { readSnapshotTable } from "./check_snapshots.ts";
import { reportOf, type Survey, survey } from "./check_survey.ts";
import type { Qcow2Header } from "./header.ts";

export type { CheckOptions, CheckReport } from "./check_report.ts";

/**
 * Checks an image.
 *
 * Takes 4 to 8 bytes of memory for each cluster that is in use, whatever the tables claim.
 *
 * @param header as `readHeader` gives it, with `forCheck` for an image that can't be opened otherwise
 * @returns also when the image is so damaged that the check could not be finished: `failure` says why
 * @throws BlockError when the storage fails, or the image is made to keep a check busy forever
 */
export async function checkQcow2(
  storage: Storage,
  header: Qcow2Header,
  options: CheckOptions = {},
): Promise<CheckReport> {
  const findings = new Findings(options.onFinding);
  let surveyed: Survey | null = null;
  try {
    const snapshots = await readSnapshotTable(storage, header, findings, false);
    const { onProgress } = options;
    const found = await survey({ storage, header, snapshots, findings, repairInto: null, onProgress });
    const { context, references, stored } = found;
    await stored.sweep(references, findings, reportDifferences(findings));
    await checkCopied(context, (cluster) => stored.get(cluster, references), "none", stored.matches);
    surveyed = found;
  } catch (error) {
    if (!(error instanceof CheckFailure)) throw error;
    return reportOf(header, findings, null, error.message);
  }
  return reportOf(header, findings, surveyed, null);
}
