/**
 * The table of internal snapshots (QEMU's docs/interop/qcow2, "Snapshots"), read and written.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Storage } from "../../storage/storage.ts";
import { SECTOR_BYTES } from "../image.ts";
import { nameFrom } from "./extensions.ts";
import type { Qcow2Header } from "./header.ts";
import { L1_MAX_BYTES, SNAPSHOT_EXTRA_MAX_BYTES, SNAPSHOT_TABLE_MAX_BYTES } from "./qcow2_layout.ts";
import { corrupt } from "./refuse.ts";

/** One internal snapshot. */
export interface Snapshot {
  /** A number in text, as a rule; unique in the image. */
  readonly id: string;
  /** Name for people; need not be unique. */
  readonly name: string;
  /** Where its L1 table starts in the file, in bytes. */
  readonly l1Offset: number;
  /** Number of that table's entries. */
  readonly l1Entries: number;
  /** When it was taken: seconds since 1970. */
  readonly dateSeconds: number;
  /** The rest of a second, in nanoseconds. */
  readonly dateNanoseconds: number;
  /** How long the guest had been running. */
  readonly vmClockNanoseconds: bigint;
  /** Size of the state of the virtual machine; 0 without one. */
  readonly vmStateBytes: number;
  /** Size of the disk at that time. */
  readonly diskBytes: number;
  /** Instructions that the guest had executed; `null` when nobody counted. */
  readonly icount: bigint | null;
  /** Extra data behind the fields that are known, to be kept. */
  readonly extraData: Uint8Array;
}

/** The table, and how much of the file it takes. */
export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[];
  readonly lengthBytes: number;
}

/** Where the fields of an entry are, in bytes. */
const FIELD = {
  l1Offset: 0,
  l1Entries: 8,
  idBytes: 12,
  nameBytes: 14,
  dateSeconds: 16,
  dateNanoseconds: 20,
  vmClock: 24,
  vmStateBytes: 32,
  extraBytes: 36,
  vmStateBytesLarge: 40,
  diskBytes: 48,
  icount: 56,
} as const;

/** Length of the fields that each entry has, and with the extra fields that are known. */
const ENTRY_BYTES = 40;
const KNOWN_EXTRA_BYTES = 24;
const NO_ICOUNT = 2n ** 64n - 1n;

/**
 * The internal snapshots of an image, in the order of the table.
 *
 * @throws BlockError
 */
export async function readSnapshots(storage: Storage, header: Qcow2Header): Promise<readonly Snapshot[]> {
  return (await readSnapshotTable(storage, header)).snapshots;
}

/**
 * The table of internal snapshots. How long it is shows only when it is read, so it is read piece by piece.
 *
 * @throws BlockError
 */
export async function readSnapshotTable(storage: Storage, header: Qcow2Header): Promise<SnapshotTable> {
  const { snapshotsOffset, snapshotCount } = header;
  const snapshots: Snapshot[] = [];
  const reader = new TableReader(storage, snapshotsOffset);
  let at = 0;
  for (let i = 0; i < snapshotCount; i++) {
    at = Math.ceil(at / 8) * 8;
    let view = await reader.upTo(at + ENTRY_BYTES);
    const extraBytes = view.getUint32(at + FIELD.extraBytes);
    if (extraBytes > SNAPSHOT_EXTRA_MAX_BYTES) {
      throw corrupt(storage.name, "open", `Too much extra metadata in snapshot table entry ${i}`, snapshotsOffset + at);
    }
    const idBytes = view.getUint16(at + FIELD.idBytes);
    const end = at + ENTRY_BYTES + extraBytes + idBytes + view.getUint16(at + FIELD.nameBytes);
    view = await reader.upTo(end);
    snapshots.push(parseEntry(new DataView(view.buffer, at, end - at), extraBytes, idBytes, header, storage.name));
    at = end;
  }
  return { snapshots, lengthBytes: at };
}

function parseEntry(
  view: DataView,
  extraBytes: number,
  idBytes: number,
  header: Qcow2Header,
  path: string,
): Snapshot {
  const u64 = (at: number, what: string) => {
    const value = view.getBigUint64(at);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw corrupt(path, "open", `A snapshot's ${what} is too large: ${value}`);
    }
    return Number(value);
  };
  const has = (at: number) => ENTRY_BYTES + extraBytes >= at + 8;
  const text = (from: number, to: number, what: string) =>
    nameFrom(new Uint8Array(view.buffer, view.byteOffset + from, to - from), what, path);
  const extraEnd = ENTRY_BYTES + extraBytes;
  const extraStart = Math.min(ENTRY_BYTES + KNOWN_EXTRA_BYTES, extraEnd);
  const icount = has(FIELD.icount) ? view.getBigUint64(FIELD.icount) : NO_ICOUNT;
  return {
    id: text(extraEnd, extraEnd + idBytes, "snapshot's ID"),
    name: text(extraEnd + idBytes, view.byteLength, "snapshot's name"),
    l1Offset: u64(FIELD.l1Offset, "L1 table offset"),
    l1Entries: view.getUint32(FIELD.l1Entries),
    dateSeconds: view.getUint32(FIELD.dateSeconds),
    dateNanoseconds: view.getUint32(FIELD.dateNanoseconds),
    vmClockNanoseconds: view.getBigUint64(FIELD.vmClock),
    vmStateBytes: has(FIELD.vmStateBytesLarge)
      ? u64(FIELD.vmStateBytesLarge, "VM state")
      : view.getUint32(FIELD.vmStateBytes),
    diskBytes: has(FIELD.diskBytes) ? u64(FIELD.diskBytes, "disk") : header.sizeBytes,
    icount: icount === NO_ICOUNT ? null : icount,
    extraData: new Uint8Array(view.buffer, view.byteOffset + extraStart, extraEnd - extraStart).slice(),
  };
}

const FIRST_READ_BYTES = 4096;

/** The bytes of the table, as far as they were needed. */
class TableReader {
  readonly #storage: Storage;
  readonly #offset: number;
  readonly #mostBytes: number;
  #bytes = new Uint8Array();

  constructor(storage: Storage, offset: number) {
    this.#storage = storage;
    this.#offset = offset;
    this.#mostBytes = Math.min(SNAPSHOT_TABLE_MAX_BYTES, storage.sizeBytes - offset);
  }

  async upTo(end: number): Promise<DataView<ArrayBuffer>> {
    const have = this.#bytes.byteLength;
    if (end > SNAPSHOT_TABLE_MAX_BYTES) throw this.#bad("Snapshot table is too big");
    if (end > this.#mostBytes) throw this.#bad("Failed to read snapshot table: it goes beyond the end of the file");
    if (end > have) {
      const bytes = new Uint8Array(Math.min(this.#mostBytes, Math.max(end, 2 * have, FIRST_READ_BYTES)));
      bytes.set(this.#bytes);
      await this.#storage.read(this.#offset + have, SegmentList.over(bytes.subarray(have)));
      this.#bytes = bytes;
    }
    return new DataView(this.#bytes.buffer);
  }

  #bad(reason: string) {
    return corrupt(this.#storage.name, "open", reason, this.#offset);
  }
}

/**
 * The bytes of a table of snapshots: all fields that are known, as QEMU writes them.
 *
 * @throws RangeError when an ID or a name is longer than 65535 bytes, or there is too much extra data
 */
export function encodeSnapshots(snapshots: readonly Snapshot[]): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const entries = snapshots.map((snapshot) => {
    const id = encoder.encode(snapshot.id);
    const name = encoder.encode(snapshot.name);
    const extraBytes = KNOWN_EXTRA_BYTES + snapshot.extraData.byteLength;
    if (id.byteLength > 65535 || name.byteLength > 65535) throw new RangeError("A snapshot's name is too long");
    if (extraBytes > SNAPSHOT_EXTRA_MAX_BYTES) throw new RangeError("A snapshot's extra data are too long");
    return { snapshot, id, name, extraBytes, lengthBytes: ENTRY_BYTES + extraBytes + id.byteLength + name.byteLength };
  });
  // The last entry is not padded: the table ends where its name does.
  const total = entries.reduce((at, { lengthBytes }) => Math.ceil(at / 8) * 8 + lengthBytes, 0);
  const bytes = new Uint8Array(total);
  let at = 0;
  for (const { snapshot, id, name, extraBytes, lengthBytes } of entries) {
    at = Math.ceil(at / 8) * 8;
    const view = new DataView(bytes.buffer, at, lengthBytes);
    writeFields(view, snapshot);
    view.setUint16(FIELD.idBytes, id.byteLength);
    view.setUint16(FIELD.nameBytes, name.byteLength);
    view.setUint32(FIELD.extraBytes, extraBytes);
    bytes.set(snapshot.extraData, at + ENTRY_BYTES + KNOWN_EXTRA_BYTES);
    bytes.set(id, at + ENTRY_BYTES + extraBytes);
    bytes.set(name, at + ENTRY_BYTES + extraBytes + id.byteLength);
    at += lengthBytes;
  }
  return bytes;
}

function writeFields(view: DataView, snapshot: Snapshot): void {
  view.setBigUint64(FIELD.l1Offset, BigInt(snapshot.l1Offset));
  view.setUint32(FIELD.l1Entries, snapshot.l1Entries);
  view.setUint32(FIELD.dateSeconds, snapshot.dateSeconds);
  view.setUint32(FIELD.dateNanoseconds, snapshot.dateNanoseconds);
  view.setBigUint64(FIELD.vmClock, snapshot.vmClockNanoseconds);
  // A program that knows only the short field must not take a part of the state for all of it.
  view.setUint32(FIELD.vmStateBytes, snapshot.vmStateBytes < 2 ** 32 ? snapshot.vmStateBytes : 0);
  view.setBigUint64(FIELD.vmStateBytesLarge, BigInt(snapshot.vmStateBytes));
  view.setBigUint64(FIELD.diskBytes, BigInt(snapshot.diskBytes));
  view.setBigUint64(FIELD.icount, snapshot.icount ?? NO_ICOUNT);
}

/** The header as it would be with the snapshot's tables as the active ones; these are checked as those were. */
export function atSnapshot(storage: Storage, header: Qcow2Header, snapshot: Snapshot): Qcow2Header {
  const { name, l1Offset, l1Entries, diskBytes } = snapshot;
  const clusterBytes = 2 ** header.clusterBits;
  const tableSpan = clusterBytes / (header.extendedL2 ? 16 : 8) * clusterBytes;
  const lengthBytes = l1Entries * 8;
  const isPossible = l1Offset % clusterBytes === 0 && lengthBytes <= L1_MAX_BYTES &&
    l1Offset + lengthBytes <= storage.sizeBytes && l1Entries >= Math.ceil(diskBytes / tableSpan);
  if (!isPossible) throw corrupt(storage.name, "open", `The L1 table of snapshot '${name}' cannot be used`, l1Offset);
  return { ...header, l1Offset, l1Entries, sizeBytes: diskBytes - diskBytes % SECTOR_BYTES };
}
