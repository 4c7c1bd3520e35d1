/**
 * The reading half of a qcow2 image: from the mapping's answers to bytes and extents.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { after, type Completion, type Storage } from "../../storage/storage.ts";
import type { Extent, Image } from "../image.ts";
import { type Decompressor, decompressorFor } from "./compressed.ts";
import type { Qcow2Header } from "./header.ts";
import { COMPRESSED, DATA, UNALLOCATED } from "./l2_entry.ts";
import type { Qcow2Mapping } from "./mapping.ts";
import { corrupt, unsupported } from "./refuse.ts";
import type { WriteBack } from "./write_back.ts";

/** Takes reads. */
export class Qcow2Reader {
  readonly #storage: Storage;
  /** Where guest data is: the same storage, or the external data file. */
  readonly #data: Storage;
  /** Size of that when it was opened: to ask a file for its size takes a system call. */
  readonly #dataBytes: number;
  readonly #mapping: Qcow2Mapping;
  readonly #backing: Image | null;
  readonly #compression: string;
  readonly #decompress: Decompressor;
  readonly #clusterBytes: number;
  /** In an image that is written too. */
  #tables: WriteBack | null = null;
  /** The compressed cluster that was read last: reads are often smaller than clusters, and in order. */
  #lastCluster: Uint8Array | null = null;
  #lastOffset = -1;
  #lastBytes = -1;
  /** Lists that no read in flight uses. */
  readonly #lists: SegmentList[] = [];

  /** @throws BlockError when this Deno can't decompress what the image has */
  constructor(storage: Storage, data: Storage, header: Qcow2Header, mapping: Qcow2Mapping, backing: Image | null) {
    const decompress = decompressorFor(header.compression);
    if (decompress === null) {
      const reason = `Clusters are compressed with ${header.compression}, which needs Deno 2.9 or newer`;
      throw unsupported(storage.name, reason);
    }
    this.#storage = storage;
    this.#data = data;
    this.#dataBytes = data.sizeBytes;
    this.#mapping = mapping;
    this.#backing = backing;
    this.#compression = header.compression;
    this.#decompress = decompress;
    this.#clusterBytes = 2 ** header.clusterBits;
  }

  /** Places change from now on: whoever changes them waits for reads that are on their way. */
  follow(tables: WriteBack): void {
    this.#tables = tables;
    tables.freeListeners.push((cluster) => {
      const first = Math.floor(this.#lastOffset / this.#clusterBytes);
      const last = Math.floor((this.#lastOffset + this.#lastBytes - 1) / this.#clusterBytes);
      if (cluster >= first && cluster <= last) this.#lastOffset = -1;
    });
  }

  /** Fills `into` with the disk's bytes at `offset`. */
  read(offset: number, into: SegmentList): Completion {
    return this.#readFrom(offset, into, 0);
  }

  /** Where the bytes of a range are. */
  map(offset: number, lengthBytes: number): Extent[] | Promise<Extent[]> {
    return this.#mapFrom(offset, offset + lengthBytes, []);
  }

  /** Reads what is left of a list from its byte `from` on. */
  #readFrom(offset: number, into: SegmentList, from: number): Completion {
    const mapping = this.#mapping;
    const total = into.byteLength;
    for (let done = from; done < total;) {
      const miss = mapping.lookup(offset + done, total - done);
      if (miss !== undefined) return this.#resume(miss, offset, into, done);
      const at = offset + done;
      const start = done;
      const length = mapping.lengthBytes;
      done += length;
      if (length === total) return this.#readRun(at, into);
      const part = this.#lists.pop() ?? new SegmentList();
      part.appendRange(into, start, length);
      const reading = this.#readRun(at, part);
      if (reading !== undefined) return this.#resume(reading, offset, into, done);
      part.clear();
      this.#lists.push(part);
    }
  }

  // A function of its own: a closure in the loop above would make every read pay for it.
  #resume(waiting: Promise<void>, offset: number, into: SegmentList, from: number): Promise<void> {
    return waiting.then(() => this.#readFrom(offset, into, from));
  }

  /** Reads the run that was just looked up. */
  #readRun(offset: number, part: SegmentList): Completion {
    const { kind, hostOffset, compressedBytes } = this.#mapping;
    switch (kind) {
      case DATA:
        return this.#readData(hostOffset, part);
      case COMPRESSED:
        return this.#readCompressed(hostOffset, compressedBytes, offset % this.#clusterBytes, part);
      case UNALLOCATED:
        if (this.#backing !== null) return readUntil(this.#backing, this.#backing.sizeBytes, offset, part);
    }
    part.fill(0);
  }

  /** The last cluster of a file need not be there in full: what a program did not write to reads as zeros. */
  #readData(hostOffset: number, part: SegmentList): Completion {
    // Without anybody who makes reads fail, this is all that it costs.
    if (this.#data.event !== undefined) {
      return after(this.#data.event("read_aio"), () => this.#moveData(hostOffset, part));
    }
    return this.#moveData(hostOffset, part);
  }

  #moveData(hostOffset: number, part: SegmentList): Completion {
    const tables = this.#tables;
    if (tables === null) return readUntil(this.#data, this.#dataBytes, hostOffset, part);
    const reading = readUntil(this.#data, tables.file.dataEndBytes, hostOffset, part);
    return reading === undefined ? undefined : tables.inFlight.track(reading);
  }

  #readCompressed(hostOffset: number, lengthBytes: number, inCluster: number, part: SegmentList): Completion {
    if (hostOffset === this.#lastOffset && lengthBytes === this.#lastBytes) {
      part.copyFrom(this.#lastCluster!.subarray(inCluster, inCluster + part.byteLength));
      return;
    }
    const data = new Uint8Array(lengthBytes);
    const list = SegmentList.over(data);
    const loading = after(this.#storage.event?.("read_compressed"), () => this.#storage.read(hostOffset, list));
    const reading = after(loading, () => {
      const cluster = this.#decompress(data, this.#clusterBytes);
      if (cluster === null) {
        const reason = `The image is corrupt: what should be a cluster compressed with ${this.#compression} is not`;
        throw corrupt(this.#storage.name, "read", reason, hostOffset);
      }
      this.#lastCluster = cluster;
      this.#lastOffset = hostOffset;
      this.#lastBytes = lengthBytes;
      part.copyFrom(cluster.subarray(inCluster, inCluster + part.byteLength));
    });
    if (reading === undefined || this.#tables === null) return reading;
    return this.#tables.inFlight.track(reading);
  }

  #mapFrom(offset: number, end: number, extents: Extent[]): Extent[] | Promise<Extent[]> {
    const mapping = this.#mapping;
    for (let at = offset; at < end;) {
      const miss = mapping.lookup(at, end - at);
      if (miss !== undefined) {
        const here = at;
        return miss.then(() => this.#mapFrom(here, end, extents));
      }
      const { kind, lengthBytes, hostOffset } = mapping;
      addExtent(extents, { guestOffset: at, lengthBytes, kind: KIND_NAMES[kind], hostOffset });
      at += lengthBytes;
    }
    return extents;
  }
}

/** Names for extents, by kind of run. */
const KIND_NAMES: readonly Extent["kind"][] = ["unallocated", "data", "zero", "compressed"];

/** Adds a run; one that goes on where the last one ends makes it longer. */
function addExtent(extents: Extent[], { guestOffset, lengthBytes, kind, hostOffset }: Extent): void {
  const last = extents.at(-1);
  const goesOn = last?.kind === kind &&
    (kind === "unallocated" || kind === "zero" ||
      (kind === "data" && last.hostOffset! + last.lengthBytes === hostOffset));
  if (goesOn) extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
  else {
    const place = kind === "data" || kind === "compressed" ? { hostOffset } : {};
    extents.push({ guestOffset, lengthBytes, kind, ...place });
  }
}

/** Reads from something that ends at `sizeBytes`; zeros from there on. */
function readUntil(
  source: { read(offset: number, into: SegmentList): Completion },
  sizeBytes: number,
  offset: number,
  part: SegmentList,
): Completion {
  const wanted = part.byteLength;
  if (offset + wanted <= sizeBytes) return source.read(offset, part);
  const stored = Math.max(0, sizeBytes - offset);
  part.fill(0, stored);
  if (stored === 0) return;
  const head = new SegmentList();
  head.appendRange(part, 0, stored);
  return source.read(offset, head);
}
