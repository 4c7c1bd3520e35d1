/**
 * qcow2 images made by hand, with what qemu-img would never write. By the text of the format, and not with the code
 * that reads them.
 */

import { Qcow2Image, type Qcow2Options } from "../../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";

/** What to make. Clusters are given in order; `undefined` is one that is not allocated. */
export interface Plan {
  version?: number;
  clusterBits?: number;
  sizeBytes?: number;
  incompatible?: bigint;
  autoclear?: bigint;
  compressionType?: number;
  extensions?: [type: number, data: Uint8Array][];
  backing?: string;
  clusters?: (Cluster | undefined)[];
}

/** One cluster of the disk. */
export interface Cluster {
  /** Stored from here on; one byte repeated, or the bytes themselves (compressed ones). */
  data?: number | Uint8Array;
  /** Instead of what `data` leads to. */
  entry?: bigint;
  /** Extended L2: the second half of the entry. */
  bitmap?: bigint;
  compressed?: boolean;
}

/** An image, and where its parts are. */
export interface Built {
  bytes: Uint8Array<ArrayBuffer>;
  view: DataView;
  l1Offset: number;
  /** Of the first L2 table; the others follow. */
  l2Offset: number;
  dataOffset: number;
}

export const COPIED = 1n << 63n;

/** Lays an image out: header, refcount table (never looked at), L1 table, L2 tables, data. */
export function build(plan: Plan = {}): Built {
  const { version = 3, clusterBits = 9, incompatible = 0n, autoclear = 0n, clusters = [] } = plan;
  const clusterBytes = 2 ** clusterBits;
  const entryBytes = (incompatible & 16n) !== 0n ? 16 : 8;
  const perTable = clusterBytes / entryBytes;
  const sizeBytes = plan.sizeBytes ?? Math.max(clusters.length, 1) * clusterBytes;
  const tables = Math.ceil(sizeBytes / clusterBytes / perTable);
  const l1Offset = 2 * clusterBytes;
  const l1Clusters = Math.ceil(tables * 8 / clusterBytes);
  const l2Offset = l1Offset + l1Clusters * clusterBytes;
  const used = Math.ceil(Math.max(1, clusters.length) / perTable);
  const dataOffset = l2Offset + used * clusterBytes;
  const bytes = new Uint8Array(dataOffset + clusters.length * clusterBytes);
  const view = new DataView(bytes.buffer);
  bytes.set([0x51, 0x46, 0x49, 0xfb]);
  view.setUint32(4, version);
  view.setUint32(20, clusterBits);
  view.setBigUint64(24, BigInt(sizeBytes));
  view.setUint32(36, tables);
  view.setBigUint64(40, BigInt(l1Offset));
  view.setBigUint64(48, BigInt(clusterBytes));
  view.setUint32(56, 1);
  let at = 72;
  if (version >= 3) {
    view.setBigUint64(72, incompatible);
    view.setBigUint64(88, autoclear);
    view.setUint32(96, 4);
    view.setUint32(100, 112);
    bytes[104] = plan.compressionType ?? 0;
    at = 112;
  }
  for (const [type, data] of plan.extensions ?? []) {
    view.setUint32(at, type);
    view.setUint32(at + 4, data.byteLength);
    bytes.set(data, at + 8);
    at += 8 + Math.ceil(data.byteLength / 8) * 8;
  }
  if (plan.backing !== undefined) {
    at += 8; // the end of the extensions
    const name = new TextEncoder().encode(plan.backing);
    view.setBigUint64(8, BigInt(at));
    view.setUint32(16, name.byteLength);
    bytes.set(name, at);
  }
  for (let i = 0; i < used; i++) view.setBigUint64(l1Offset + i * 8, COPIED | BigInt(l2Offset + i * clusterBytes));
  clusters.forEach((cluster, i) => {
    if (cluster === undefined) return;
    const place = dataOffset + i * clusterBytes;
    const { data = 0 } = cluster;
    if (typeof data === "number") bytes.fill(data, place, place + clusterBytes);
    else bytes.set(data, place);
    const shift = BigInt(62 - (clusterBits - 8));
    const sectors = typeof data === "number" ? 0 : Math.ceil(data.byteLength / 512) - 1;
    const entry = cluster.compressed
      ? (1n << 62n) | (BigInt(sectors) << shift) | BigInt(place)
      : COPIED | BigInt(place);
    view.setBigUint64(l2Offset + i * entryBytes, cluster.entry ?? entry);
    if (entryBytes === 16) view.setBigUint64(l2Offset + i * 16 + 8, cluster.bitmap ?? 0xffffffffn);
  });
  return { bytes, view, l1Offset, l2Offset, dataOffset };
}

/** The bytes as a storage, which counts and may fail or wait. */
export function storageOf(bytes: Uint8Array, name = "disk.qcow2"): FaultStorage {
  const memory = new MemoryStorage(bytes.byteLength, { name, readOnly: true });
  memory.write(0, SegmentList.over(bytes));
  return new FaultStorage(memory);
}

/** Opens an image that was built. */
export function openBuilt({ bytes }: { bytes: Uint8Array }, options: Qcow2Options = {}): Promise<Qcow2Image> {
  return Qcow2Image.open(storageOf(bytes), options);
}
