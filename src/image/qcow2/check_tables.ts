/**
 * Walks L1 and L2 tables and counts what they refer to (QEMU's docs/interop/qcow2, "Cluster mapping").
 *
 * A table that several entries refer to is read once, and what it says counts for each of them: otherwise an L1 table
 * full of references to one L2 table would take hours.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { ClusterCounts, readPadded, type References, type WorkBudget } from "./check_references.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import type { Qcow2Header } from "./header.ts";
import type { MetadataMap } from "./metadata_map.ts";
import {
  COPIED_HIGH,
  L1_RESERVED_HIGH,
  L1_RESERVED_LOW,
  L2_COMPRESSED_HIGH,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
  L2_ZERO_LOW,
  OFFSET_HIGH_MASK,
  OFFSET_LOW_MASK,
} from "./qcow2_layout.ts";

/** Where an L1 table is. */
export interface L1Place {
  readonly offset: number;
  readonly entries: number;
  /** Why it can't be there: then it is reported, and not walked. */
  readonly fault?: string;
}

/** What the active tables say of the disk's clusters. */
export interface AllocationStatistics {
  allocatedClusters: number;
  compressedClusters: number;
  fragmentedClusters: number;
}

/** An entry as QEMU prints it. */
export function hex64(high: number, low: number): string {
  return ((BigInt(high >>> 0) << 32n) | BigInt(low >>> 0)).toString(16);
}

/** The offset in an L1 or L2 entry. A multiple of 512, so it is exact even where it is above 2^53. */
export function offsetOf(high: number, low: number): number {
  return (high & OFFSET_HIGH_MASK) * 0x1_0000_0000 + ((low & OFFSET_LOW_MASK) >>> 0);
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

/** What is known when tables are walked. */
export interface WalkContext {
  readonly storage: Storage;
  readonly header: Qcow2Header;
  readonly references: References;
  readonly findings: Findings;
  readonly budget: WorkBudget;
  /** When entries are to be repaired: where they must not be written. */
  readonly repairInto: MetadataMap | null;
  readonly onProgress?: (part: number) => void;
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

const NO_PAGE = new Uint32Array(0);

/** Walks one L2 table after the other. */
class L2Walk {
  readonly #context: WalkContext;
  readonly #statistics: AllocationStatistics | null;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #entryBytes: number;
  /** Of compressed entries, in the high half: bits of the offset, and where the number of sectors is. */
  readonly #sectorsShift: number;
  /** Entries to be cleared, by their place in the table. */
  readonly #broken: number[] = [];

  constructor(context: WalkContext, statistics: AllocationStatistics | null) {
    const { header } = context;
    this.#context = context;
    this.#statistics = statistics;
    this.#bytes = new Uint8Array(2 ** header.clusterBits);
    this.#view = new DataView(this.#bytes.buffer);
    this.#entryBytes = header.extendedL2 ? 16 : 8;
    this.#sectorsShift = 62 - (header.clusterBits - 8) - 32;
  }

  /** Counts what a table refers to, `times` for each reference to the table. */
  async table(offset: number, times: number): Promise<void> {
    const { storage, references } = this.#context;
    await readPadded(storage, references.fileBytes, offset, this.#bytes);
    this.#entries(times);
    if (this.#broken.length > 0) await this.#clearBroken(offset, times);
  }

  #entries(times: number): void {
    const { header: { externalData, extendedL2, clusterBits }, references, findings } = this.#context;
    const { clusterBytes, counts, max } = references;
    const view = this.#view;
    const step = this.#entryBytes;
    const highUnit = 2 ** (32 - clusterBits);
    const unalignedLow = OFFSET_LOW_MASK & (clusterBytes - 1);
    const wholeClusters = Math.floor(references.fileBytes / clusterBytes);
    let allocated = 0;
    let fragmented = 0;
    // In clusters, as is everything here: most of a check's time goes by in this loop.
    let next = 0;
    let pageNumber = -1;
    let page: Uint32Array = NO_PAGE;
    for (let at = 0; at < clusterBytes; at += step) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if (high === 0 && low === 0 && !extendedL2) continue;
      if ((high & L2_COMPRESSED_HIGH) !== 0) {
        this.#compressed(at, high, low, times);
        continue;
      }
      if ((high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0) {
        findings.corruption(`ERROR found l2 entry with reserved bits set: ${hex64(high, low)}`, times);
      }
      let place = (high & OFFSET_HIGH_MASK) * highUnit + (low >>> clusterBits);
      const aligned = (low & unalignedLow) === 0;
      if (place === 0 && aligned && !(externalData && isNormal(high, low, extendedL2))) {
        if (extendedL2) this.#unallocated(at, times);
        continue;
      }
      if (extendedL2) this.#subclusters(at, offsetOf(high, low), times);
      if (!aligned) {
        if (this.#unaligned(at, offsetOf(high, low), low, times)) continue;
        place = offsetOf(high, low) / clusterBytes;
      }
      allocated++;
      if (next !== 0 && place !== next) fragmented++;
      next = place + 1;
      if (externalData) continue;
      if (!aligned || place >= wholeClusters) {
        references.add(offsetOf(high, low), clusterBytes, times);
        continue;
      }
      if (place >>> 16 !== pageNumber) {
        page = counts.pageFor(place);
        pageNumber = place >>> 16;
      }
      const count = page[place & 0xffff] + times;
      if (count <= max) page[place & 0xffff] = count;
      else references.addCluster(place, times);
    }
    if (this.#statistics === null) return;
    this.#statistics.allocatedClusters += allocated * times;
    this.#statistics.fragmentedClusters += fragmented * times;
  }

  #compressed(at: number, high: number, low: number, times: number): void {
    const { header: { externalData, extendedL2 }, references, findings } = this.#context;
    const offsetHigh = high & (2 ** this.#sectorsShift - 1);
    const shown = high & 0x7fffffff;
    if ((high & COPIED_HIGH) !== 0) {
      const offset = hex64(offsetHigh, low);
      findings.corruption(
        `ERROR: coffset=0x${offset}: copied flag must never be set for compressed clusters`,
        times,
      );
    }
    const index = at / this.#entryBytes;
    const entry = `entry=0x${hex64(shown, low)}`;
    if (externalData) {
      return findings.corruption(`ERROR compressed cluster ${index} with data file, ${entry}`, times);
    }
    if (extendedL2 && (this.#view.getUint32(at + 8) !== 0 || this.#view.getUint32(at + 12) !== 0)) {
      return findings.corruption(
        `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, ${entry}`,
        times,
      );
    }
    const sectors = ((high & 0x3fffffff) >>> this.#sectorsShift) + 1;
    const lengthBytes = sectors * 512 - low % 512;
    // Above 2^53 no number holds the offset, which is far behind the end of any file.
    if (offsetHigh >= 2 ** 21) references.behindEnd(hex64(offsetHigh, low), lengthBytes, times);
    else references.add(offsetHigh * 0x1_0000_0000 + low, lengthBytes, times);
    if (this.#statistics === null) return;
    this.#statistics.allocatedClusters += times;
    this.#statistics.compressedClusters += times;
    // As in QEMU: two of them share a sector, so one can't be read without a part of the other.
    this.#statistics.fragmentedClusters += times;
  }

  #unallocated(at: number, times: number): void {
    if (this.#view.getUint32(at + 12) === 0) return;
    this.#context.findings.corruption("ERROR: Unallocated cluster has non-zero subcluster allocation map", times);
  }

  #subclusters(at: number, offset: number, times: number): void {
    if ((this.#view.getUint32(at + 8) & this.#view.getUint32(at + 12)) === 0) return;
    this.#context.findings.corruption(
      `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
      times,
    );
  }

  /** A place that is no start of a cluster. Returns whether the entry will be cleared. */
  #unaligned(at: number, offset: number, low: number, times: number): boolean {
    const { header: { extendedL2 }, findings, repairInto } = this.#context;
    const hasData = extendedL2 ? this.#view.getUint32(at + 12) !== 0 : (low & L2_ZERO_LOW) === 0;
    const where = `offset=${offset.toString(16)}`;
    if (hasData) {
      findings.corruption(`ERROR ${where}: Data cluster is not properly aligned; L2 entry corrupted.`, times);
      return false;
    }
    const what = repairInto === null ? "ERROR" : "Repairing";
    findings.corruption(
      `${what} ${where}: Preallocated cluster is not properly aligned; L2 entry corrupted.`,
      times,
    );
    if (repairInto === null) return false;
    this.#broken.push(at);
    return true;
  }

  /** Entries that read as zeros, with a place that can't be: they lose the place. */
  async #clearBroken(offset: number, times: number): Promise<void> {
    const { storage, findings, repairInto, header: { extendedL2 } } = this.#context;
    for (const at of this.#broken.splice(0)) {
      if (repairInto!.overlap(offset + at, this.#entryBytes, "active L2 table") !== null) {
        findings.checkError("ERROR: Overlap check failed");
        throw new CheckFailure("Input/output error");
      }
      this.#view.setUint32(at, 0);
      this.#view.setUint32(at + 4, extendedL2 ? 0 : L2_ZERO_LOW);
      await storage.write(offset + at, SegmentList.over(this.#bytes.subarray(at, at + this.#entryBytes)));
      findings.corruptions -= times;
      findings.corruptionsFixed += times;
    }
  }
}

/** In an external data file the first cluster is at offset 0: COPIED tells it from none. */
function isNormal(high: number, low: number, extendedL2: boolean): boolean {
  return (high & COPIED_HIGH) !== 0 && (extendedL2 || (low & L2_ZERO_LOW) === 0);
}
