/**
 * The qcow2 format (QEMU's docs/interop/qcow2), for reading: versions 2 and 3, all cluster sizes, backing images,
 * zero and compressed clusters, subclusters, external data files.
 *
 * Internal snapshots and persistent bitmaps are not part of the disk as it is now, and are left alone. Refcounts say
 * who may write where; to read they are not needed, so an image with the dirty bit is read as any other. One with the
 * corrupt bit is read as far as its tables make sense, as in QEMU.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { after, type Completion, type Storage } from "../../storage/storage.ts";
import type { Extent, Image, ImageDetails } from "../image.ts";
import { type Decompressor, decompressorFor } from "./compressed.ts";
import { detailsOf } from "./details.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import { COMPRESSED, DATA, UNALLOCATED } from "./l2_entry.ts";
import { Qcow2Mapping } from "./mapping.ts";
import { corrupt, unsupported } from "./refuse.ts";

/** Memory for L2 tables when nothing is said, for an image and all that is behind it: as in QEMU. */
export const L2_CACHE_DEFAULT_BYTES = 32 << 20;

/** How to open a qcow2 image, and how to get at what it refers to. */
export interface Qcow2Options {
  /** Most memory for L2 tables, in bytes. Default: 32 MiB. A backing image has its own. */
  l2CacheBytes?: number;
  /** Opens the backing image, by the name and format in the header. Without it, an image that needs one is refused. */
  openBacking?: (name: string, format: string | null) => Promise<Image>;
  /** Opens the external data file. Without it, an image that needs one is refused. */
  openDataFile?: (name: string) => Storage;
}

/** A qcow2 image on a storage. Read-only. */
export class Qcow2Image implements Image {
  readonly format = "qcow2";
  readonly readOnly = true;
  readonly canUnmap = false;
  readonly sizeBytes: number;
  /** What is read where nothing is allocated; zeros when there is none, and behind its end. */
  readonly backing: Image | null;

  readonly #storage: Storage;
  readonly #header: Qcow2Header;
  readonly #mapping: Qcow2Mapping;
  /** Where guest data is: the same storage, or the external data file. */
  readonly #data: Storage;
  /** Sizes of both, at the time of opening: to ask a file for its size takes a system call. */
  readonly #fileBytes: number;
  readonly #dataBytes: number;
  readonly #decompress: Decompressor | null;
  readonly #clusterBytes: number;
  /** The compressed cluster that was read last: reads are often smaller than clusters, and in order. */
  #lastCluster: Uint8Array | null = null;
  #lastOffset = -1;
  #lastBytes = -1;
  /** Lists that no read in flight uses. */
  readonly #lists: SegmentList[] = [];

  private constructor(
    storage: Storage,
    header: Qcow2Header,
    mapping: Qcow2Mapping,
    fileBytes: number,
    data: Storage,
    backing: Image | null,
  ) {
    this.sizeBytes = header.sizeBytes;
    this.backing = backing;
    this.#storage = storage;
    this.#header = header;
    this.#mapping = mapping;
    this.#data = data;
    this.#fileBytes = fileBytes;
    this.#dataBytes = data === storage ? fileBytes : data.sizeBytes;
    this.#decompress = decompressorFor(header.compression);
    this.#clusterBytes = 2 ** header.clusterBits;
  }

  /**
   * Opens an image, and what it refers to. Takes the storage over, unless it fails.
   *
   * @throws BlockError
   */
  static async open(storage: Storage, options: Qcow2Options = {}): Promise<Qcow2Image> {
    const { l2CacheBytes = L2_CACHE_DEFAULT_BYTES, openBacking, openDataFile } = options;
    const path = storage.name;
    const header = await readHeader(storage);
    if (decompressorFor(header.compression) === null) {
      throw unsupported(path, `Clusters are compressed with ${header.compression}, which needs Deno 2.9 or newer`);
    }
    const fileBytes = storage.sizeBytes;
    const mapping = await Qcow2Mapping.open(storage, header, fileBytes, l2CacheBytes);
    let data = storage;
    if (header.externalData) {
      if (header.dataFileName === null) throw unsupported(path, "'data-file' is required for this image");
      if (openDataFile === undefined) throw unsupported(path, `It needs the data file '${header.dataFileName}'`);
      data = openDataFile(header.dataFileName);
    }
    try {
      let backing: Image | null = null;
      if (header.backingName !== null) {
        if (openBacking === undefined) throw unsupported(path, `It needs the backing file '${header.backingName}'`);
        backing = await openBacking(header.backingName, header.backingFormat);
      }
      return new Qcow2Image(storage, header, mapping, fileBytes, data, backing);
    } catch (error) {
      if (data !== storage) data.close();
      throw error;
    }
  }

  get name(): string {
    return this.#storage.name;
  }

  /** Lets this image, of so many in a chain, have its share of the memory for tables. To be called before any read. */
  shareCache(images: number): void {
    this.#mapping.cache.limit(Math.max(4, Math.floor(this.#mapping.cache.capacity / images)));
    if (this.backing instanceof Qcow2Image) this.backing.shareCache(images);
  }

  /** Memory for L2 tables: how many bytes are used now, and how many at most. */
  get l2Cache(): { usedBytes: number; limitBytes: number } {
    const { cache, sliceBytes } = this.#mapping;
    return { usedBytes: cache.count * sliceBytes, limitBytes: cache.capacity * sliceBytes };
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#readFrom(offset, into, 0);
  }

  map(offset: number, lengthBytes: number): Extent[] | Promise<Extent[]> {
    return this.#mapFrom(offset, offset + lengthBytes, []);
  }

  details(): Promise<ImageDetails> {
    return detailsOf(this.#storage, this.#header);
  }

  /** Nothing was written. */
  flush(): Completion {}

  write(offset: number): Completion {
    throw this.#readOnlyError("write", offset);
  }

  writeZeroes(offset: number): Completion {
    throw this.#readOnlyError("zero", offset);
  }

  discard(offset: number): Completion {
    throw this.#readOnlyError("discard", offset);
  }

  resize(): Completion {
    throw this.#readOnlyError("resize");
  }

  close(): void {
    if (this.#data !== this.#storage) this.#data.close();
    this.backing?.close();
    this.#storage.close();
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
        if (this.backing !== null) return readUntil(this.backing, this.backing.sizeBytes, offset, part);
    }
    part.fill(0);
  }

  /** The last cluster of a file need not be there in full: what a program did not write to reads as zeros. */
  #readData(hostOffset: number, part: SegmentList): Completion {
    return readUntil(this.#data, this.#dataBytes, hostOffset, part);
  }

  #readCompressed(hostOffset: number, lengthBytes: number, inCluster: number, part: SegmentList): Completion {
    if (hostOffset === this.#lastOffset && lengthBytes === this.#lastBytes) {
      part.copyFrom(this.#lastCluster!.subarray(inCluster, inCluster + part.byteLength));
      return;
    }
    const data = new Uint8Array(lengthBytes);
    return after(this.#storage.read(hostOffset, SegmentList.over(data)), () => {
      const cluster = this.#decompress!(data, this.#clusterBytes);
      if (cluster === null) {
        const reason =
          `The image is corrupt: what should be a cluster compressed with ${this.#header.compression} is not`;
        throw corrupt(this.name, "read", reason, hostOffset);
      }
      this.#lastCluster = cluster;
      this.#lastOffset = hostOffset;
      this.#lastBytes = lengthBytes;
      part.copyFrom(cluster.subarray(inCluster, inCluster + part.byteLength));
    });
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

  #readOnlyError(operation: "write" | "zero" | "discard" | "resize", offset?: number): BlockError {
    return new BlockError({ kind: "unsupported", path: this.name, operation, offset, reason: WRITE_REASON });
  }
}

/** Why no qcow2 image can be opened for writing. */
export const WRITE_REASON = "vblk reads qcow2 images and does not write them yet";

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
