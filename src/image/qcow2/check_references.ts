/**
 * How many references there are to each cluster of an image's file.
 *
 * The file decides how much memory that takes, not what tables claim: references to what is behind its end are
 * findings, and counts are kept in pages that exist only where something was counted.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import { corrupt } from "./refuse.ts";

/** Counts in a page: 256 KiB of memory. */
export const PAGE_CLUSTERS = 1 << 16;
const PAGE_BITS = 16;
const PAGE_MASK = PAGE_CLUSTERS - 1;

/** As in QEMU; it keeps numbers of clusters within 32 bits. */
const MOST_CLUSTERS = 0x7fffffff;

/** A number for each cluster; 0 where none was set. */
export class ClusterCounts {
  readonly #pages: (Uint32Array | undefined)[] = [];

  get(cluster: number): number {
    const page = this.#pages[cluster >>> PAGE_BITS];
    return page === undefined ? 0 : page[cluster & PAGE_MASK];
  }

  /** The page that holds a cluster, for those who look at many. */
  page(cluster: number): Uint32Array | undefined {
    return this.#pages[cluster >>> PAGE_BITS];
  }

  /** The same, made if there is none. */
  pageFor(cluster: number): Uint32Array {
    return this.#pages[cluster >>> PAGE_BITS] ??= new Uint32Array(PAGE_CLUSTERS);
  }

  set(cluster: number, value: number): void {
    this.pageFor(cluster)[cluster & PAGE_MASK] = value;
  }

  /** Takes over a page that was made elsewhere. */
  setPage(cluster: number, page: Uint32Array): void {
    this.#pages[cluster >>> PAGE_BITS] = page;
  }
}

/** Counts references. */
export class References {
  readonly counts: ClusterCounts = new ClusterCounts();
  /** Clusters of the file, and one behind its end if something that begins in the file ends there. */
  clusterCount: number;
  readonly clusterBytes: number;
  readonly fileBytes: number;
  /** References that a refcount can count. */
  readonly max: number;
  readonly #findings: Findings;

  /** @throws CheckFailure when the file has too many clusters */
  constructor(fileBytes: number, clusterBytes: number, max: number, findings: Findings) {
    this.fileBytes = fileBytes;
    this.clusterBytes = clusterBytes;
    this.clusterCount = Math.ceil(fileBytes / clusterBytes);
    this.max = Math.min(max, 0xffff_ffff);
    this.#findings = findings;
    if (this.clusterCount > MOST_CLUSTERS) {
      findings.checkErrors++;
      throw new CheckFailure("File too large");
    }
  }

  /** Counts a reference, or several, to each cluster that a range touches. */
  add(offset: number, lengthBytes: number, times = 1): void {
    if (lengthBytes <= 0) return;
    // The last cluster of a file need not be there in full.
    if (offset + lengthBytes - this.fileBytes >= this.clusterBytes) {
      return this.behindEnd(BigInt(offset).toString(16), lengthBytes, times);
    }
    const last = Math.floor((offset + lengthBytes - 1) / this.clusterBytes);
    for (let cluster = Math.floor(offset / this.clusterBytes); cluster <= last; cluster++) {
      this.addCluster(cluster, times);
    }
  }

  /** Reports references to something that is not in the file; `offset` in hexadecimal. */
  behindEnd(offset: string, lengthBytes: number, times: number): void {
    const where = `offset 0x${offset} size 0x${BigInt(lengthBytes).toString(16)}`;
    this.#findings.corruption(
      `ERROR: counting reference for region exceeding the end of the file by one cluster or more: ${where}`,
      times,
    );
  }

  /** Counts references to one cluster, which the caller has found to be in the file. */
  addCluster(cluster: number, times: number): void {
    if (cluster >= this.clusterCount) this.clusterCount = cluster + 1;
    const page = this.counts.pageFor(cluster);
    const sum = page[cluster & PAGE_MASK] + times;
    page[cluster & PAGE_MASK] = Math.min(sum, this.max);
    if (sum > this.max) this.#overflow(cluster, sum - this.max);
  }

  #overflow(cluster: number, times: number): void {
    const offset = (cluster * this.clusterBytes).toString(16);
    this.#findings.corruption(`ERROR: overflow cluster offset=0x${offset}`, times);
    this.#findings.say(
      "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the " +
        "image cannot be opened for writing",
    );
  }
}

/** Reads a part of the file; what is behind its end reads as zeros, as in QEMU. */
export async function readPadded(storage: Storage, fileBytes: number, offset: number, into: Uint8Array): Promise<void> {
  const stored = Math.max(0, Math.min(into.byteLength, fileBytes - offset));
  if (stored > 0) await storage.read(offset, SegmentList.over(into.subarray(0, stored)));
  if (stored < into.byteLength) into.fill(0, stored);
}

/**
 * Bounds the work on tables that lie over each other: a few kilobytes of them could otherwise keep a check busy for
 * days. Tables that do not overlap are never refused, as all of them fit into the file.
 */
export class WorkBudget {
  readonly #path: string;
  #left: number;

  /** @param fileBytes what tables that do not overlap have room in */
  constructor(fileBytes: number, path: string) {
    this.#path = path;
    this.#left = Math.min(fileBytes / 8, 2 ** 28) + 2 ** 24;
  }

  /** @throws BlockError */
  spend(entries: number): void {
    this.#left -= entries;
    if (this.#left < 0) throw corrupt(this.#path, "read", "Tables overlap so often that the image can't be checked");
  }
}
