/**
 * The record of buffers in flight in a packed queue: QueueRegionPacked ("Inflight I/O tracking").
 *
 * The ring does not keep the descriptors of a buffer in flight, so the record holds copies of them, in entries of a free
 * list. The fields without "old" are what a batch is about to become; the "old" ones, what it was: whether the driver
 * saw the batch tells the first descriptor of it.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import type { DescriptorChain } from "../../virtio/virtqueue/chain.ts";
import {
  PVIRTQ_DESC_F_AVAIL,
  PVIRTQ_DESC_F_INDIRECT,
  PVIRTQ_DESC_F_USED,
  PVIRTQ_DESC_F_WRITE,
  PVIRTQ_DESC_FLAGS,
  PVIRTQ_DESC_ID,
  PVIRTQ_DESC_LEN,
  PVIRTQ_DESC_SIZE,
} from "../../virtio/virtqueue/packed_layout.ts";
import type { VirtqueueRecord } from "../../virtio/virtqueue/virtqueue.ts";
import { INFLIGHT_VERSION, PACKED_REGION, PACKED_STATE, type QueueRegion, REGION_DESC_NUM } from "./inflight_layout.ts";
import { vhostUserViolation } from "./rules.ts";

function stateAt(entry: number): number {
  return PACKED_REGION.desc + entry * PACKED_STATE.bytes;
}

/** Where the next used descriptor goes. */
export interface UsedPosition {
  readonly slot: number;
  readonly wrap: boolean;
}

/** Where the free list ends, and how it and the buffers in flight are linked. */
interface EntryLinks {
  /** First free entry; the region's number of entries when there is none. */
  freeHead: number;
  /** By entry, the next one of its list. */
  readonly next: Uint16Array;
  /** By first entry of a buffer, its last one. */
  readonly last: Uint16Array;
}

/**
 * Keeps the record while the queue runs. The region is the front-end's memory too, so it is only written here: what is
 * read back is our own copy, which nobody else can lead astray.
 */
export class PackedInflight implements VirtqueueRecord {
  readonly #region: QueueRegion;
  /** Number of descriptors of the ring; the region may have room for more. */
  readonly #size: number;
  readonly #links: EntryLinks;
  #usedSlot: number;
  #usedWrap: boolean;
  #counter: number;
  /** By buffer ID, the first entry of the buffer. */
  readonly #entryOf = new Uint16Array(0x1_0000);
  /** First entries of the buffers that were staged, and how many ring descriptors these have. */
  readonly #batch: Uint16Array;
  #batchCount = 0;
  #batchDescriptors = 0;

  constructor(region: QueueRegion, size: number, links: EntryLinks, used: UsedPosition, counter: number) {
    this.#region = region;
    this.#size = size;
    this.#links = links;
    this.#usedSlot = used.slot;
    this.#usedWrap = used.wrap;
    this.#counter = counter;
    this.#batch = new Uint16Array(region.queueSize);
  }

  /** Starts a record of a queue that nothing is in flight in. */
  static begin(region: QueueRegion, size: number, used: UsedPosition): PackedInflight {
    region.clear();
    const { queueSize } = region;
    const next = Uint16Array.from({ length: queueSize }, (_, entry) => entry + 1);
    for (let entry = 0; entry < queueSize; entry++) region.setWord(stateAt(entry) + PACKED_STATE.next, next[entry]);
    for (const at of [PACKED_REGION.usedIdx, PACKED_REGION.oldUsedIdx]) region.setWord(at, used.slot);
    for (const at of [PACKED_REGION.usedWrap, PACKED_REGION.oldUsedWrap]) region.setByte(at, used.wrap ? 1 : 0);
    region.begin();
    return new PackedInflight(region, size, { freeHead: 0, next, last: new Uint16Array(queueSize) }, used, 0);
  }

  /** Notes which entry a buffer has that is in flight from before. */
  knows(id: number, entry: number): void {
    this.#entryOf[id] = entry;
  }

  taken(chain: DescriptorChain): void {
    const region = this.#region;
    const links = this.#links;
    const first = links.freeHead;
    const at = stateAt(first);
    region.setWord(at + PACKED_STATE.num, 0);
    region.setCounter(at + PACKED_STATE.counter, this.#counter++);
    region.setByte(at + PACKED_STATE.inflight, 1);
    let entry = first;
    for (let i = 0; i < chain.descriptorCount; i++) {
      // The descriptors of the ring come first in a chain's record; those of an indirect table follow them.
      const to = stateAt(entry);
      links.last[first] = entry;
      region.setWord(at + PACKED_STATE.last, entry);
      region.setWord(at + PACKED_STATE.num, i + 1);
      chain.copyRecord(i, region.view, to + PACKED_STATE.addr, to + PACKED_STATE.len);
      region.setWord(to + PACKED_STATE.flags, chain.recordFlags(i));
      region.setWord(to + PACKED_STATE.id, chain.head);
      entry = links.next[entry];
      region.setWord(PACKED_REGION.freeHead, entry);
    }
    links.freeHead = entry;
    region.setWord(PACKED_REGION.oldFreeHead, entry);
    this.#entryOf[chain.head] = first;
  }

  returned(): void {}

  staged(id: number, descriptorCount: number): void {
    // The text links a used buffer into the free list here. With buffers taken before the batch is published, as they
    // are, that would tear the list; so it is done for the whole batch, right before the driver sees it.
    this.#batch[this.#batchCount++] = this.#entryOf[id];
    this.#batchDescriptors += descriptorCount;
  }

  publishing(): void {
    const region = this.#region;
    const links = this.#links;
    for (let i = 0; i < this.#batchCount; i++) {
      const first = this.#batch[i];
      const last = links.last[first];
      links.next[last] = links.freeHead;
      links.freeHead = first;
      region.setWord(stateAt(last) + PACKED_STATE.next, links.next[last]);
      region.setWord(PACKED_REGION.freeHead, first);
    }
    this.#usedSlot += this.#batchDescriptors;
    if (this.#usedSlot >= this.#size) {
      this.#usedSlot -= this.#size;
      this.#usedWrap = !this.#usedWrap;
    }
    region.setByte(PACKED_REGION.usedWrap, this.#usedWrap ? 1 : 0);
    region.setWord(PACKED_REGION.usedIdx, this.#usedSlot);
  }

  published(): void {
    const region = this.#region;
    for (let i = 0; i < this.#batchCount; i++) region.setByte(stateAt(this.#batch[i]) + PACKED_STATE.inflight, 0);
    this.#batchCount = 0;
    this.#batchDescriptors = 0;
    commit(region);
  }
}

/** "Set old_free_head, old_used_idx, old_used_wrap_counter": the index last, since it is what tells that they differ. */
function commit(region: QueueRegion): void {
  region.setWord(PACKED_REGION.oldFreeHead, region.word(PACKED_REGION.freeHead));
  region.setByte(PACKED_REGION.oldUsedWrap, region.byte(PACKED_REGION.usedWrap));
  region.setWord(PACKED_REGION.oldUsedIdx, region.word(PACKED_REGION.usedIdx));
}

function rollBack(region: QueueRegion): void {
  region.setWord(PACKED_REGION.freeHead, region.word(PACKED_REGION.oldFreeHead));
  region.setByte(PACKED_REGION.usedWrap, region.byte(PACKED_REGION.oldUsedWrap));
  region.setWord(PACKED_REGION.usedIdx, region.word(PACKED_REGION.oldUsedIdx));
}

/** What is left of a back-end that is gone. */
export interface PackedRecovery {
  /** Descriptors of the buffers in flight, in the order in which they were taken. */
  readonly buffers: readonly DataView[];
  /** Where the queue stands, in the form of SET_VRING_BASE. */
  readonly position: number;
  /** Goes on with the record. */
  readonly record: PackedInflight;
}

/**
 * Reads the record after a restart ("When reconnecting").
 *
 * @param flagsAt reads the flags of a descriptor of the ring
 */
export function recoverPacked(
  region: QueueRegion,
  size: number,
  flagsAt: (slot: number) => number,
): PackedRecovery | Violation {
  const bad = (found: string) => vhostUserViolation("inflight-content", `the record of a packed queue ${found}`);
  if (region.version !== INFLIGHT_VERSION || region.word(REGION_DESC_NUM) !== region.queueSize) {
    return bad(`has version ${region.version}, ${region.word(REGION_DESC_NUM)} entries`);
  }
  const oldSlot = region.word(PACKED_REGION.oldUsedIdx);
  if (oldSlot >= size || region.word(PACKED_REGION.usedIdx) >= size) return bad(`stands at slot ${oldSlot}`);
  const moved = region.word(PACKED_REGION.usedIdx) !== oldSlot ||
    region.byte(PACKED_REGION.usedWrap) !== region.byte(PACKED_REGION.oldUsedWrap);
  if (moved) {
    const available = region.byte(PACKED_REGION.oldUsedWrap) ? PVIRTQ_DESC_F_AVAIL : PVIRTQ_DESC_F_USED;
    const flags = flagsAt(oldSlot) & (PVIRTQ_DESC_F_AVAIL | PVIRTQ_DESC_F_USED);
    if (flags !== available) commit(region);
  }
  rollBack(region);
  // Each entry must be free or belong to one buffer: what is linked otherwise could not be carried on with.
  const claimed = new Uint8Array(region.queueSize);
  let free = 0;
  for (let entry = region.word(PACKED_REGION.freeHead); entry < region.queueSize; free++) {
    if (claimed[entry] !== 0) return bad("has a free list that leads in a circle");
    claimed[entry] = 1;
    region.setByte(stateAt(entry) + PACKED_STATE.inflight, 0);
    entry = region.word(stateAt(entry) + PACKED_STATE.next);
  }
  return collect(region, size, claimed, free, bad);
}

function collect(
  region: QueueRegion,
  size: number,
  claimed: Uint8Array,
  free: number,
  bad: (found: string) => Violation,
): PackedRecovery | Violation {
  const { queueSize } = region;
  const field = (name: "next" | "last") =>
    Uint16Array.from({ length: queueSize }, (_, entry) => region.word(stateAt(entry) + PACKED_STATE[name]));
  const links: EntryLinks = { freeHead: region.word(PACKED_REGION.freeHead), next: field("next"), last: field("last") };
  const found: { entry: number; counter: bigint; descriptors: DataView }[] = [];
  let held = 0;
  for (let entry = 0; entry < queueSize; entry++) {
    if (region.byte(stateAt(entry) + PACKED_STATE.inflight) !== 1) continue;
    const count = region.word(stateAt(entry) + PACKED_STATE.num);
    held += count;
    if (count === 0 || held > size) return bad(`has more than ${size} descriptors in flight, or a buffer without any`);
    const descriptors = copyDescriptors(region, entry, count, links, claimed);
    if (descriptors === null) return bad(`has a buffer at entry ${entry} whose entries are not its own`);
    found.push({ entry, counter: region.counter(stateAt(entry) + PACKED_STATE.counter), descriptors });
  }
  if (free + held !== queueSize) return bad(`has ${free} free entries and ${held} others of ${queueSize}`);
  found.sort((a, b) => a.counter < b.counter ? -1 : a.counter > b.counter ? 1 : a.entry - b.entry);
  const used = { slot: region.word(PACKED_REGION.usedIdx), wrap: (region.byte(PACKED_REGION.usedWrap) & 1) === 1 };
  const record = new PackedInflight(region, size, links, used, found.length);
  found.forEach(({ entry, descriptors }, i) => {
    region.setCounter(stateAt(entry) + PACKED_STATE.counter, i);
    record.knows(descriptors.getUint16(descriptors.byteLength - PVIRTQ_DESC_SIZE + PVIRTQ_DESC_ID, true), entry);
  });
  return { buffers: found.map(({ descriptors }) => descriptors), position: positionOf(used, held, size), record };
}

/** Between what is used next and what is available next lie exactly the descriptors of what is in flight. */
function positionOf(used: UsedPosition, held: number, size: number): number {
  const nextLap = used.slot + held >= size;
  const avail = used.slot + held - (nextLap ? size : 0);
  const availWrap = used.wrap !== nextLap;
  return (avail | (availWrap ? 0x8000 : 0)) + (used.slot | (used.wrap ? 0x8000 : 0)) * 0x1_0000;
}

function copyDescriptors(
  region: QueueRegion,
  first: number,
  count: number,
  links: EntryLinks,
  claimed: Uint8Array,
): DataView | null {
  const copy = new DataView(new ArrayBuffer(count * PVIRTQ_DESC_SIZE));
  for (let i = 0, entry = first; i < count; i++) {
    // Our copies of the links are what is followed, here and later.
    if (entry >= region.queueSize || claimed[entry] !== 0) return null;
    claimed[entry] = 1;
    links.last[first] = entry;
    const from = stateAt(entry);
    const to = i * PVIRTQ_DESC_SIZE;
    copy.setBigUint64(to, region.counter(from + PACKED_STATE.addr), true);
    copy.setUint32(to + PVIRTQ_DESC_LEN, region.view.getUint32(from + PACKED_STATE.len, true), true);
    copy.setUint16(to + PVIRTQ_DESC_ID, region.word(from + PACKED_STATE.id), true);
    const flags = region.word(from + PACKED_STATE.flags);
    copy.setUint16(to + PVIRTQ_DESC_FLAGS, flags & (PVIRTQ_DESC_F_WRITE | PVIRTQ_DESC_F_INDIRECT), true);
    entry = links.next[entry];
  }
  return copy;
}
