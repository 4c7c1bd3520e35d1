/**
 * The header of a qcow2 image (QEMU's docs/interop/qcow2, "Header", "Additional fields"), read and checked before
 * anything is done, or memory taken, because of it.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";
import {
  type BitmapDirectory,
  bitmapsOf,
  featureNames,
  type HeaderExtension,
  nameFrom,
  parseExtensions,
  textOf,
} from "./extensions.ts";
import {
  AUTOCLEAR,
  BACKING_NAME_MAX_BYTES,
  CLUSTER_BITS,
  COMPATIBLE_LAZY_REFCOUNTS,
  DATA_FILE_NAME_MAX_BYTES,
  EXTENDED_L2_LEAST_CLUSTER_BITS,
  EXTENSION,
  FORMAT_NAME_MAX_BYTES,
  HEADER,
  INCOMPATIBLE,
  KNOWN_HEADER_BYTES,
  L1_MAX_BYTES,
  QCOW2_MAGIC,
  REFCOUNT_TABLE_MAX_BYTES,
  SNAPSHOTS_MAX,
  V2_HEADER_BYTES,
  V3_HEADER_BYTES,
} from "./qcow2_layout.ts";
import { checkedU64, corrupt, unsupported } from "./refuse.ts";

/** What a header says, checked. */
export interface Qcow2Header {
  /** Version of the format. */
  readonly version: 2 | 3;
  /** Size of a cluster, as a power of two. */
  readonly clusterBits: number;
  /** Size of the disk: whole sectors. */
  readonly sizeBytes: number;
  /** Where the active L1 table starts, in bytes. */
  readonly l1Offset: number;
  /** Number of its entries. */
  readonly l1Entries: number;
  /** Where the refcount table starts, in bytes. */
  readonly refcountTableOffset: number;
  /** How many clusters it takes. */
  readonly refcountTableClusters: number;
  /** Width of a refcount, in bits. */
  readonly refcountBits: number;
  /** Where the table of snapshots starts, in bytes. */
  readonly snapshotsOffset: number;
  /** Number of internal snapshots. */
  readonly snapshotCount: number;
  /** The feature fields as they are in the file; 0 in version 2. What they mean is in the fields below. */
  readonly incompatible: bigint;
  /** Features that may be ignored. */
  readonly compatible: bigint;
  /** Features that whoever does not keep them up clears. */
  readonly autoclear: bigint;
  /** Length of the header proper, in bytes; what is in it beyond the fields that are known must be kept. */
  readonly headerBytes: number;
  /** The part of the header proper behind the fields that are known: a copy, mostly empty. */
  readonly unknownFields: Uint8Array;
  /** All extensions, known and unknown, in the order of the file; a copy. */
  readonly extensions: readonly HeaderExtension[];
  /** Where the backing file's name is; 0 without one. */
  readonly backingNameOffset: number;
  /** Name of the backing file; `null` without one. */
  readonly backingName: string | null;
  /** Name of the backing file's format; `null` when the image does not say. */
  readonly backingFormat: string | null;
  /** Refcounts may be stale; reading needs none. */
  readonly dirty: boolean;
  /** Somebody found damage, and nobody repaired it. Readable as far as it goes. */
  readonly corrupt: boolean;
  /** Clusters have subclusters. */
  readonly extendedL2: boolean;
  /** How compressed clusters are compressed. */
  readonly compression: "zlib" | "zstd";
  /** Refcounts may be written late. */
  readonly lazyRefcounts: boolean;
  /** Guest data is in another file. */
  readonly externalData: boolean;
  /** The external data file can be read as a raw image. */
  readonly externalDataRaw: boolean;
  /** Name of the external data file; `null` when the image does not say. */
  readonly dataFileName: string | null;
  /** `null` when there are none, or they are not to be trusted. */
  readonly bitmaps: BitmapDirectory | null;
}

const FIRST_READ_BYTES = 65536;

/**
 * Reads and checks the header of an image.
 *
 * @param options `forCheck` takes one whose refcount table or snapshot table can't be used: a check says more of them
 * @throws BlockError of kind `corrupt`, `unsupported`, or what the storage failed with
 */
export async function readHeader(storage: Storage, options: { forCheck?: boolean } = {}): Promise<Qcow2Header> {
  const path = storage.name;
  const fileBytes = storage.sizeBytes;
  let cluster = new Uint8Array(FIRST_READ_BYTES);
  await readInto(storage, cluster, 0, fileBytes);
  const view = new DataView(cluster.buffer);
  if (fileBytes < V2_HEADER_BYTES || view.getUint32(HEADER.magic) !== QCOW2_MAGIC) {
    throw unsupported(path, "Image is not in qcow2 format");
  }
  const clusterBits = view.getUint32(HEADER.clusterBits);
  if (clusterBits < CLUSTER_BITS.least || clusterBits > CLUSTER_BITS.most) {
    throw unsupported(path, `Unsupported cluster size: 2^${clusterBits}`);
  }
  if (2 ** clusterBits > cluster.byteLength) {
    cluster = new Uint8Array(2 ** clusterBits);
    await readInto(storage, cluster, 0, fileBytes);
  }
  return parseHeader(cluster.subarray(0, 2 ** clusterBits), fileBytes, path, options.forCheck ?? false);
}

/** Reads what the file has of a range; the rest stays as it is. */
async function readInto(storage: Storage, target: Uint8Array, offset: number, fileBytes: number): Promise<void> {
  const stored = Math.min(target.byteLength, fileBytes - offset);
  if (stored > 0) await storage.read(offset, SegmentList.over(target.subarray(0, stored)));
}

function parseHeader(cluster: Uint8Array, fileBytes: number, path: string, forCheck: boolean): Qcow2Header {
  const view = new DataView(cluster.buffer, cluster.byteOffset, cluster.byteLength);
  const u32 = (at: number) => view.getUint32(at);
  const u64 = (at: number, what: string) => checkedU64(view, at, what, path);
  const clusterBits = u32(HEADER.clusterBits);
  const version = u32(HEADER.version);
  if (version !== 2 && version !== 3) throw unsupported(path, `Unsupported qcow2 version ${version}`);
  const headerLength = version === 2 ? V2_HEADER_BYTES : u32(HEADER.headerLength);
  if (version === 3 && headerLength < V3_HEADER_BYTES) throw corrupt(path, "open", "qcow2 header too short");
  if (headerLength > cluster.byteLength) throw corrupt(path, "open", "qcow2 header exceeds cluster size");
  if (headerLength % 8 !== 0) throw corrupt(path, "open", "The header's length is not a multiple of 8");
  if (headerLength > fileBytes) throw corrupt(path, "open", "The file ends inside the header");

  const backingOffset = u64(HEADER.backingFileOffset, "The backing file offset");
  if (backingOffset > cluster.byteLength) throw corrupt(path, "open", "Invalid backing file offset");
  const extensionsEnd = backingOffset === 0 ? cluster.byteLength : backingOffset;
  const features = featuresOf(view, version, path, () => parseExtensions(cluster, headerLength, extensionsEnd, path));
  const compression = compressionOf(view, headerLength, features.incompatible, path);
  const extendedL2 = (features.incompatible & INCOMPATIBLE.extendedL2) !== 0n;
  if (extendedL2 && clusterBits < EXTENDED_L2_LEAST_CLUSTER_BITS) {
    throw corrupt(path, "open", `Unsupported subcluster size: ${2 ** (clusterBits - 5)}`);
  }
  const refcountOrder = version === 2 ? 4 : u32(HEADER.refcountOrder);
  if (refcountOrder > 6) {
    throw corrupt(path, "open", "Reference count entry width too large; may not exceed 64 bits");
  }
  refuseEncryption(u32(HEADER.cryptMethod), path);
  checkTables(view, clusterBits, fileBytes, path, forCheck);

  const size = u64(HEADER.size, "The size of the disk");
  const l1Entries = u32(HEADER.l1Size);
  const entriesPerTable = 2 ** (clusterBits - (extendedL2 ? 4 : 3));
  if (l1Entries < Math.ceil(size / 2 ** clusterBits / entriesPerTable)) {
    throw corrupt(path, "open", "L1 table is too small");
  }
  const extensions = parseExtensions(cluster, headerLength, extensionsEnd, path);
  const externalData = (features.incompatible & INCOMPATIBLE.externalData) !== 0n;
  const externalDataRaw = (features.autoclear & AUTOCLEAR.rawExternalData) !== 0n;
  if (externalDataRaw && !externalData) throw corrupt(path, "open", "data-file-raw requires a data file");
  const backingName = backingNameOf(cluster, backingOffset, u32(HEADER.backingFileSize), path);
  if (externalDataRaw && backingName !== null) {
    throw corrupt(path, "open", "Backing file and data-file-raw cannot be used at the same time");
  }
  return {
    version,
    clusterBits,
    // A part of a sector is no place that a guest could address; QEMU rounds down too.
    sizeBytes: size - size % SECTOR_BYTES,
    l1Offset: u64(HEADER.l1TableOffset, "The L1 table's offset"),
    l1Entries,
    refcountTableOffset: u64(HEADER.refcountTableOffset, "The refcount table's offset"),
    refcountTableClusters: u32(HEADER.refcountTableClusters),
    refcountBits: 2 ** refcountOrder,
    snapshotsOffset: u64(HEADER.snapshotsOffset, "The snapshot table's offset"),
    snapshotCount: u32(HEADER.nbSnapshots),
    ...features,
    headerBytes: headerLength,
    unknownFields: cluster.slice(Math.min(KNOWN_HEADER_BYTES, headerLength), headerLength),
    extensions: extensions.map(({ type, data }) => ({ type, data: data.slice() })),
    backingNameOffset: backingOffset,
    backingName,
    backingFormat: textOf(extensions, EXTENSION.backingFormat, FORMAT_NAME_MAX_BYTES, "backing format's name", path),
    dirty: (features.incompatible & INCOMPATIBLE.dirty) !== 0n,
    corrupt: (features.incompatible & INCOMPATIBLE.corrupt) !== 0n,
    extendedL2,
    compression,
    lazyRefcounts: (features.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
    externalData,
    externalDataRaw,
    dataFileName: textOf(extensions, EXTENSION.dataFile, DATA_FILE_NAME_MAX_BYTES, "data file's name", path),
    bitmaps: bitmapsOf(extensions, features.autoclear, 2 ** clusterBits, fileBytes, path),
  };
}

interface Features {
  readonly incompatible: bigint;
  readonly compatible: bigint;
  readonly autoclear: bigint;
}

function featuresOf(view: DataView, version: number, path: string, extensions: () => HeaderExtension[]): Features {
  if (version === 2) return { incompatible: 0n, compatible: 0n, autoclear: 0n };
  const incompatible = view.getBigUint64(HEADER.incompatibleFeatures);
  const known = Object.values(INCOMPATIBLE).reduce((all, bit) => all | bit, 0n);
  const unknown = incompatible & ~known;
  if (unknown !== 0n) {
    let names: Uint8Array | undefined;
    try {
      names = extensions().find(({ type }) => type === EXTENSION.featureNames)?.data;
    } catch {
      // The extensions are broken too; the feature is what decides.
    }
    throw unsupported(
      path,
      `Unsupported qcow2 feature(s): ${featureNames(unknown, names).join(", ")}`,
      "the image was made by a newer program than vblk knows of: convert it with that program",
    );
  }
  return {
    incompatible,
    compatible: view.getBigUint64(HEADER.compatibleFeatures),
    autoclear: view.getBigUint64(HEADER.autoclearFeatures),
  };
}

function compressionOf(view: DataView, headerLength: number, incompatible: bigint, path: string): "zlib" | "zstd" {
  const type = headerLength > HEADER.compressionType ? view.getUint8(HEADER.compressionType) : 0;
  const said = (incompatible & INCOMPATIBLE.compressionType) !== 0n;
  if (type > 1) throw unsupported(path, `qcow2: unknown compression type: ${type}`);
  if (said && type === 0) {
    throw corrupt(path, "open", "qcow2: Compression type incompatible feature bit must not be set");
  }
  if (!said && type !== 0) throw corrupt(path, "open", "qcow2: Compression type incompatible feature bit must be set");
  return type === 0 ? "zlib" : "zstd";
}

const CRYPT_METHODS = ["", "AES", "LUKS"];

function refuseEncryption(method: number, path: string): void {
  if (method === 0) return;
  throw unsupported(
    path,
    `The image is encrypted (${CRYPT_METHODS[method] ?? `unknown method ${method}`}), which vblk does not read`,
    "decrypt it with 'qemu-img convert --object secret,...' first",
  );
}

function checkTables(
  view: DataView,
  clusterBits: number,
  fileBytes: number,
  path: string,
  forCheck: boolean,
): void {
  const clusterBytes = 2 ** clusterBits;
  const check = (name: string, at: number, lengthBytes: number, most: number, wholeInFile: boolean) => {
    if (lengthBytes > most) throw corrupt(path, "open", `${name} too large`);
    const offset = checkedU64(view, at, `The offset of the ${name}`, path);
    const end = offset + (wholeInFile ? lengthBytes : Math.min(lengthBytes, 1));
    if (offset % clusterBytes !== 0) throw corrupt(path, "open", `${name} offset invalid`, at);
    const mustBeInFile = wholeInFile || !forCheck;
    if (lengthBytes > 0 && end > fileBytes && mustBeInFile) {
      throw corrupt(path, "open", `${name} lies outside the file`, at);
    }
  };
  const refcountClusters = view.getUint32(HEADER.refcountTableClusters);
  if (refcountClusters === 0 && !forCheck) {
    throw corrupt(path, "open", "Image does not contain a reference count table");
  }
  // What is not read for reading a disk need only begin in the file: a program may have cut it where zeros begin.
  const refcountBytes = refcountClusters * clusterBytes;
  check("Reference count table", HEADER.refcountTableOffset, refcountBytes, REFCOUNT_TABLE_MAX_BYTES, false);
  const snapshotBytes = view.getUint32(HEADER.nbSnapshots) * 40;
  if (!forCheck) check("Snapshot table", HEADER.snapshotsOffset, snapshotBytes, SNAPSHOTS_MAX * 40, false);
  check("Active L1 table", HEADER.l1TableOffset, view.getUint32(HEADER.l1Size) * 8, L1_MAX_BYTES, true);
}

function backingNameOf(cluster: Uint8Array, offset: number, lengthBytes: number, path: string): string | null {
  if (offset === 0) return null;
  if (lengthBytes > Math.min(BACKING_NAME_MAX_BYTES, cluster.byteLength - offset)) {
    throw corrupt(path, "open", "Backing file name too long");
  }
  const name = nameFrom(cluster.subarray(offset, offset + lengthBytes), "backing file's name", path);
  return name === "" ? null : name;
}
