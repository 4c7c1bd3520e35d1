/**
 * The qcow2 format (QEMU's docs/interop/qcow2): versions 2 and 3, all cluster sizes, backing images, zero and
 * compressed clusters, subclusters, external data files, internal snapshots, lazy refcounts.
 *
 * Refcounts say who may write where; to read they are not needed, so an image with the dirty bit is read as any other.
 * One with the corrupt bit is read as far as its tables make sense, as in QEMU, and not written. Everything that only
 * writing needs is in writer.ts and what it imports.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError, type BlockOperation } from "../../storage/block_error.ts";
import { after, type Completion, type Storage } from "../../storage/storage.ts";
import { type Extent, type Image, type ImageDetails, SECTOR_BYTES } from "../image.ts";
import type { OldContents } from "./cluster_writer.ts";
import { type Decompressor, decompressorFor } from "./compressed.ts";
import { detailsOf } from "./details.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import { COMPRESSED, DATA, UNALLOCATED } from "./l2_entry.ts";
import { Qcow2Mapping } from "./mapping.ts";
import { openWriter, prepareForWriting } from "./open_for_writing.ts";
import { L1_MAX_BYTES, L2_CACHE_DEFAULT_BYTES } from "./qcow2_layout.ts";
import { corrupt, unsupported } from "./refuse.ts";
import { resizeQcow2 } from "./resize.ts";
import type { Snapshot } from "./snapshot_table.ts";
import { applySnapshot, createSnapshot, deleteSnapshot } from "./snapshots.ts";
import type { PersistentBitmaps } from "./bitmaps.ts";
import type { WriteBack } from "./write_back.ts";
import type { Qcow2Writer } from "./writer.ts";

/** How to open a qcow2 image, and how to get at what it refers to. */
export interface Qcow2Options {
  /** Most memory for L2 tables, in bytes. Default: 32 MiB. A backing image has its own. */
  l2CacheBytes?: number;
  /** Opens the backing image, by the name and format in the header. Without it, an image that needs one is refused. */
  openBacking?: (name: string, format: string | null) => Promise<Image>;
  /** Opens the external data file. Without it, an image that needs one is refused. */
  openDataFile?: (name: string) => Storage | Promise<Storage>;
  /** Open for reading only. Default: whether the storage is. */
  readOnly?: boolean;
  /** Flush nothing: for an image that is worthless unless it is finished. Default: false. */
  noFlush?: boolean;
  /** Whether clusters that become free are discarded in the storage, where it can. Default: true. */
  discards?: boolean;
  /** Show the disk as it was in an internal snapshot, for reading only. */
  snapshot?: Snapshot;
}

/** A qcow2 image on a storage. */
export class Qcow2Image implements Image {
  readonly format = "qcow2";
  /** Whether it was opened for reading only. */
  readonly readOnly: boolean;
  /** What is read where nothing is allocated; zeros when there is none, and behind its end. */
  readonly backing: Image | null;

  readonly #storage: Storage;
  readonly #header: Qcow2Header;
  readonly #mapping: Qcow2Mapping;
  readonly #writer: Qcow2Writer | null;
  readonly #old: OldContents;
  /** Where guest data is: the same storage, or the external data file. */
  readonly #data: Storage;
  /** Size of that when it was opened: to ask a file for its size takes a system call. */
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
    data: Storage,
    backing: Image | null,
    old: OldContents,
    writer: Qcow2Writer | null,
  ) {
    this.readOnly = writer === null;
    this.backing = backing;
    this.#storage = storage;
    this.#header = header;
    this.#mapping = mapping;
    this.#writer = writer;
    this.#old = old;
    this.#data = data;
    this.#dataBytes = data.sizeBytes;
    this.#decompress = decompressorFor(header.compression);
    this.#clusterBytes = 2 ** header.clusterBits;
    writer?.tables.freeListeners.push((cluster) => {
      const first = Math.floor(this.#lastOffset / this.#clusterBytes);
      const last = Math.floor((this.#lastOffset + this.#lastBytes - 1) / this.#clusterBytes);
      if (cluster >= first && cluster <= last) this.#lastOffset = -1;
    });
  }

  /**
   * Opens an image, and what it refers to. Takes the storage over, unless it fails.
   *
   * @throws BlockError
   */
  static async open(storage: Storage, options: Qcow2Options = {}): Promise<Qcow2Image> {
    const { l2CacheBytes = L2_CACHE_DEFAULT_BYTES, openBacking, openDataFile, snapshot } = options;
    const path = storage.name;
    let header = await readHeader(storage);
    if (decompressorFor(header.compression) === null) {
      throw unsupported(path, `Clusters are compressed with ${header.compression}, which needs Deno 2.9 or newer`);
    }
    const readOnly = (options.readOnly ?? storage.readOnly) || snapshot !== undefined;
    if (!readOnly) header = await prepareForWriting(storage, header);
    let data = storage;
    if (header.externalData) {
      if (header.dataFileName === null) throw unsupported(path, "'data-file' is required for this image");
      if (openDataFile === undefined) throw unsupported(path, `It needs the data file '${header.dataFileName}'`);
      data = await openDataFile(header.dataFileName);
    }
    let backing: Image | null = null;
    try {
      if (header.backingName !== null) {
        if (openBacking === undefined) throw unsupported(path, `It needs the backing file '${header.backingName}'`);
        backing = await openBacking(header.backingName, header.backingFormat);
      }
      if (snapshot !== undefined) header = atSnapshot(storage, header, snapshot);
      const mapping = await Qcow2Mapping.open(storage, header, storage.sizeBytes, l2CacheBytes);
      const backingBytes = backing?.sizeBytes ?? 0;
      const old: OldContents = {
        read: async (offset, into) => await image.#readFrom(offset, into, 0),
        isZeroBehind: (offset) => offset >= backingBytes,
        backingBytes,
      };
      const writer = readOnly ? null : await openWriter(storage, data, header, mapping, old, options);
      const image: Qcow2Image = new Qcow2Image(storage, header, mapping, data, backing, old, writer);
      return image;
    } catch (error) {
      if (data !== storage) data.close();
      await backing?.close();
      throw error;
    }
  }

  get name(): string {
    return this.#storage.name;
  }

  get sizeBytes(): number {
    return this.header.sizeBytes;
  }

  get canUnmap(): boolean {
    return !this.readOnly;
  }

  /** What the file says of itself. */
  get header(): Qcow2Header {
    return this.#writer?.tables.file.header ?? this.#header;
  }

  /** The image's own file. */
  get storage(): Storage {
    return this.#storage;
  }

  /** Where guest data are: the same, or the external data file. */
  get dataStorage(): Storage {
    return this.#data;
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
    return detailsOf(this.#storage, this.header);
  }

  flush(): Completion {
    return this.#writer?.flush();
  }

  write(offset: number, from: SegmentList): Completion {
    return this.#writable("write", offset).write(offset, from);
  }

  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    return this.#writable("zero", offset).writeZeroes(offset, lengthBytes, mayUnmap);
  }

  discard(offset: number, lengthBytes: number): Completion {
    return this.#writable("discard", offset).discard(offset, lengthBytes);
  }

  /**
   * Writes whole clusters, or up to the end of the disk, in compressed form; what does not become smaller as it is.
   *
   * @throws BlockError when the range does not begin and end like that
   */
  async writeCompressed(offset: number, from: SegmentList): Promise<void> {
    this.#writable("write", offset);
    const { externalData, compression } = this.header;
    const end = offset + from.byteLength;
    const isWhole = offset % this.#clusterBytes === 0 && (end % this.#clusterBytes === 0 || end === this.sizeBytes);
    if (!isWhole || externalData) {
      const reason = externalData
        ? "An image with an external data file has no compressed clusters"
        : "Compressed data are written in whole clusters";
      throw new BlockError({ kind: "invalid", path: this.name, operation: "write", offset, reason });
    }
    const { compressorFor } = await import("./compressor.ts");
    const compress = compressorFor(compression)!;
    for (let done = 0; done < from.byteLength; done += this.#clusterBytes) {
      const cluster = new Uint8Array(this.#clusterBytes);
      from.copyTo(cluster, done);
      const data = compress(cluster);
      const length = Math.min(this.#clusterBytes, from.byteLength - done);
      if (data !== null) await this.writeCompressedCluster(offset + done, data);
      else await this.write(offset + done, SegmentList.over(cluster.subarray(0, length)));
    }
  }

  /**
   * Stores the compressed form of the cluster at `offset`, made by whoever calls.
   *
   * @param data shorter than a cluster, and not to be changed before this ends
   */
  async writeCompressedCluster(offset: number, data: Uint8Array): Promise<void> {
    await this.#writable("write", offset).writeCompressed(offset, data);
  }

  async resize(sizeBytes: number): Promise<void> {
    await this.exclusive(() => resizeQcow2(this.#writable("resize"), this.#old, sizeBytes));
  }

  /**
   * Keeps the disk as it is now under a name.
   *
   * @returns the new snapshot's id
   */
  createSnapshot(name: string, dateMilliseconds: number = Date.now()): Promise<string> {
    return this.exclusive((tables) => createSnapshot(tables, name, dateMilliseconds));
  }

  /** Makes the disk what it was in a snapshot, by id or name. */
  applySnapshot(idOrName: string): Promise<void> {
    return this.exclusive((tables) => applySnapshot(tables, idOrName));
  }

  /** Deletes a snapshot, by id or name. */
  deleteSnapshot(idOrName: string): Promise<void> {
    return this.exclusive((tables) => deleteSnapshot(tables, idOrName));
  }

  /** Changes the persistent bitmaps while nobody writes, and stores what has changed, even when `action` fails. */
  async editBitmaps<T>(action: (bitmaps: PersistentBitmaps) => T | Promise<T>): Promise<T> {
    const [{ PersistentBitmaps }, { storeBitmaps }] = await Promise.all([
      import("./bitmaps.ts"),
      import("./bitmap_store.ts"),
    ]);
    return await this.exclusive(async (tables) => {
      tables.bitmaps ??= await PersistentBitmaps.open(this.#storage, this.header);
      try {
        return await action(tables.bitmaps);
      } finally {
        await storeBitmaps(tables, tables.bitmaps);
      }
    });
  }

  /** Runs `action` with the tables while nobody writes; the image is clean before and after. */
  exclusive<T>(action: (tables: WriteBack) => Promise<T>): Promise<T> {
    return this.#writable("write").exclusive(action);
  }

  close(): Completion {
    return closing(() => this.#writer?.finish(), () => {
      if (this.#data !== this.#storage) this.#data.close();
      this.#storage.close();
      return this.backing?.close();
    });
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
    // Without anybody who makes reads fail, this is all that it costs.
    if (this.#data.event !== undefined) {
      return after(this.#data.event("read_aio"), () => this.#moveData(hostOffset, part));
    }
    return this.#moveData(hostOffset, part);
  }

  #moveData(hostOffset: number, part: SegmentList): Completion {
    const writer = this.#writer;
    if (writer === null) return readUntil(this.#data, this.#dataBytes, hostOffset, part);
    const reading = readUntil(this.#data, writer.tables.file.dataEndBytes, hostOffset, part);
    return reading === undefined ? undefined : writer.tables.inFlight.track(reading);
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
    if (reading === undefined || this.#writer === null) return reading;
    return this.#writer.tables.inFlight.track(reading);
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

  /** @throws BlockError when the image was opened for reading only */
  #writable(operation: BlockOperation, offset?: number): Qcow2Writer {
    if (this.#writer !== null) return this.#writer;
    const reason = "The image was opened for reading only";
    throw new BlockError({ kind: "not-permitted", path: this.name, operation, offset, reason });
  }
}

/** Ends `first`, whatever comes of it, before `last`. */
function closing(first: () => Completion, last: () => Completion): Completion {
  let done: Completion = undefined;
  try {
    done = first();
  } catch (error) {
    last();
    throw error;
  }
  if (done === undefined) return last();
  return done.then(last, async (error) => {
    await last();
    throw error;
  });
}

/** The header as it would be with the snapshot's tables as the active ones; these are checked as those were. */
function atSnapshot(storage: Storage, header: Qcow2Header, snapshot: Snapshot): Qcow2Header {
  const { name, l1Offset, l1Entries, diskBytes } = snapshot;
  const clusterBytes = 2 ** header.clusterBits;
  const tableSpan = clusterBytes / (header.extendedL2 ? 16 : 8) * clusterBytes;
  const lengthBytes = l1Entries * 8;
  const isPossible = l1Offset % clusterBytes === 0 && lengthBytes <= L1_MAX_BYTES &&
    l1Offset + lengthBytes <= storage.sizeBytes && l1Entries >= Math.ceil(diskBytes / tableSpan);
  if (!isPossible) throw corrupt(storage.name, "open", `The L1 table of snapshot '${name}' cannot be used`, l1Offset);
  return { ...header, l1Offset, l1Entries, sizeBytes: diskBytes - diskBytes % SECTOR_BYTES };
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
