/**
 * Repairs a qcow2 image as `qemu-img check -r` does.
 *
 * The order of writes, with a barrier after each step, so that a crash leaves nothing worse than it was:
 *
 * 1. Refcounts that are too low are raised; or all are written anew, and then the header points to them.
 * 2. COPIED flags that should not be there are cleared, while the refcounts are still high enough to forbid writing.
 * 3. Refcounts that are too high are lowered: only now does nobody refer to what becomes free.
 * 4. COPIED flags that should be there are set.
 * 5. The snapshot table is written anew where an entry needs it: table, refcounts, header, and its old place is freed.
 * 6. The dirty and the corrupt bit go, when nothing is wrong any more.
 *
 * @module
 */

import { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import { checkCopied } from "./check_copied.ts";
import { type Change, refuseRebuild, reportDifferences, StoredRefcounts } from "./check_refcounts.ts";
import { CheckFailure, type CheckOptions, type CheckReport, Findings } from "./check_report.ts";
import { readSnapshotTable, type SnapshotTable } from "./check_snapshots.ts";
import { reportOf, type Survey, survey, type SurveyOptions } from "./check_survey.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import { MetadataMap } from "./metadata_map.ts";
import { HEADER, INCOMPATIBLE } from "./qcow2_layout.ts";
import { patchHeader } from "./repair_header.ts";
import { rebuildRefcounts } from "./repair_rebuild.ts";
import { dropSnapshots, rewriteSnapshots } from "./repair_snapshots.ts";

/** What to repair: lost space only, or whatever can be. */
export type RepairKind = "leaks" | "all";

/**
 * Repairs an image that nobody has open. The header in the file may be another afterwards.
 *
 * @returns what was found and fixed; a check afterwards says what is left
 * @throws BlockError when the storage fails
 */
export async function repairQcow2(
  storage: Storage,
  header: Qcow2Header,
  kind: RepairKind,
  options: CheckOptions = {},
): Promise<CheckReport> {
  const findings = new Findings(options.onFinding);
  const repair = new Repair(storage, header, kind, findings, options);
  try {
    return reportOf(repair.header, findings, await repair.run(), null);
  } catch (error) {
    if (!(error instanceof CheckFailure)) throw error;
    return reportOf(repair.header, findings, null, error.message);
  }
}

/**
 * Repairs an image whose dirty bit says that refcounts may be wrong: to be called before it is written to.
 *
 * @returns the header that is in the file now
 * @throws BlockError when it can't be repaired
 */
export async function repairDirty(storage: Storage, header: Qcow2Header): Promise<Qcow2Header> {
  const { failure, checkErrors } = await repairQcow2(storage, header, "all");
  if (failure !== null || checkErrors > 0) {
    throw new BlockError({
      kind: "corrupt",
      path: storage.name,
      operation: "open",
      reason: `Could not repair dirty image: ${failure ?? "Input/output error"}`,
      hint: "'vblk check' tells how much of the image is damaged",
    });
  }
  const repaired = await readHeader(storage);
  if (!repaired.dirty) return repaired;
  throw new BlockError({
    kind: "corrupt",
    path: storage.name,
    operation: "open",
    reason: "Could not repair dirty image: some damage can't be repaired",
    hint: "'vblk check' tells how much of the image is damaged",
  });
}

class Repair {
  header: Qcow2Header;
  readonly #storage: Storage;
  readonly #all: boolean;
  readonly #findings: Findings;
  readonly #options: CheckOptions;

  constructor(storage: Storage, header: Qcow2Header, kind: RepairKind, findings: Findings, options: CheckOptions) {
    this.#storage = storage;
    this.header = header;
    this.#all = kind === "all";
    this.#findings = findings;
    this.#options = options;
  }

  async run(): Promise<Survey> {
    const findings = this.#findings;
    const snapshots = await readSnapshotTable(this.#storage, this.header, findings, this.#all);
    if (snapshots.dropped > 0) {
      this.header = await dropSnapshots(this.#storage, this.header, snapshots, findings);
    }
    const ofSnapshots = findings.corruptions;
    findings.corruptions = 0;
    const surveyed = await this.#refcounts(snapshots);
    findings.corruptions += ofSnapshots;
    if (this.#all && snapshots.mustRewrite) {
      await this.#rewrite(snapshots, surveyed);
      findings.corruptions -= ofSnapshots;
      findings.corruptionsFixed += ofSnapshots;
    }
    await this.#storage.flush();
    if (findings.checkErrors === 0 && findings.corruptions === 0) await this.#markClean();
    return surveyed;
  }

  async #refcounts(snapshots: SnapshotTable): Promise<Survey> {
    const findings = this.#findings;
    const surveyed = await survey(await this.#surveyOptions(snapshots, this.#all));
    const { references, stored } = surveyed;
    await stored.sweep(references, findings, reportDifferences(findings));
    if (stored.mustRebuild) {
      if (!this.#all) refuseRebuild(findings);
      return await this.#rebuild(snapshots, surveyed);
    }
    if (this.#all) await this.#mend(surveyed);
    else await this.#mendLeaks(snapshots, surveyed);
    return surveyed;
  }

  /** Refcounts that are there, but wrong: steps 1 to 4. */
  async #mend(surveyed: Survey): Promise<void> {
    const { context, references, stored } = surveyed;
    const findings = this.#findings;
    const wrong = findings.leaks + findings.corruptions > 0;
    if (wrong) {
      await stored.sweep(references, findings, (cluster, refcount, wanted) => {
        findings.say(`Repairing cluster ${cluster} refcount=${refcount} reference=${wanted}`);
        if (refcount > wanted) return refcount;
        findings.corruptions--;
        findings.corruptionsFixed++;
        return wanted;
      });
      await this.#storage.flush();
    }
    const final = (cluster: number) =>
      cluster < references.clusterCount ? references.counts.get(cluster) : stored.get(cluster, references);
    await checkCopied(context, final, "clear");
    await this.#storage.flush();
    if (findings.leaks > 0) {
      await stored.sweep(references, findings, lower(findings));
      await this.#storage.flush();
    }
    await checkCopied(context, (cluster) => stored.get(cluster, references), "set");
    await this.#storage.flush();
  }

  /** Only refcounts that are too high; and flags where there is nothing else that they could depend on. */
  async #mendLeaks(snapshots: SnapshotTable, { context, references, stored }: Survey): Promise<void> {
    const findings = this.#findings;
    if (findings.leaks + findings.corruptions > 0) {
      const lowered = lower(findings);
      await stored.sweep(references, findings, (cluster, refcount, wanted) => {
        const repairs = refcount > wanted;
        const what = repairs ? "Repairing" : "ERROR";
        findings.say(`${what} cluster ${cluster} refcount=${refcount} reference=${wanted}`);
        return repairs ? lowered(cluster, refcount, wanted) : refcount;
      });
      await this.#storage.flush();
    }
    const refcountOf = (cluster: number) => stored.get(cluster, references);
    if (findings.checkErrors + findings.corruptions + findings.leaks > 0) {
      return await checkCopied(context, refcountOf, "none");
    }
    const into = await this.#metadataOf(snapshots, stored);
    await checkCopied({ ...context, repairInto: into }, refcountOf, "clear");
    await this.#storage.flush();
    await checkCopied({ ...context, repairInto: into }, refcountOf, "set");
    await this.#storage.flush();
  }

  async #rebuild(snapshots: SnapshotTable, { references }: Survey): Promise<Survey> {
    const findings = this.#findings;
    const { corruptions, leaks } = findings;
    findings.say("Rebuilding refcount structure");
    this.header = await rebuildRefcounts(this.#storage, this.header, references, findings);
    findings.corruptions = 0;
    findings.leaks = 0;
    // What could not be read was the refcounts; these are others.
    findings.checkErrors = 0;
    const surveyed = await survey(await this.#surveyOptions(snapshots, false));
    await this.#freeLeaks(surveyed);
    findings.corruptionsFixed += Math.max(0, corruptions - findings.corruptions);
    findings.leaksFixed += leaks;
    const { context, stored } = surveyed;
    const refcountOf = (cluster: number) => stored.get(cluster, surveyed.references);
    const fixing = { ...context, repairInto: await this.#metadataOf(snapshots, stored) };
    await checkCopied(fixing, refcountOf, "clear");
    await this.#storage.flush();
    await checkCopied(fixing, refcountOf, "set");
    await this.#storage.flush();
    return surveyed;
  }

  /** Gives back what the repair itself has leaked; that counts as nothing. */
  async #freeLeaks({ references, stored }: Survey): Promise<void> {
    const findings = this.#findings;
    await stored.sweep(references, findings, (cluster, refcount, wanted) => {
      const low = refcount < wanted;
      findings.say(`${low ? "ERROR" : "Repairing"} cluster ${cluster} refcount=${refcount} reference=${wanted}`);
      if (low) findings.corruptions++;
      return low ? refcount : wanted;
    });
    await this.#storage.flush();
  }

  async #rewrite(snapshots: SnapshotTable, surveyed: Survey): Promise<void> {
    const findings = this.#findings;
    this.header = await rewriteSnapshots(this.#storage, this.header, snapshots, surveyed, findings);
    // The old place, and whatever had to move, is found as leaked; what is damaged beyond repair was counted already.
    const counted = new Findings();
    const table = await readSnapshotTable(this.#storage, this.header, counted, false);
    const options = await this.#surveyOptions(table, false);
    const { references, stored } = await survey({ ...options, findings: counted });
    await stored.sweep(references, counted, (_cluster, refcount, wanted) => Math.min(refcount, wanted));
  }

  async #surveyOptions(snapshots: SnapshotTable, repairing: boolean): Promise<SurveyOptions> {
    const { onProgress } = this.#options;
    const repairInto = repairing ? await this.#metadataOf(snapshots, null) : null;
    return {
      storage: this.#storage,
      header: this.header,
      snapshots,
      findings: this.#findings,
      repairInto,
      onProgress,
    };
  }

  /** Where entries must not be written, whatever the tables say. */
  async #metadataOf(snapshots: SnapshotTable, known: StoredRefcounts | null): Promise<MetadataMap> {
    const { header } = this;
    const stored = known ?? await StoredRefcounts.open(this.#storage, header);
    const clusterBytes = 2 ** header.clusterBits;
    const map = new MetadataMap(clusterBytes);
    const refcountBytes = header.refcountTableClusters * clusterBytes;
    map.setRanges("qcow2_header", [{ offset: 0, lengthBytes: clusterBytes }]);
    map.setRanges("active L1 table", [{ offset: header.l1Offset, lengthBytes: header.l1Entries * 8 }]);
    map.setRanges("refcount table", [{ offset: header.refcountTableOffset, lengthBytes: refcountBytes }]);
    map.setTables("refcount block", Float64Array.from(stored.blocks));
    map.setRanges("snapshot table", [snapshots]);
    const inactive = snapshots.entries.map(({ l1Offset, l1Entries }) => ({
      offset: l1Offset,
      lengthBytes: l1Entries * 8,
    }));
    map.setRanges("inactive L1 table", inactive);
    return map;
  }

  async #markClean(): Promise<void> {
    const { dirty, corrupt, version } = this.header;
    if (version < 3 || !(dirty || corrupt)) return;
    const incompatible = this.header.incompatible & ~(INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt);
    await patchHeader(this.#storage, (view) => view.setBigUint64(HEADER.incompatibleFeatures, incompatible));
    await this.#storage.flush();
    this.header = { ...this.header, incompatible, dirty: false, corrupt: false };
  }
}

/** Lowers what is too high, and counts it as fixed. */
function lower(findings: Findings): Change {
  return (_cluster, refcount, wanted) => {
    if (refcount < wanted) return refcount;
    findings.leaks--;
    findings.leaksFixed++;
    return wanted;
  };
}
