/**
 * Walks L2 tables and counts the clusters that their entries refer to (QEMU's docs/interop/qcow2, "Cluster mapping");
 * with a repair, takes places away that can't be.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { readPadded, type References, type WorkBudget } from "./check_references.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import type { Qcow2Header } from "./header.ts";
import type { MetadataMap } from "./metadata_map.ts";
import {
  COPIED_HIGH,
  L2_COMPRESSED_HIGH,
  L2_RESERVED_HIGH,
  L2_RESERVED_LOW,
  L2_ZERO_LOW,
  OFFSET_HIGH_MASK,
  OFFSET_LOW_MASK,
} from "./qcow2_layout.ts";

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

const NO_PAGE = new Uint32Array(0);

/** Walks one L2 table after the other. */
export class L2Walk {
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
