/**
 * What tables in memory say and the file does not say yet, kept where it outlives the process.
 *
 * A guest that goes on while its back-end is killed and started again (vhost-user, with buffers in flight kept) expects
 * to find what it wrote, flushed or not: a disk does not forget because its cable was pulled. Data are in the system's
 * cache then, but entries of tables were in the process. So each changed entry is noted here before the request ends;
 * a flush, after which the file has them all, clears the notes. They are of no use after a crash of the machine, when
 * data may be missing that they refer to.
 *
 * While there are notes the dirty bit is set: whoever else opens the image for writing repairs it and clears the bit,
 * and then the notes are not for this image any more. Version 2 has no such bit; there every change is flushed.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { BlockError } from "../../storage/block_error.ts";
import type { Storage } from "../../storage/storage.ts";
import type { Qcow2Header } from "./header.ts";
import { CORRUPT, L2EntryReader } from "./l2_entry.ts";
import type { Qcow2Mapping } from "./mapping.ts";
import { COPIED_HIGH, OFFSET_HIGH_MASK, OFFSET_LOW_MASK } from "./qcow2_layout.ts";
import { corrupt } from "./refuse.ts";

/** Where notes are kept. What is appended is there, even if the process is killed right afterwards. */
export interface JournalStore {
  /** The notes that somebody left, for this very image and since the machine was started; empty when there are none. */
  read(): Uint8Array;
  /** Adds notes, or throws a `BlockError` with those that there were as they were. */
  append(bytes: Uint8Array): void;
  /** Forgets all. */
  clear(): void;
}

/** A note: offset of a cluster of the disk in 8 bytes, and its entry. */
const OFFSET_BYTES = 8;
/** More notes than this are not kept: half a million of them. */
const FULL_BYTES = 8 << 20;

/** Takes notes. */
export class ChangeJournal {
  readonly #store: JournalStore;
  /** Clusters whose entries have changed since the last commit. */
  readonly #changed = new Set<number>();
  #isEmpty = false;
  #keptBytes = 0;

  constructor(store: JournalStore) {
    this.#store = store;
  }

  /** Whether there is something to commit. */
  get isPending(): boolean {
    return this.#changed.size > 0;
  }

  /** Whether so much is kept that it is time for a flush: a guest that never asks for one must not fill the disk. */
  get isFull(): boolean {
    return this.#keptBytes >= FULL_BYTES;
  }

  /** The entry of the cluster at an offset of the disk has changed, in memory. */
  note(start: number): void {
    this.#changed.add(start);
  }

  /** Keeps what has changed. Entries that have changed are in the cache until they are written. */
  commit(mapping: Qcow2Mapping): void {
    const { cache, entryBytes, sliceSpan } = mapping;
    const size = OFFSET_BYTES + entryBytes;
    const notes = new Uint8Array(this.#changed.size * size);
    const view = new DataView(notes.buffer);
    let at = 0;
    for (const start of this.#changed) {
      const slice = cache.get(Math.floor(start / sliceSpan))!;
      view.setBigUint64(at, BigInt(start));
      const place = mapping.inSlice(start);
      notes.set(new Uint8Array(slice.buffer, slice.byteOffset + place, entryBytes), at + OFFSET_BYTES);
      at += size;
    }
    this.#isEmpty = false;
    this.#store.append(notes);
    this.#keptBytes += notes.byteLength;
    this.#changed.clear();
  }

  /** The file says all that memory says. */
  reset(): void {
    this.#changed.clear();
    if (this.#isEmpty) return;
    this.#store.clear();
    this.#keptBytes = 0;
    this.#isEmpty = true;
  }
}

/** Changes of the entries in one L2 table, by offset on the disk. */
type Changes = Map<number, Uint8Array>;

/**
 * Brings the tables in the file of an image that has its dirty bit set to what the notes say. Refcounts are left to the
 * repair that comes next: it counts what the entries refer to, and takes no cluster that one of them does.
 *
 * Whoever is killed in the middle of this finds everything as it was, and does it again.
 *
 * @throws BlockError when the notes do not fit the image; nothing was changed then
 */
export async function replayJournal(storage: Storage, header: Qcow2Header, notes: Uint8Array): Promise<void> {
  const clusterBytes = 2 ** header.clusterBits;
  const byTable = changesIn(storage, header, notes);
  const l1 = new DataView(new ArrayBuffer(header.l1Entries * 8));
  await storage.read(header.l1Offset, SegmentList.over(new Uint8Array(l1.buffer)));
  // Behind everything that an entry could refer to.
  let end = Math.ceil(storage.sizeBytes / clusterBytes) * clusterBytes;
  const inPlace: { offset: number; bytes: Uint8Array }[] = [];
  for (const [index, changes] of byTable) {
    const high = l1.getUint32(index * 8);
    const offset = (high & OFFSET_HIGH_MASK) * 0x1_0000_0000 + ((l1.getUint32(index * 8 + 4) & OFFSET_LOW_MASK) >>> 0);
    if (offset % clusterBytes !== 0 || offset + clusterBytes > end) throw unfit(storage, `L1 entry ${index}`);
    const isOwn = offset !== 0 && (high & COPIED_HIGH) !== 0;
    const table = new Uint8Array(clusterBytes);
    if (offset !== 0 && !isOwn) await storage.read(offset, SegmentList.over(table));
    for (const [start, entry] of changes) {
      const place = Math.floor(start / clusterBytes) % (clusterBytes / entry.byteLength) * entry.byteLength;
      if (isOwn) inPlace.push({ offset: offset + place, bytes: entry });
      else table.set(entry, place);
    }
    if (isOwn) continue;
    await storage.write(end, SegmentList.over(table));
    const entry = new DataView(new ArrayBuffer(8));
    entry.setUint32(0, Math.floor(end / 0x1_0000_0000) | COPIED_HIGH);
    entry.setUint32(4, end % 0x1_0000_0000);
    inPlace.push({ offset: header.l1Offset + index * 8, bytes: new Uint8Array(entry.buffer) });
    end += clusterBytes;
  }
  // Data and new tables before what refers to them, as ever.
  await storage.flush();
  for (const { offset, bytes } of inPlace) await storage.write(offset, SegmentList.over(bytes));
  await storage.flush();
}

/** The last note of each cluster, by number of the L1 entry. */
function changesIn(storage: Storage, header: Qcow2Header, notes: Uint8Array): Map<number, Changes> {
  const clusterBytes = 2 ** header.clusterBits;
  const entryBytes = header.extendedL2 ? 16 : 8;
  const tableSpan = clusterBytes / entryBytes * clusterBytes;
  const reader = new L2EntryReader(header, storage.sizeBytes);
  const view = new DataView(notes.buffer, notes.byteOffset, notes.byteLength);
  const byTable = new Map<number, Changes>();
  // A note that was cut off was of a request that never ended.
  for (let at = 0; at + OFFSET_BYTES + entryBytes <= notes.byteLength; at += OFFSET_BYTES + entryBytes) {
    const start = Number(view.getBigUint64(at));
    if (start % clusterBytes !== 0 || start >= header.sizeBytes) throw unfit(storage, `offset ${start}`);
    const from = at + OFFSET_BYTES;
    if (reader.read(view, from, start) === CORRUPT) throw unfit(storage, `an entry ${reader.faultText()}`);
    const index = Math.floor(start / tableSpan);
    const changes: Changes = byTable.get(index) ?? new Map();
    byTable.set(index, changes.set(start, notes.subarray(from, from + entryBytes)));
  }
  return byTable;
}

function unfit(storage: Storage, what: string): BlockError {
  return corrupt(storage.name, "open", `What a process that was killed left does not fit the image: ${what}`);
}
