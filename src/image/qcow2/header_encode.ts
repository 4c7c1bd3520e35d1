/**
 * The header of a qcow2 image (QEMU's docs/interop/qcow2, "Header", "Header extensions"), as bytes: fields, extensions
 * in the order that they had, the name of the backing file.
 *
 * @module
 */

import type { HeaderExtension } from "./extensions.ts";
import type { BitmapDirectory } from "./extensions.ts";
import type { Qcow2Header } from "./header.ts";
import {
  AUTOCLEAR,
  COMPATIBLE_LAZY_REFCOUNTS,
  EXTENSION,
  HEADER,
  INCOMPATIBLE,
  KNOWN_HEADER_BYTES,
  QCOW2_MAGIC,
  V2_HEADER_BYTES,
} from "./qcow2_layout.ts";
import { BlockError } from "../../storage/block_error.ts";

/** Clusters up to this size have no room for the table of feature names; as in QEMU. */
const FEATURE_NAMES_ABOVE_BYTES = 4096;

/** Order in which QEMU writes the extensions; unknown ones follow. */
const ORDER: readonly number[] = [
  EXTENSION.backingFormat,
  EXTENSION.dataFile,
  EXTENSION.encryption,
  EXTENSION.featureNames,
  EXTENSION.bitmaps,
];

/**
 * A header with some fields changed, and all that follows from them: what is said twice in a header (a feature bit and
 * its meaning, a name and the extension that holds it) is the same in both places afterwards. Where a change names
 * both, the meaning wins over the bits.
 *
 * Version 2 has no features: a header that becomes one loses them, and the caller has seen to it that none is in use.
 */
export function changeHeader(header: Qcow2Header, change: Partial<Qcow2Header>): Qcow2Header {
  const next = { ...header, ...change };
  const features = next.version === 2 ? NO_FEATURES : changedFeatures(next, change);
  const extensions = changedExtensions(next, change, header.version);
  const hasBitmaps = (features.autoclear & AUTOCLEAR.bitmaps) !== 0n;
  return {
    ...next,
    ...features,
    extensions,
    headerBytes: headerBytesOf(next, header.version),
    unknownFields: next.version === 2 ? new Uint8Array() : next.unknownFields,
    refcountBits: next.version === 2 ? 16 : next.refcountBits,
    backingFormat: textOf(extensions, EXTENSION.backingFormat),
    dataFileName: textOf(extensions, EXTENSION.dataFile),
    bitmaps: hasBitmaps ? next.bitmaps : null,
    dirty: (features.incompatible & INCOMPATIBLE.dirty) !== 0n,
    corrupt: (features.incompatible & INCOMPATIBLE.corrupt) !== 0n,
    externalData: (features.incompatible & INCOMPATIBLE.externalData) !== 0n,
    extendedL2: (features.incompatible & INCOMPATIBLE.extendedL2) !== 0n,
    compression: (features.incompatible & INCOMPATIBLE.compressionType) === 0n ? "zlib" : "zstd",
    externalDataRaw: (features.autoclear & AUTOCLEAR.rawExternalData) !== 0n,
    lazyRefcounts: (features.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
  };
}

type Features = Pick<Qcow2Header, "incompatible" | "compatible" | "autoclear">;

const NO_FEATURES: Features = { incompatible: 0n, compatible: 0n, autoclear: 0n };

function changedFeatures(next: Features, change: Partial<Qcow2Header>): Features {
  const withBit = (bits: bigint, bit: bigint, on: boolean | undefined) =>
    on === undefined ? bits : on ? bits | bit : bits & ~bit;
  let { incompatible, compatible, autoclear } = next;
  const zstd = change.compression === undefined ? undefined : change.compression === "zstd";
  incompatible = withBit(incompatible, INCOMPATIBLE.dirty, change.dirty);
  incompatible = withBit(incompatible, INCOMPATIBLE.corrupt, change.corrupt);
  incompatible = withBit(incompatible, INCOMPATIBLE.externalData, change.externalData);
  incompatible = withBit(incompatible, INCOMPATIBLE.compressionType, zstd);
  incompatible = withBit(incompatible, INCOMPATIBLE.extendedL2, change.extendedL2);
  compatible = withBit(compatible, COMPATIBLE_LAZY_REFCOUNTS, change.lazyRefcounts);
  autoclear = withBit(autoclear, AUTOCLEAR.rawExternalData, change.externalDataRaw);
  const hasBitmaps = change.bitmaps === undefined ? undefined : change.bitmaps !== null;
  autoclear = withBit(autoclear, AUTOCLEAR.bitmaps, hasBitmaps);
  return { incompatible, compatible, autoclear };
}

/** A header that is made longer starts its extensions elsewhere, so that is done only where a field needs it. */
function headerBytesOf({ version, headerBytes, incompatible }: Qcow2Header, before: number): number {
  if (version === 2) return V2_HEADER_BYTES;
  const needed = before === 2 || (incompatible & INCOMPATIBLE.compressionType) !== 0n;
  return needed ? Math.max(headerBytes, KNOWN_HEADER_BYTES) : headerBytes;
}

function changedExtensions(next: Qcow2Header, change: Partial<Qcow2Header>, before: number): HeaderExtension[] {
  const list = [...next.extensions];
  const { backingName, backingFormat, dataFileName, bitmaps } = change;
  // The format belongs to the file: without one there is none to have a format.
  if (backingFormat !== undefined) put(list, EXTENSION.backingFormat, encoded(backingFormat));
  else if (backingName === null) put(list, EXTENSION.backingFormat, null);
  if (dataFileName !== undefined) put(list, EXTENSION.dataFile, encoded(dataFileName));
  if (bitmaps !== undefined) put(list, EXTENSION.bitmaps, bitmaps === null ? null : bitmapsData(bitmaps));
  if (next.version === 2) {
    put(list, EXTENSION.featureNames, null);
    put(list, EXTENSION.bitmaps, null);
  } else if (before === 2 && 2 ** next.clusterBits > FEATURE_NAMES_ABOVE_BYTES) {
    put(list, EXTENSION.featureNames, featureTable());
  }
  return list;
}

/** Replaces, adds or (`null`) removes an extension. */
function put(list: HeaderExtension[], type: number, data: Uint8Array | null): void {
  const at = list.findIndex((extension) => extension.type === type);
  if (at >= 0) list.splice(at, 1, ...data === null ? [] : [{ type, data }]);
  else if (data !== null) {
    const rank = ORDER.indexOf(type);
    const next = list.findIndex((extension) => !ORDER.slice(0, rank).includes(extension.type));
    list.splice(next < 0 ? list.length : next, 0, { type, data });
  }
}

function encoded(text: string | null): Uint8Array | null {
  return text === null ? null : new TextEncoder().encode(text);
}

function textOf(extensions: readonly HeaderExtension[], wanted: number): string | null {
  const data = extensions.find(({ type }) => type === wanted)?.data;
  return data === undefined || data.byteLength === 0 ? null : new TextDecoder().decode(data);
}

function bitmapsData({ count, lengthBytes, offset }: BitmapDirectory): Uint8Array {
  const view = new DataView(new ArrayBuffer(24));
  view.setUint32(0, count);
  view.setBigUint64(8, BigInt(lengthBytes));
  view.setBigUint64(16, BigInt(offset));
  return new Uint8Array(view.buffer);
}

/** Type (incompatible, compatible, autoclear), bit, and the name that QEMU writes. */
const FEATURE_NAMES: readonly (readonly [type: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

/** Contents of a feature name table extension. */
function featureTable(): Uint8Array {
  const bytes = new Uint8Array(FEATURE_NAMES.length * 48);
  FEATURE_NAMES.forEach(([type, bit, name], i) => {
    bytes[i * 48] = type;
    bytes[i * 48 + 1] = bit;
    bytes.set(new TextEncoder().encode(name), i * 48 + 2);
  });
  return bytes;
}

/** What a new image's header is made of. */
export interface NewHeader {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly refcountBits: number;
}

/** The header of an image that has nothing yet: no disk, no tables. The rest is added by `changeHeader`. */
export function newHeader({ version, clusterBits, refcountBits }: NewHeader): Qcow2Header {
  const empty: Qcow2Header = {
    version: 2,
    clusterBits,
    sizeBytes: 0,
    l1Offset: 0,
    l1Entries: 0,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    refcountBits,
    snapshotsOffset: 0,
    snapshotCount: 0,
    ...NO_FEATURES,
    headerBytes: V2_HEADER_BYTES,
    unknownFields: new Uint8Array(),
    extensions: [],
    backingNameOffset: 0,
    backingName: null,
    backingFormat: null,
    dirty: false,
    corrupt: false,
    extendedL2: false,
    compression: "zlib",
    lazyRefcounts: false,
    externalData: false,
    externalDataRaw: false,
    dataFileName: null,
    bitmaps: null,
  };
  return changeHeader(empty, { version });
}

/** A first cluster, and what of it the header proper refers to. */
export interface EncodedHeader {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Where the extensions end, their end mark included. */
  readonly extensionsEnd: number;
  /** Where the name of the backing file is; 0 without one. */
  readonly nameOffset: number;
  readonly nameBytes: number;
}

/**
 * The whole first cluster of an image.
 *
 * @param path for the message
 * @throws BlockError when it has no room for what is to be in it
 */
export function encodeHeader(header: Qcow2Header, path = "image"): Uint8Array<ArrayBuffer> {
  return layOut(header, path).bytes;
}

/**
 * Lays out a first cluster.
 *
 * @param nameFrom where the backing file's name may start, at the earliest; behind the extensions in any case
 * @throws BlockError
 */
export function layOut(header: Qcow2Header, path: string, nameFrom = 0): EncodedHeader {
  const bytes = new Uint8Array(2 ** header.clusterBits);
  const view = new DataView(bytes.buffer);
  writeFields(view, header);
  bytes.set(header.unknownFields, Math.min(KNOWN_HEADER_BYTES, header.headerBytes));
  let at = header.headerBytes;
  for (const { type, data } of [...header.extensions, END]) {
    const end = at + 8 + Math.ceil(data.byteLength / 8) * 8;
    if (end > bytes.byteLength) throw tooLarge(path);
    view.setUint32(at, type);
    view.setUint32(at + 4, data.byteLength);
    bytes.set(data, at + 8);
    at = end;
  }
  if (header.backingName === null) return { bytes, extensionsEnd: at, nameOffset: 0, nameBytes: 0 };
  const name = new TextEncoder().encode(header.backingName);
  const nameOffset = Math.max(at, nameFrom);
  if (nameOffset + name.byteLength > bytes.byteLength) throw tooLarge(path);
  bytes.set(name, nameOffset);
  view.setBigUint64(HEADER.backingFileOffset, BigInt(nameOffset));
  view.setUint32(HEADER.backingFileSize, name.byteLength);
  return { bytes, extensionsEnd: at, nameOffset, nameBytes: name.byteLength };
}

const END: HeaderExtension = { type: EXTENSION.end, data: new Uint8Array() };

function writeFields(view: DataView, header: Qcow2Header): void {
  view.setUint32(HEADER.magic, QCOW2_MAGIC);
  view.setUint32(HEADER.version, header.version);
  view.setUint32(HEADER.clusterBits, header.clusterBits);
  view.setBigUint64(HEADER.size, BigInt(header.sizeBytes));
  view.setUint32(HEADER.l1Size, header.l1Entries);
  view.setBigUint64(HEADER.l1TableOffset, BigInt(header.l1Offset));
  view.setBigUint64(HEADER.refcountTableOffset, BigInt(header.refcountTableOffset));
  view.setUint32(HEADER.refcountTableClusters, header.refcountTableClusters);
  view.setUint32(HEADER.nbSnapshots, header.snapshotCount);
  view.setBigUint64(HEADER.snapshotsOffset, BigInt(header.snapshotsOffset));
  if (header.version === 2) return;
  view.setBigUint64(HEADER.incompatibleFeatures, header.incompatible);
  view.setBigUint64(HEADER.compatibleFeatures, header.compatible);
  view.setBigUint64(HEADER.autoclearFeatures, header.autoclear);
  view.setUint32(HEADER.refcountOrder, Math.log2(header.refcountBits));
  view.setUint32(HEADER.headerLength, header.headerBytes);
  if (header.headerBytes > HEADER.compressionType) {
    view.setUint8(HEADER.compressionType, header.compression === "zlib" ? 0 : 1);
  }
}

function tooLarge(path: string): BlockError {
  const reason = "The header does not fit into the first cluster: No space left on device";
  const hint = "a shorter name of the backing or data file would, or larger clusters";
  return new BlockError({ kind: "no-space", path, operation: "write", reason, hint });
}
