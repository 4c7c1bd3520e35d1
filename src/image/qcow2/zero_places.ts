/**
 * Clusters that have a place in the file and read as zeros all the same, or are not allocated where they have
 * subclusters. Whoever reads need not know; `map` prints the place.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Extent } from "../image.ts";
import { L2EntryReader } from "./l2_entry.ts";
import { OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import type { Qcow2Image } from "./qcow2_image.ts";

/** Looks up places in the tables of an image that nobody writes to. */
export class ZeroPlaces {
  readonly #image: Qcow2Image;
  readonly #reader: L2EntryReader;
  readonly #clusterBytes: number;
  readonly #entryBytes: number;
  #l1: DataView | null = null;
  #table: DataView | null = null;
  #tableIndex = -1;

  constructor(image: Qcow2Image) {
    const { header, storage } = image;
    this.#image = image;
    this.#reader = new L2EntryReader(header, storage.sizeBytes);
    this.#clusterBytes = 2 ** header.clusterBits;
    this.#entryBytes = header.extendedL2 ? 16 : 8;
  }

  /** Splits a run of zeros, or of nothing, into those with places one behind the other, and those without. */
  async split(extent: Extent): Promise<Extent[]> {
    const end = extent.guestOffset + extent.lengthBytes;
    const runs: Extent[] = [];
    for (let at = extent.guestOffset; at < end;) {
      const { hostOffset, next } = await this.#placeOf(at);
      const lengthBytes = Math.min(next, end) - at;
      const last = runs.at(-1);
      const expected = last?.hostOffset === undefined ? undefined : last.hostOffset + last.lengthBytes;
      if (last !== undefined && expected === hostOffset) {
        runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
      } else runs.push({ guestOffset: at, lengthBytes, kind: extent.kind, hostOffset });
      at += lengthBytes;
    }
    return runs;
  }

  /** Where the cluster with `offset` is, if it has a place, and where the next one to be asked for starts. */
  async #placeOf(offset: number): Promise<{ hostOffset: number | undefined; next: number }> {
    const tableSpan = this.#clusterBytes / this.#entryBytes * this.#clusterBytes;
    const index = Math.floor(offset / tableSpan);
    const table = await this.#tableAt(index);
    if (table === null) return { hostOffset: undefined, next: (index + 1) * tableSpan };
    const start = offset - offset % this.#clusterBytes;
    this.#reader.read(table, Math.floor(offset % tableSpan / this.#clusterBytes) * this.#entryBytes, start);
    const { placed, hostOffset } = this.#reader;
    return { hostOffset: placed ? hostOffset + offset - start : undefined, next: start + this.#clusterBytes };
  }

  /** The L2 table behind an entry of the L1 table; `null` when there is none. */
  async #tableAt(index: number): Promise<DataView | null> {
    if (index === this.#tableIndex) return this.#table;
    const { header, storage } = this.#image;
    this.#l1 ??= await this.#read(header.l1Offset, header.l1Entries * 8);
    const high = this.#l1.getUint32(index * 8) & OFFSET_HIGH_MASK;
    const offset = high * 0x1_0000_0000 + ((this.#l1.getUint32(index * 8 + 4) & OFFSET_LOW_MASK) >>> 0);
    // The image has mapped this range: the entry makes sense.
    this.#table = offset === 0 || offset + this.#clusterBytes > storage.sizeBytes
      ? null
      : await this.#read(offset, this.#clusterBytes);
    this.#tableIndex = index;
    return this.#table;
  }

  async #read(offset: number, lengthBytes: number): Promise<DataView> {
    const bytes = new Uint8Array(lengthBytes);
    await this.#image.storage.read(offset, SegmentList.over(bytes));
    return new DataView(bytes.buffer);
  }
}
