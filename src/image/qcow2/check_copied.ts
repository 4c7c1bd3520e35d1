/**
 * The COPIED flags of the active tables (QEMU's docs/interop/qcow2, "Cluster mapping"): set exactly where the refcount
 * is one, so that a writer knows without looking whether it may write in place.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { readPadded } from "./check_references.ts";
import { CheckFailure } from "./check_report.ts";
import { hex64, offsetOf, type WalkContext } from "./check_l2.ts";
import { readL1, TableUses } from "./check_tables.ts";
import { COPIED_HIGH, L2_COMPRESSED_HIGH, OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";

/**
 * What to do with flags that are wrong: report all, or change those of one kind. A flag that should not be set makes a
 * writer destroy what a snapshot holds; one that should be set costs a copy. So a repair clears flags before refcounts
 * become lower, and sets them afterwards.
 */
export type CopiedFix = "none" | "clear" | "set";

/** A refcount; `null` where it can't be read, which was reported already. */
export type RefcountOf = (cluster: number) => number | null | Promise<number | null>;

/**
 * Compares all flags with refcounts.
 *
 * @param areCounted whether refcounts are what was counted, so that there is no need to ask
 * @throws CheckFailure, BlockError
 */
export async function checkCopied(
  context: WalkContext,
  refcountOf: RefcountOf,
  fix: CopiedFix,
  areCounted = false,
): Promise<void> {
  const { header, references, budget } = context;
  const place = { offset: header.l1Offset, entries: header.l1Entries };
  const uses = new TableUses(references, budget);
  await readL1(context, place, (view, count) => {
    for (let at = 0; at < count * 8; at += 8) {
      const offset = offsetOf(view.getUint32(at), view.getUint32(at + 4));
      if (offset !== 0) uses.add(offset);
    }
  });
  const walk = new CopiedWalk(context, refcountOf, fix, areCounted);
  await readL1(context, place, async (view, count, first) => {
    for (let i = 0; i < count; i++) {
      const offset = offsetOf(view.getUint32(i * 8), view.getUint32(i * 8 + 4));
      if (offset === 0) continue;
      // As in QEMU: where the refcount of the table is unknown, so are those of its clusters.
      if (!await walk.l1Entry(view, i * 8, first + i, offset)) continue;
      const times = uses.take(offset);
      if (times > 0) await walk.l2Table(offset, times);
    }
  });
}

const NO_PAGE = new Uint32Array(0);

class CopiedWalk {
  readonly #context: WalkContext;
  readonly #refcountOf: RefcountOf;
  readonly #fix: CopiedFix;
  readonly #areCounted: boolean;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;

  constructor(context: WalkContext, refcountOf: RefcountOf, fix: CopiedFix, areCounted: boolean) {
    this.#context = context;
    this.#refcountOf = refcountOf;
    this.#fix = fix;
    this.#areCounted = areCounted;
    this.#bytes = new Uint8Array(context.references.clusterBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** Returns whether the refcount of the table is known. */
  async l1Entry(view: DataView, at: number, index: number, offset: number): Promise<boolean> {
    const { findings, references, header } = this.#context;
    const found = this.#refcountOf(Math.floor(offset / references.clusterBytes));
    const refcount = typeof found === "number" ? found : await found;
    const high = view.getUint32(at);
    if (refcount === null) return false;
    if (!this.#isWrong(high, refcount)) return true;
    const entry = hex64(high, view.getUint32(at + 4));
    findings.corruption(
      `${this.#verb} OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${entry} refcount=${refcount}`,
    );
    if (this.#fix === "none") return true;
    const bytes = new Uint8Array(view.buffer, at, 8);
    view.setUint32(at, (high ^ COPIED_HIGH) >>> 0);
    await this.#write(header.l1Offset + index * 8, bytes, "active L1 table");
    this.#fixed(1);
    return true;
  }

  async l2Table(offset: number, times: number): Promise<void> {
    const { header, findings, references, storage } = this.#context;
    const { clusterBytes, clusterCount, counts } = references;
    const { extendedL2, externalData } = header;
    const highUnit = 2 ** (32 - header.clusterBits);
    const view = this.#view;
    let pageNumber = -1;
    let page: Uint32Array = NO_PAGE;
    await readPadded(storage, references.fileBytes, offset, this.#bytes);
    let firstChanged = -1;
    let lastChanged = -1;
    let changes = 0;
    for (let at = 0; at < clusterBytes; at += extendedL2 ? 16 : 8) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if ((high === 0 && low === 0) || (high & L2_COMPRESSED_HIGH) !== 0) continue;
      const place = (high & OFFSET_HIGH_MASK) * highUnit + (low >>> header.clusterBits);
      let refcount: number | null = 1;
      if (place === 0 && (low & OFFSET_LOW_MASK) === 0) {
        // With an external data file only an entry with the flag can mean the cluster at offset 0, and it is right.
        continue;
      }
      if (!externalData) {
        if (this.#areCounted && place < clusterCount) {
          if (place >>> 16 !== pageNumber) {
            page = counts.pageFor(place);
            pageNumber = place >>> 16;
          }
          refcount = page[place & 0xffff];
        } else {
          const found = this.#refcountOf(place);
          refcount = typeof found === "number" ? found : await found;
        }
      }
      if (refcount === null || !this.#isWrong(high, refcount)) continue;
      findings.corruption(
        `${this.#verb} OFLAG_COPIED data cluster: l2_entry=${hex64(high, low)} refcount=${refcount}`,
        this.#fix === "none" ? times : 1,
      );
      if (this.#fix === "none") continue;
      view.setUint32(at, (high ^ COPIED_HIGH) >>> 0);
      if (changes++ === 0) firstChanged = at;
      lastChanged = at;
    }
    if (changes === 0) return;
    await this.#write(offset + firstChanged, this.#bytes.subarray(firstChanged, lastChanged + 8), "active L2 table");
    this.#fixed(changes);
  }

  get #verb(): string {
    return this.#fix === "none" ? "ERROR" : "Repairing";
  }

  #isWrong(high: number, refcount: number): boolean {
    const copied = (high & COPIED_HIGH) !== 0;
    if (copied === (refcount === 1)) return false;
    return this.#fix === "none" || (this.#fix === "clear") === copied;
  }

  #fixed(count: number): void {
    this.#context.findings.corruptions -= count;
    this.#context.findings.corruptionsFixed += count;
  }

  async #write(offset: number, bytes: Uint8Array, kind: "active L1 table" | "active L2 table"): Promise<void> {
    const { repairInto, findings, storage } = this.#context;
    if (repairInto === null || repairInto.overlap(offset, bytes.byteLength, kind) !== null) {
      const what = kind === "active L1 table" ? "L1" : "L2";
      findings.checkError(
        `ERROR: Could not write ${what} table; metadata overlap check failed: Input/output error`,
      );
      throw new CheckFailure("Input/output error");
    }
    await storage.write(offset, SegmentList.over(bytes));
  }
}
