/**
 * A driver that is nothing but bytes: it writes descriptors and rings by hand, through the layout files, and reads
 * used buffers back the same way. So the device's half is held against the specification's bytes, and not against
 * the driver in src/guest.
 *
 * One class for each layout, with the same face, so that one suite runs for both.
 *
 * @module
 */

import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import type { SegmentList } from "../../src/memory/segment_list.ts";
import type { Violation } from "../../src/virtio/violation.ts";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import * as P from "../../src/virtio/virtqueue/packed_layout.ts";
import { PackedVirtqueue } from "../../src/virtio/virtqueue/packed_virtqueue.ts";
import * as S from "../../src/virtio/virtqueue/split_layout.ts";
import { SplitVirtqueue } from "../../src/virtio/virtqueue/split_virtqueue.ts";
import type { VirtqueueConfig } from "../../src/virtio/virtqueue/queue_parts.ts";
import type { Virtqueue } from "../../src/virtio/virtqueue/virtqueue.ts";

export type Layout = "split" | "packed";
export const LAYOUTS: readonly Layout[] = ["split", "packed"];

/** The descriptor flags that both layouts share. */
export const [NEXT, WRITE, INDIRECT] = [S.VIRTQ_DESC_F_NEXT, S.VIRTQ_DESC_F_WRITE, S.VIRTQ_DESC_F_INDIRECT];

/** A descriptor as it shall stand in memory. */
export interface Desc {
  address: number | bigint;
  length: number;
  flags?: number;
  /** Split: by default the descriptor that is placed next. */
  next?: number;
  /** Packed: by default the ID of the buffer. */
  id?: number;
}

/** A used buffer as the driver finds it. */
export interface Used {
  id: number;
  length: number;
  /** Packed: the flags of the used descriptor; split has none. */
  flags?: number;
}

export interface RingOptions {
  size?: number;
  eventIdx?: boolean;
  indirect?: boolean;
  inOrder?: boolean;
  /** Split: where both indexes stand. */
  startIdx?: number;
}

const RINGS_AT = 0x1_0000;
const REGION_BYTES = 0x1_0000;

/** What a queue of either layout needs of a driver. */
export abstract class Ring {
  abstract readonly layout: Layout;
  readonly size: number;
  readonly options: Required<RingOptions>;
  readonly memory: GuestMemory;
  readonly config: VirtqueueConfig;
  /** The device's half. */
  queue!: Virtqueue;
  /** 64 KiB for buffers; the 32 KiB at its end hold indirect tables. */
  readonly data: number;
  /** Where a second region begins, right behind the first. */
  readonly border: number;
  /** Where nothing is; 64 KiB long. */
  readonly hole: number;
  /** A third region, behind the hole. */
  readonly far: number;
  readonly chain: DescriptorChain = new DescriptorChain();
  #tableAt = 0;

  constructor(options: RingOptions, sizes: { desc: number; driver: number; device: number }) {
    this.options = { size: 8, eventIdx: false, indirect: true, inOrder: false, startIdx: 0, ...options };
    this.size = this.options.size;
    const descAddress = RINGS_AT;
    const driverAddress = roundUp(descAddress + sizes.desc + 64);
    const deviceAddress = roundUp(driverAddress + sizes.driver + 64);
    this.data = Math.ceil((deviceAddress + sizes.device + 64) / 4096) * 4096;
    this.border = this.data + REGION_BYTES;
    this.hole = this.border + REGION_BYTES;
    this.far = this.hole + REGION_BYTES;
    const region = (from: number, to: number) => new MemoryRegion(from, new Uint8Array(to - from));
    this.memory = new GuestMemory([
      region(RINGS_AT, this.data),
      region(this.data, this.border),
      region(this.border, this.hole),
      region(this.far, this.far + 4096),
    ]);
    const { size, eventIdx, indirect, inOrder } = this.options;
    this.config = { memory: this.memory, size, descAddress, driverAddress, deviceAddress, eventIdx, indirect, inOrder };
  }

  /** Makes one buffer available, with NEXT between its descriptors; returns its head or ID. */
  offer(elements: readonly Desc[]): number {
    const last = elements.length - 1;
    return this.offerRaw(elements.map((desc, i) => ({ ...desc, flags: (desc.flags ?? 0) | (i < last ? NEXT : 0) })));
  }

  /** Makes one buffer available whose elements are in an indirect table, behind `direct` ones if any (split only). */
  offerIndirect(elements: readonly Desc[], direct: readonly Desc[] = []): number {
    const last = elements.length - 1;
    // NEXT means something only in the tables of a split ring.
    const next = this.layout === "split" ? NEXT : 0;
    const table = this.table(
      elements.map((desc, i) => ({ next: i + 1, ...desc, flags: (desc.flags ?? 0) | (i < last ? next : 0) })),
    );
    return this.offer([...direct, { address: table, length: elements.length * 16, flags: INDIRECT }]);
  }

  /** Writes an indirect table of exactly these descriptors; returns its address. */
  table(descs: readonly Desc[]): number {
    const bytes = descs.length * 16;
    if (this.#tableAt + bytes > 0x8000) this.#tableAt = 0;
    const address = this.data + 0x8000 + this.#tableAt;
    this.#tableAt += bytes;
    descs.forEach((desc, i) => this.writeDesc(address + i * 16, desc));
    return address;
  }

  /** Makes one buffer available whose descriptors are exactly these, at the next free place; returns its head or ID. */
  abstract offerRaw(descs: readonly Desc[]): number;

  /** Writes a descriptor at an address. */
  abstract writeDesc(address: number, desc: Desc): void;

  /** Takes the next used buffer, or `null`. */
  abstract takeUsed(): Used | null;

  /** Tells the device when used buffer notifications are wanted; `at`: when the next used buffer but `ahead` is used. */
  abstract want(calls: "always" | "never" | "at", ahead?: number): void;

  /** What the device says about available buffer notifications: at which position (see `position`), or always or never. */
  abstract wish(): "always" | "never" | number;

  /** Position of the next buffer to make available, in the form of `wish`. */
  abstract get position(): number;

  /** Address ranges that the device may write in the rings when it returned `used` buffers since the ring was made. */
  abstract mayWrite(used: number): [address: number, lengthBytes: number][];

  /** All used buffers there are. */
  takeAllUsed(): Used[] {
    const all: Used[] = [];
    for (let used; (used = this.takeUsed()) !== null;) all.push(used);
    return all;
  }

  /** Pops one buffer that must be there. */
  pop(chain: DescriptorChain = this.chain): DescriptorChain {
    if (this.queue.pop(chain)) return chain;
    const { violation } = this.queue;
    throw new Error(`nothing was popped${violation === null ? "" : `: ${violation.rule}, ${violation.found}`}`);
  }

  /** Copies all memory. */
  snapshot(): Uint8Array[] {
    return this.memory.regions.map(({ bytes }) => bytes.slice());
  }

  /** The addresses of all bytes that are not as in `before` and lie outside `allowed`. */
  changes(before: readonly Uint8Array[], allowed: readonly (readonly [number, number])[] = []): number[] {
    return this.memory.regions.flatMap(({ guestAddress, bytes }, i) => {
      const changed: number[] = [];
      bytes.forEach((byte, at) => {
        if (byte !== before[i][at]) changed.push(guestAddress + at);
      });
      return changed.filter((at) => !allowed.some(([from, length]) => at >= from && at < from + length));
    });
  }

  u16(address: number): number {
    const region = this.memory.regionAt(address)!;
    return region.view.getUint16(address - region.guestAddress, true);
  }

  u32(address: number): number {
    const region = this.memory.regionAt(address)!;
    return region.view.getUint32(address - region.guestAddress, true);
  }

  setU16(address: number, value: number): void {
    const region = this.memory.regionAt(address)!;
    region.view.setUint16(address - region.guestAddress, value, true);
  }

  /** Writes the fields that both layouts have at the same place, and the two last ones as given. */
  protected write(address: number, desc: Desc, at12: number, at14: number): void {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, BigInt.asUintN(64, BigInt(desc.address)), true);
    view.setUint32(8, desc.length, true);
    view.setUint16(12, at12, true);
    view.setUint16(14, at14, true);
    // A descriptor can lie across two regions.
    if (!this.memory.write(address, bytes)) throw new Error("the harness wrote a descriptor outside memory");
  }
}

/** The split layout by hand (§2.7). */
export class SplitRing extends Ring {
  readonly layout = "split";
  availIdx: number;
  usedIdx: number;
  readonly #free: number[];
  readonly #held = new Map<number, number[]>();

  constructor(options: RingOptions = {}) {
    super(options, S.splitSizes(options.size ?? 8));
    this.availIdx = this.usedIdx = this.options.startIdx;
    this.#free = Array.from({ length: this.size }, (_, i) => i);
    this.setU16(this.config.driverAddress + S.AVAIL_IDX, this.availIdx);
    this.setU16(this.config.deviceAddress + S.USED_IDX, this.usedIdx);
    this.queue = created(SplitVirtqueue.create(this.config, this.options.startIdx));
  }

  override offerRaw(descs: readonly Desc[]): number {
    if (descs.length > this.#free.length) throw new Error("the harness has no free descriptors");
    const indexes = this.#free.splice(0, descs.length);
    descs.forEach((desc, i) => this.setDesc(indexes[i], { next: indexes[i + 1] ?? 0, ...desc }));
    this.#held.set(indexes[0], indexes);
    this.offerHead(indexes[0]);
    return indexes[0];
  }

  /** Writes an entry of the descriptor table. */
  setDesc(index: number, desc: Desc): void {
    this.writeDesc(this.config.descAddress + index * 16, desc);
  }

  /** Puts any number into the available ring, and moves the index. */
  offerHead(head: number): void {
    this.setU16(this.config.driverAddress + S.AVAIL_RING + (this.availIdx % this.size) * 2, head);
    this.setAvailIdx(this.availIdx + 1);
  }

  setAvailIdx(idx: number): void {
    this.availIdx = idx & 0xffff;
    this.setU16(this.config.driverAddress + S.AVAIL_IDX, this.availIdx);
  }

  override writeDesc(address: number, desc: Desc): void {
    this.write(address, desc, desc.flags ?? 0, desc.next ?? 0);
  }

  override takeUsed(): Used | null {
    if (this.u16(this.config.deviceAddress + S.USED_IDX) === this.usedIdx) return null;
    const at = this.config.deviceAddress + S.USED_RING + (this.usedIdx % this.size) * 8;
    this.usedIdx = (this.usedIdx + 1) & 0xffff;
    const id = this.u32(at);
    this.#free.push(...this.#held.get(id) ?? []);
    this.#held.delete(id);
    return { id, length: this.u32(at + 4) };
  }

  override want(calls: "always" | "never" | "at", ahead = 0): void {
    const { driverAddress } = this.config;
    this.setU16(driverAddress + S.AVAIL_FLAGS, calls === "never" ? S.VIRTQ_AVAIL_F_NO_INTERRUPT : 0);
    // With EVENT_IDX there is only `at`: never is the entry that was used last, which comes again after 65535 others.
    const event = this.usedIdx + (calls === "never" ? -1 : ahead);
    this.setU16(driverAddress + S.usedEventOffset(this.size), event & 0xffff);
  }

  override wish(): "always" | "never" | number {
    const { deviceAddress } = this.config;
    const flags = this.u16(deviceAddress + S.USED_FLAGS);
    if (this.options.eventIdx) return this.u16(deviceAddress + S.availEventOffset(this.size));
    return flags === 0 ? "always" : "never";
  }

  override get position(): number {
    return this.availIdx;
  }

  override mayWrite(): [number, number][] {
    return [[this.config.deviceAddress, S.splitSizes(this.size).device]];
  }
}

/** The packed layout by hand (§2.8). */
export class PackedRing extends Ring {
  readonly layout = "packed";
  availSlot = 0;
  availWrap = 1;
  usedSlot = 0;
  usedWrap = 1;
  /** Buffer IDs are any 16-bit numbers; these are above every queue size on purpose. */
  readonly #freeIds: number[];
  readonly #held = new Map<number, number>();

  constructor(options: RingOptions = {}) {
    super(options, P.packedSizes(options.size ?? 8));
    this.#freeIds = Array.from({ length: this.size }, (_, i) => 0x8000 + i);
    this.queue = created(PackedVirtqueue.create(this.config));
  }

  /** AVAIL and USED as an available descriptor of this lap has them. */
  static availableFlags(wrap: number): number {
    return wrap ? P.PVIRTQ_DESC_F_AVAIL : P.PVIRTQ_DESC_F_USED;
  }

  override offerRaw(descs: readonly Desc[]): number {
    const id = this.#freeIds.shift()!;
    this.#held.set(id, descs.length);
    for (const desc of descs) {
      this.setDesc(this.availSlot, {
        id,
        ...desc,
        flags: (desc.flags ?? 0) | PackedRing.availableFlags(this.availWrap),
      });
      if (++this.availSlot === this.size) {
        this.availSlot = 0;
        this.availWrap ^= 1;
      }
    }
    return id;
  }

  /** Writes an entry of the descriptor ring, flags as given. */
  setDesc(slot: number, desc: Desc): void {
    this.writeDesc(this.config.descAddress + slot * 16, desc);
  }

  override writeDesc(address: number, desc: Desc): void {
    this.write(address, desc, desc.id ?? 0, desc.flags ?? 0);
  }

  override takeUsed(): Used | null {
    const at = this.config.descAddress + this.usedSlot * 16;
    const flags = this.u16(at + P.PVIRTQ_DESC_FLAGS);
    const bit = (mask: number) => flags & mask ? 1 : 0;
    if (bit(P.PVIRTQ_DESC_F_AVAIL) !== this.usedWrap || bit(P.PVIRTQ_DESC_F_USED) !== this.usedWrap) return null;
    const id = this.u16(at + P.PVIRTQ_DESC_ID);
    this.usedSlot += this.#held.get(id) ?? 1;
    if (this.usedSlot >= this.size) {
      this.usedSlot -= this.size;
      this.usedWrap ^= 1;
    }
    if (this.#held.delete(id)) this.#freeIds.push(id);
    return { id, length: this.u32(at + P.PVIRTQ_DESC_LEN), flags };
  }

  override want(calls: "always" | "never" | "at", ahead = 0): void {
    const { driverAddress } = this.config;
    let [slot, wrap] = [this.usedSlot + ahead, this.usedWrap];
    if (slot >= this.size) [slot, wrap] = [slot - this.size, wrap ^ 1];
    const flags = { always: P.RING_EVENT_FLAGS_ENABLE, never: P.RING_EVENT_FLAGS_DISABLE, at: P.RING_EVENT_FLAGS_DESC };
    this.setU16(driverAddress + P.EVENT_OFF_WRAP, slot | wrap << 15);
    this.setU16(driverAddress + P.EVENT_FLAGS, flags[calls]);
  }

  override wish(): "always" | "never" | number {
    const flags = this.u16(this.config.deviceAddress + P.EVENT_FLAGS);
    if (flags === P.RING_EVENT_FLAGS_DESC) return this.u16(this.config.deviceAddress + P.EVENT_OFF_WRAP);
    return flags === P.RING_EVENT_FLAGS_ENABLE ? "always" : "never";
  }

  override get position(): number {
    return this.availSlot | this.availWrap << 15;
  }

  override mayWrite(used: number): [number, number][] {
    const slots = Math.min(used, this.size);
    return [[this.config.deviceAddress, 4], [this.config.descAddress, slots * 16]];
  }
}

/** A ring of either layout, with its queue. */
export function makeRing(layout: Layout, options: RingOptions = {}): Ring {
  return layout === "split" ? new SplitRing(options) : new PackedRing(options);
}

/** The segments of a list as guest addresses and lengths. */
export function segments(list: SegmentList): [address: number, lengthBytes: number][] {
  return Array.from(
    { length: list.count },
    (_, i) => [list.regionOf(i).guestAddress + list.offsetOf(i), list.lengthOf(i)],
  );
}

/** The queue that `create` made, or the violation as an error. */
export function created(queue: Virtqueue | Violation): Virtqueue {
  if ("rule" in queue) throw new Error(queue.found);
  return queue;
}

function roundUp(address: number): number {
  return Math.ceil(address / 16) * 16;
}
