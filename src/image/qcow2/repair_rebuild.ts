/**
 * Writes all refcounts anew, from the references that were counted, in place of refcount tables that can't be mended.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { PAGE_CLUSTERS, type References } from "./check_references.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import type { Qcow2Header } from "./header.ts";
import { HEADER, REFCOUNT_TABLE_MAX_BYTES } from "./qcow2_layout.ts";
import { refcountEntries } from "./refcount_entry.ts";
import { patchHeader } from "./repair_header.ts";

/**
 * Writes new blocks and a new table to clusters that nothing refers to, the old ones included, and then has the header
 * point to them. Until then, and after a crash, the image is what it was. The old tables are leaked.
 *
 * @param references what is allocated here is added to it
 * @returns the header that is in the file now
 * @throws CheckFailure, BlockError
 */
export async function rebuildRefcounts(
  storage: Storage,
  header: Qcow2Header,
  references: References,
  findings: Findings,
): Promise<Qcow2Header> {
  const plan = new RefcountPlan(header, references, findings);
  const { offset, clusters } = plan.allocate();
  await plan.write(storage, offset, clusters);
  await storage.flush();
  await patchHeader(storage, (view) => {
    view.setBigUint64(HEADER.refcountTableOffset, BigInt(offset));
    view.setUint32(HEADER.refcountTableClusters, clusters);
  });
  await storage.flush();
  return { ...header, refcountTableOffset: offset, refcountTableClusters: clusters };
}

/** Finds places for blocks and table; each needs a refcount itself. */
class RefcountPlan {
  readonly #header: Qcow2Header;
  readonly #references: References;
  readonly #findings: Findings;
  readonly #clusterBytes: number;
  readonly #perBlock: number;
  /** Offsets of blocks, by index; sparse. */
  readonly #blocks = new Map<number, number>();
  #tableEntries = 0;

  constructor(header: Qcow2Header, references: References, findings: Findings) {
    this.#header = header;
    this.#references = references;
    this.#findings = findings;
    this.#clusterBytes = references.clusterBytes;
    this.#perBlock = this.#clusterBytes * 8 / header.refcountBits;
  }

  allocate(): { offset: number; clusters: number } {
    this.#placeBlocks(0, this.#references.clusterCount);
    // The table's own refcounts may need blocks for which the table has no room. It ends, as each cluster of the table
    // has room for many blocks.
    for (;;) {
      const entries = this.#tableEntries;
      const clusters = entries * 8 / this.#clusterBytes;
      const first = this.#find(clusters, { cluster: 0 });
      this.#placeBlocks(first, first + clusters);
      if (this.#tableEntries === entries) return { offset: first * this.#clusterBytes, clusters };
    }
  }

  async write(storage: Storage, tableOffset: number, tableClusters: number): Promise<void> {
    const entries = refcountEntries(this.#header.refcountBits);
    const { counts } = this.#references;
    const table = new DataView(new ArrayBuffer(tableClusters * this.#clusterBytes));
    for (const [index, offset] of this.#blocks) {
      const block = new Uint8Array(this.#clusterBytes);
      const view = new DataView(block.buffer);
      for (let i = 0; i < this.#perBlock; i++) {
        const count = counts.get(index * this.#perBlock + i);
        if (count !== 0) entries.set(view, i, count);
      }
      await storage.write(offset, SegmentList.over(block));
      table.setBigUint64(index * 8, BigInt(offset));
    }
    await storage.write(tableOffset, SegmentList.over(new Uint8Array(table.buffer)));
  }

  /** Gives a block to all clusters in a range that have references. */
  #placeBlocks(first: number, firstEnd: number): void {
    let end = firstEnd;
    const from = { cluster: 0 };
    for (let cluster = first; cluster < end; cluster++) {
      if (this.#references.counts.page(cluster) === undefined) {
        cluster |= PAGE_CLUSTERS - 1;
        continue;
      }
      if (this.#references.counts.get(cluster) === 0) continue;
      const index = Math.floor(cluster / this.#perBlock);
      const start = index * this.#perBlock;
      if (!this.#blocks.has(index)) {
        // What is before was looked at already: a cluster taken there would not get its block.
        from.cluster = Math.max(from.cluster, start);
        const place = this.#find(1, from);
        end = Math.max(end, place + 1);
        this.#addBlock(index, place);
      }
      cluster = start + this.#perBlock - 1;
    }
  }

  #addBlock(index: number, cluster: number): void {
    this.#blocks.set(index, cluster * this.#clusterBytes);
    const lengthBytes = Math.ceil((index + 1) * 8 / this.#clusterBytes) * this.#clusterBytes;
    if (lengthBytes > REFCOUNT_TABLE_MAX_BYTES) {
      this.#findings.checkErrors++;
      throw new CheckFailure("File too large");
    }
    this.#tableEntries = Math.max(this.#tableEntries, lengthBytes / 8);
  }

  /** Takes free clusters that follow each other, behind `from`, which moves to the first that is free. */
  #find(clusters: number, from: { cluster: number }): number {
    const { counts, clusterCount } = this.#references;
    let found = 0;
    let cluster = from.cluster;
    let firstGap = true;
    for (; cluster < clusterCount && found < clusters; cluster++) {
      if (counts.get(cluster) !== 0) found = 0;
      else {
        found++;
        if (firstGap) from.cluster = cluster;
        firstGap = false;
      }
    }
    const start = cluster - found;
    for (let i = 0; i < clusters; i++) this.#references.addCluster(start + i, 1);
    return start;
  }
}
