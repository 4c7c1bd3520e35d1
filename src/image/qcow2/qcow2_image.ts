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
import type { Completion, Storage } from "../../storage/storage.ts";
import type { Extent, Image, ImageDetails } from "../image.ts";
import type { OldContents } from "./cluster_writer.ts";
import { detailsOf } from "./details.ts";
import { type Qcow2Header, readHeader } from "./header.ts";
import type { JournalStore } from "./journal.ts";
import { Qcow2Mapping } from "./mapping.ts";
import { openWriter, prepareForWriting } from "./open_for_writing.ts";
import { L2_CACHE_DEFAULT_BYTES } from "./qcow2_layout.ts";
import { unsupported } from "./refuse.ts";
import { Qcow2Reader } from "./reader.ts";
import { resizeQcow2 } from "./resize.ts";
import { atSnapshot, type Snapshot } from "./snapshot_table.ts";
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
  /** Keeps unflushed changes of tables, so that nothing is lost when this process is killed. */
  journal?: JournalStore;
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
  readonly #reader: Qcow2Reader;
  readonly #clusterBytes: number;

  private constructor(
    storage: Storage,
    header: Qcow2Header,
    mapping: Qcow2Mapping,
    data: Storage,
    backing: Image | null,
    old: OldContents,
    reader: Qcow2Reader,
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
    this.#reader = reader;
    this.#clusterBytes = 2 ** header.clusterBits;
    if (writer !== null) reader.follow(writer.tables);
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
    const readOnly = (options.readOnly ?? storage.readOnly) || snapshot !== undefined;
    if (!readOnly) header = await prepareForWriting(storage, header, options.journal);
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
      const reader = new Qcow2Reader(storage, data, header, mapping, backing);
      const backingBytes = backing?.sizeBytes ?? 0;
      const old: OldContents = {
        read: async (offset, into) => await reader.read(offset, into),
        isZeroBehind: (offset) => offset >= backingBytes,
        backingBytes,
      };
      const writer = readOnly ? null : await openWriter(storage, data, header, mapping, old, options);
      return new Qcow2Image(storage, header, mapping, data, backing, old, reader, writer);
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

  /** How often a part of an L2 table was in memory when it was needed, and how often it was read. */
  get tableLookups(): { hits: number; misses: number } {
    return this.#mapping.cache.lookups;
  }

  /** Memory for L2 tables: how many bytes are used now, and how many at most. */
  get l2Cache(): { usedBytes: number; limitBytes: number } {
    const { cache, sliceBytes } = this.#mapping;
    return { usedBytes: cache.count * sliceBytes, limitBytes: cache.capacity * sliceBytes };
  }

  read(offset: number, into: SegmentList): Completion {
    return this.#reader.read(offset, into);
  }

  map(offset: number, lengthBytes: number): Extent[] | Promise<Extent[]> {
    return this.#reader.map(offset, lengthBytes);
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

  /**
   * Changes the persistent bitmaps while nobody writes, and stores what has changed, even when `action` fails.
   *
   * @internal
   */
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

  /**
   * Runs `action` with the tables while nobody writes; the image is clean before and after.
   *
   * @internal
   */
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
