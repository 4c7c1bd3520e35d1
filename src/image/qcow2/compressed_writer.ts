/**
 * Writes compressed clusters, each behind the last without a gap, so that several share a host cluster; its count is
 * the number of them (QEMU's docs/interop/qcow2, "Compressed Clusters Descriptor").
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { writeCompressedEntry, writeSubclusters } from "./l2_entry.ts";
import type { ClusterWriter } from "./cluster_writer.ts";
import { COMPRESSED_SECTOR_BYTES } from "./qcow2_layout.ts";
import type { WriteBack } from "./write_back.ts";

/** Finds places for compressed data. Whoever calls it holds the lock. */
export class CompressedWriter {
  readonly #tables: WriteBack;
  readonly #writer: ClusterWriter;
  /** Where the data that were written last end; -1 when nothing may follow there. */
  #tail = -1;

  constructor(tables: WriteBack, writer: ClusterWriter) {
    this.#tables = tables;
    this.#writer = writer;
    tables.freeListeners.push((cluster) => {
      if (Math.floor(this.#tail / tables.file.clusterBytes) === cluster) this.#tail = -1;
    });
  }

  /** Stores the compressed form, shorter than a cluster, of the cluster at `start` of the disk. */
  async write(start: number, data: Uint8Array): Promise<void> {
    const tables = this.#tables;
    const { file, mapping } = tables;
    if (file.header.externalData) {
      const reason = "An image with an external data file has no compressed clusters";
      throw new BlockError({ kind: "invalid", path: file.storage.name, operation: "write", offset: start, reason });
    }
    await tables.relieve();
    const slice = await tables.tableFor(start);
    const at = mapping.inSlice(start);
    this.#writer.readEntry(slice, start);
    const hostOffset = await this.#place(data.byteLength);
    try {
      this.#assertReachable(hostOffset);
      await file.writeData(hostOffset, SegmentList.over(data));
      mapping.grow(file.endBytes);
    } catch (error) {
      this.#tail = -1;
      const { first, clusters } = this.#touched(hostOffset, data.byteLength);
      await tables.giveBack(first * file.clusterBytes, clusters);
      throw error;
    }
    this.#tables.releasePlace(this.#writer.readEntry(slice, start));
    writeCompressedEntry(slice, at, hostOffset, data.byteLength, file.header.clusterBits);
    if (mapping.subclusters > 1) writeSubclusters(slice, at, 0, 0);
    tables.journal?.note(start);
  }

  /** A place for so many bytes; the clusters that they touch are counted. */
  async #place(lengthBytes: number): Promise<number> {
    const { file: { clusterBytes }, refcounts } = this.#tables;
    const used = this.#tail % clusterBytes;
    if (this.#tail > 0 && used !== 0) {
      const cluster = Math.floor(this.#tail / clusterBytes);
      const isFull = await refcounts.get(cluster) >= refcounts.entries.max;
      if (!isFull && used + lengthBytes <= clusterBytes) {
        await refcounts.add(cluster, 1, 1);
        return this.#take(this.#tail, lengthBytes);
      }
      const next = await refcounts.allocate(1);
      if (isFull || next !== (cluster + 1) * clusterBytes) return this.#take(next, lengthBytes);
      try {
        await refcounts.add(cluster, 1, 1);
      } catch (error) {
        await this.#tables.giveBack(next, 1);
        throw error;
      }
      return this.#take(this.#tail, lengthBytes);
    }
    return this.#take(await refcounts.allocate(1), lengthBytes);
  }

  /** The larger the clusters, the fewer bits of an entry are the place. */
  #assertReachable(hostOffset: number): void {
    const { storage, header } = this.#tables.file;
    if (hostOffset < 2 ** (62 - (header.clusterBits - 8))) return;
    const reason = "The file is too large for compressed clusters";
    throw new BlockError({ kind: "no-space", path: storage.name, operation: "write", offset: hostOffset, reason });
  }

  #take(offset: number, lengthBytes: number): number {
    this.#tail = offset + lengthBytes;
    return offset;
  }

  #touched(hostOffset: number, lengthBytes: number): { first: number; clusters: number } {
    const { clusterBytes } = this.#tables.file;
    const first = Math.floor(hostOffset / clusterBytes);
    const end = Math.ceil((hostOffset + lengthBytes) / COMPRESSED_SECTOR_BYTES) * COMPRESSED_SECTOR_BYTES;
    return { first, clusters: Math.ceil(end / clusterBytes) - first };
  }
}
