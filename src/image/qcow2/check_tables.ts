/**
 * Walks L1 tables and counts what they refer to, by way of their L2 tables (QEMU's docs/interop/qcow2, "Cluster mapping").
 *
 * A table that several entries refer to is read once, and what it says counts for each of them: otherwise an L1 table
 * full of references to one L2 table would take hours.
 *
 * @module
 */

import { type AllocationStatistics, hex64, L2Walk, offsetOf, type WalkContext } from "./check_l2.ts";
import { ClusterCounts, readPadded, type References, type WorkBudget } from "./check_references.ts";
import type { Findings } from "./check_report.ts";
import { L1_RESERVED_HIGH, L1_RESERVED_LOW } from "./qcow2_layout.ts";

/** Where an L1 table is. */
export interface L1Place {
  readonly offset: number;
  readonly entries: number;
  /** Why it can't be there: then it is reported, and not walked. */
  readonly fault?: string;
}

/** How often L2 tables are referred to, by where they are. */
export class TableUses {
  readonly #aligned = new ClusterCounts();
  readonly #unaligned = new Map<number, number>();
  readonly #clusterBytes: number;
  readonly #fileBytes: number;
  readonly #budget: WorkBudget;

  constructor(references: References, budget: WorkBudget) {
    this.#clusterBytes = references.clusterBytes;
    this.#fileBytes = references.fileBytes;
    this.#budget = budget;
  }

  add(offset: number): void {
    // Behind the end of the file everything reads as zeros, and there is nothing to be walked.
    if (offset >= this.#fileBytes) return;
    const cluster = offset / this.#clusterBytes;
    if (Number.isInteger(cluster)) this.#aligned.pageFor(cluster)[cluster & 0xffff]++;
    else this.#addUnaligned(offset);
  }

  /** How often a table is used when it is asked for first; 0 from then on, and when it need not be walked. */
  take(offset: number): number {
    if (offset >= this.#fileBytes) return 0;
    const cluster = offset / this.#clusterBytes;
    if (!Number.isInteger(cluster)) {
      const uses = this.#unaligned.get(offset) ?? 0;
      this.#unaligned.set(offset, 0);
      return uses;
    }
    const page = this.#aligned.pageFor(cluster);
    const uses = page[cluster & 0xffff];
    page[cluster & 0xffff] = 0;
    return uses;
  }

  #addUnaligned(offset: number): void {
    const uses = this.#unaligned.get(offset) ?? 0;
    if (uses === 0) this.#budget.spend(this.#clusterBytes / 8);
    this.#unaligned.set(offset, uses + 1);
  }
}

const L1_CHUNK_BYTES = 1 << 20;

/** Calls `visit` with a part of an L1 table after the other; what is behind the file's end is zeros, and left out. */
export async function readL1(
  { storage, references: { fileBytes } }: Pick<WalkContext, "storage" | "references">,
  { offset, entries }: L1Place,
  visit: (view: DataView, count: number, first: number) => void | Promise<void>,
): Promise<void> {
  const end = Math.min(offset + entries * 8, Math.ceil(fileBytes / 8) * 8);
  const bytes = new Uint8Array(Math.max(0, Math.min(L1_CHUNK_BYTES, end - offset)));
  const view = new DataView(bytes.buffer);
  for (let at = offset; at < end;) {
    const take = Math.min(bytes.byteLength, end - at);
    await readPadded(storage, fileBytes, at, bytes.subarray(0, take));
    await visit(view, take / 8, (at - offset) / 8);
    at += take;
  }
}

/**
 * Counts all that L1 tables refer to, and their own clusters.
 *
 * @param statistics of the active table; `null` for those of snapshots
 * @throws CheckFailure, BlockError
 */
export async function walkL1Tables(
  context: WalkContext,
  tables: readonly L1Place[],
  statistics: AllocationStatistics | null,
): Promise<void> {
  const { references, findings, budget, onProgress } = context;
  const uses = new TableUses(references, budget);
  for (const table of tables) {
    if (table.fault !== undefined) continue;
    budget.spend(Math.max(0, Math.min(table.entries, (references.fileBytes - table.offset) / 8)));
    await readL1(context, table, (view, count) => {
      for (let at = 0; at < count * 8; at += 8) {
        const high = view.getUint32(at);
        const low = view.getUint32(at + 4);
        if (high !== 0 || low !== 0) uses.add(offsetOf(high, low));
      }
    });
  }
  const walk = new L2Walk(context, statistics);
  /** Lines about tables that are used again. */
  const said = new Map<number, readonly string[]>();
  for (const table of tables) {
    if (table.fault !== undefined) {
      findings.corruption(table.fault);
      continue;
    }
    references.add(table.offset, table.entries * 8);
    await readL1(context, table, async (view, count, first) => {
      for (let i = 0; i < count; i++) {
        const high = view.getUint32(i * 8);
        const low = view.getUint32(i * 8 + 4);
        if (high === 0 && low === 0) continue;
        const offset = checkL1Entry(high, low, references, findings);
        const times = uses.take(offset);
        if (times === 0) said.get(offset)?.forEach((line) => findings.say(line));
        else await walkOnce(walk, offset, times, findings, said);
      }
      onProgress?.((first + count) / table.entries);
    });
  }
}

function checkL1Entry(high: number, low: number, references: References, findings: Findings): number {
  if ((high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0) {
    findings.corruption(`ERROR found L1 entry with reserved bits set: ${hex64(high, low)}`);
  }
  const offset = offsetOf(high, low);
  references.add(offset, references.clusterBytes);
  if (offset % references.clusterBytes !== 0) {
    findings.corruption(
      `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
    );
  }
  return offset;
}

async function walkOnce(
  walk: L2Walk,
  offset: number,
  times: number,
  findings: Findings,
  said: Map<number, readonly string[]>,
): Promise<void> {
  if (times === 1) return await walk.table(offset, 1);
  findings.captured = [];
  try {
    await walk.table(offset, times);
    if (findings.captured.length > 0) said.set(offset, findings.captured);
  } finally {
    findings.captured = null;
  }
}
