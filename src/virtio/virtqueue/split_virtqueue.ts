/**
 * The device's half of the split virtqueue (VIRTIO 1.4 §2.7).
 *
 * The driver owns the descriptor table and the available ring and may change them at any time, so every field is
 * read once, into a local, and only the local is checked and used. The two indexes are the only fields on which
 * both sides synchronise; they are read and written atomically, which in JavaScript is sequentially consistent:
 * that is at least the barrier that §2.7.13 and §2.7.14 ask for in each place.
 *
 * @module
 */

import { checkedU64 } from "../../memory/guest_memory.ts";
import type { MemoryRegion } from "../../memory/region.ts";
import type { Violation } from "../violation.ts";
import type { DescriptorChain } from "./chain.ts";
import { passesEvent } from "./notification_layout.ts";
import { virtqueueViolation } from "./rules.ts";
import {
  AVAIL_FLAGS,
  AVAIL_IDX,
  AVAIL_RING,
  availEventOffset,
  SPLIT_ALIGNMENT,
  splitSizes,
  USED_FLAGS,
  USED_IDX,
  USED_RING,
  usedEventOffset,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_SIZE,
  VIRTQ_MAX_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "./split_layout.ts";
import { locateParts, type QueuePart, type VirtqueueConfig } from "./queue_parts.ts";
import { INDIRECT_MAX_DESCRIPTORS, Virtqueue } from "./virtqueue.ts";

/** A split virtqueue, as the device sees it. */
export class SplitVirtqueue extends Virtqueue {
  readonly #mask: number;
  readonly #desc: QueuePart;
  /** The available ring as 16-bit units of its region; the fields below are indexes into it. */
  readonly #avail: Uint16Array;
  readonly #availFlags: number;
  readonly #availIdx: number;
  readonly #availRing: number;
  readonly #usedEvent: number;
  readonly #used: Uint16Array;
  readonly #usedFlags: number;
  readonly #usedIdx: number;
  readonly #availEvent: number;
  readonly #usedView: DataView;
  readonly #usedRing: number;

  /** Free-running: the next entry of the available ring to look at. */
  #nextAvail: number;
  /** The available index as last read; entries before it can be taken without looking again. */
  #seenAvail: number;
  /** Free-running: the next entry of the used ring to write. */
  #nextUsed: number;
  /** Heads to be given out before all that is in the available ring. */
  #again: number[] | null = null;
  /** One descriptor of an indirect table that lies across two regions. */
  readonly #scratch = new Uint8Array(VIRTQ_DESC_SIZE);
  readonly #scratchView = new DataView(this.#scratch.buffer);

  private constructor(
    config: VirtqueueConfig,
    parts: { desc: QueuePart; driver: QueuePart; device: QueuePart },
    startIdx: number,
    usedIdx: number,
  ) {
    super(config, config.size, "split");
    this.#mask = config.size - 1;
    this.#desc = parts.desc;
    const { driver, device } = parts;
    this.#avail = driver.region.words;
    this.#availFlags = (driver.offset + AVAIL_FLAGS) / 2;
    this.#availIdx = (driver.offset + AVAIL_IDX) / 2;
    this.#availRing = (driver.offset + AVAIL_RING) / 2;
    this.#usedEvent = (driver.offset + usedEventOffset(config.size)) / 2;
    this.#used = device.region.words;
    this.#usedFlags = (device.offset + USED_FLAGS) / 2;
    this.#usedIdx = (device.offset + USED_IDX) / 2;
    this.#availEvent = (device.offset + availEventOffset(config.size)) / 2;
    this.#usedView = device.region.view;
    this.#usedRing = device.offset + USED_RING;
    this.#nextAvail = startIdx;
    this.#seenAvail = startIdx;
    this.#nextUsed = usedIdx;
  }

  /**
   * Takes over a queue that the driver set up.
   *
   * @param startIdx the index of the next buffer to take; 0 unless a queue in use is taken over
   * @param usedIdx the index of the next used entry to write: another one while buffers are in flight
   * @returns the queue, or the rule that the driver broke when it set the queue up
   */
  static create(config: VirtqueueConfig, startIdx = 0, usedIdx = startIdx): SplitVirtqueue | Violation {
    const { size } = config;
    if (!Number.isInteger(size) || size < 1 || size > VIRTQ_MAX_SIZE || (size & (size - 1)) !== 0) {
      return virtqueueViolation("queue-size", `the queue's size is ${size}`, false);
    }
    const parts = locateParts(config, false, splitSizes(size), SPLIT_ALIGNMENT);
    return "rule" in parts ? parts : new SplitVirtqueue(config, parts, startIdx, usedIdx);
  }

  /** Takes the next available buffer (§2.7.6), if there is one. */
  override pop(chain: DescriptorChain): boolean {
    if (this.violation !== null) return false;
    this.begin(chain);
    if (this.#again !== null) return this.#popAgain(chain, this.#again);
    if (this.#nextAvail === this.#seenAvail && !this.#lookForAvailable()) return false;
    const head = this.#avail[this.#availRing + (this.#nextAvail & this.#mask)];
    if (head >= this.size) {
      return this.broken(
        "head-range",
        `entry ${
          this.#nextAvail & this.#mask
        } of the available ring is ${head}, the queue has ${this.size} descriptors`,
      );
    }
    if (this.inFlight[head] !== 0) {
      return this.broken("head-in-flight", `descriptor ${head} was made available again while in flight`);
    }
    chain.head = head;
    if (!this.#walk(chain, head)) return false;
    this.#nextAvail = (this.#nextAvail + 1) & 0xffff;
    return this.take(chain);
  }

  /** What is left of what was seen at the last look. */
  override get backlog(): number {
    return (this.#seenAvail - this.#nextAvail) & 0xffff;
  }

  /** Index of the next buffer to take. */
  override get position(): number {
    return this.#nextAvail;
  }

  /**
   * Gives buffers out once more, before all others: those that a device which is gone took and did not return. Their
   * descriptors are still where they were, since they are not the driver's before they are returned.
   */
  resubmit(heads: readonly number[]): void {
    this.#again = heads.length === 0 ? null : [...heads];
  }

  #popAgain(chain: DescriptorChain, heads: number[]): boolean {
    const head = heads.shift()!;
    if (heads.length === 0) this.#again = null;
    if (head >= this.size || this.inFlight[head] !== 0) {
      return this.broken("head-range", `the record of buffers in flight names descriptor ${head}`);
    }
    chain.head = head;
    return this.#walk(chain, head) && this.take(chain, true);
  }

  /** Reads the available index; `false` when nothing is new or the index is impossible. */
  #lookForAvailable(): boolean {
    const idx = Atomics.load(this.#avail, this.#availIdx);
    const fresh = (idx - this.#nextAvail) & 0xffff;
    if (fresh === 0) return false;
    if (fresh > this.size) {
      return this.broken(
        "avail-jump",
        `the available index went from ${this.#nextAvail} to ${idx}, the queue has ${this.size} descriptors`,
      );
    }
    this.#seenAvail = idx;
    return true;
  }

  #walk(chain: DescriptorChain, head: number): boolean {
    const { region, offset } = this.#desc;
    let index = head;
    for (let count = 1;; count++) {
      if (count > this.size) {
        return this.broken("chain-too-long", `the chain from descriptor ${head} has more than ${this.size}`);
      }
      const at = offset + index * VIRTQ_DESC_SIZE;
      const flags = region.view.getUint16(at + 12, true);
      if (flags & VIRTQ_DESC_F_INDIRECT) {
        // §2.7.5.3.2: normal descriptors may come before one with INDIRECT, which then ends the chain.
        chain.descriptorCount = count;
        return this.#walkIndirect(chain, index, region, at, flags);
      }
      this.addDescriptor(chain, index, false, region.view, at, flags);
      if (!(flags & VIRTQ_DESC_F_NEXT)) {
        chain.descriptorCount = count;
        return true;
      }
      const next = region.view.getUint16(at + 14, true);
      if (next >= this.size) {
        return this.broken(
          "desc-range",
          `descriptor ${index} continues at ${next}, the table has ${this.size} descriptors`,
        );
      }
      index = next;
    }
  }

  #walkIndirect(chain: DescriptorChain, index: number, from: MemoryRegion, at: number, flags: number): boolean {
    const address = checkedU64(from.view.getUint32(at, true), from.view.getUint32(at + 4, true));
    const length = from.view.getUint32(at + 8, true);
    chain.record(index, false, address, length, flags);
    // §2.7.5.3.2: WRITE means nothing here.
    if (!this.checkIndirect(index, length, (flags & VIRTQ_DESC_F_NEXT) !== 0)) return false;
    const tableSize = length / VIRTQ_DESC_SIZE;
    const limit = Math.min(tableSize, Math.max(this.size, INDIRECT_MAX_DESCRIPTORS));
    const whole = this.memory.regionHolding(address, length);
    let entry = 0;
    for (let count = 1;; count++) {
      if (count > limit) {
        return this.broken("chain-too-long", `the indirect table of descriptor ${index} links more than ${limit}`);
      }
      const view = whole === null ? this.#scratchView : whole.view;
      let place = 0;
      if (whole !== null) {
        place = address - whole.guestAddress + entry * VIRTQ_DESC_SIZE;
      } else if (!this.memory.read(address + entry * VIRTQ_DESC_SIZE, this.#scratch)) {
        return this.broken("indirect-memory", `entry ${entry} of the table of descriptor ${index} is not`);
      }
      const entryFlags = view.getUint16(place + 12, true);
      if (entryFlags & VIRTQ_DESC_F_INDIRECT) {
        return this.broken("indirect-nested", `entry ${entry} of the table of descriptor ${index} has INDIRECT set`);
      }
      const next = view.getUint16(place + 14, true);
      this.addDescriptor(chain, entry, true, view, place, entryFlags);
      if (!(entryFlags & VIRTQ_DESC_F_NEXT)) return true;
      if (next >= tableSize) {
        return this.broken(
          "desc-range",
          `entry ${entry} of an indirect table continues at ${next}, the table has ${tableSize}`,
        );
      }
      entry = next;
    }
  }

  /** Writes a used element that the driver cannot see yet (§2.7.8). */
  protected override stage(head: number, _descriptorCount: number, bytesWritten: number): void {
    const at = this.#usedRing + (this.#nextUsed & this.#mask) * 8;
    this.#usedView.setUint32(at, head, true);
    this.#usedView.setUint32(at + 4, bytesWritten, true);
    this.#nextUsed = (this.#nextUsed + 1) & 0xffff;
  }

  /** Shows the driver what was staged; returns whether it wants a notification (§2.7.7). */
  protected override publishStaged(buffers: number): boolean {
    // §2.7.8.2: the entries, and the buffers, are written before the index that exposes them.
    Atomics.store(this.#used, this.#usedIdx, this.#nextUsed);
    // The store above is a full barrier: the driver either sees the index or we see its newest wish (§2.7.14).
    if (this.eventIdx) {
      const event = Atomics.load(this.#avail, this.#usedEvent);
      return passesEvent(event, this.#nextUsed, (this.#nextUsed - buffers) & 0xffff);
    }
    return (Atomics.load(this.#avail, this.#availFlags) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
  }

  /** Asks the driver for no notifications (§2.7.10). */
  override disableNotifications(): void {
    // With EVENT_IDX, flags stay 0 (§2.7.10.2) and an avail_event that is behind asks for nothing.
    if (!this.eventIdx) Atomics.store(this.#used, this.#usedFlags, VIRTQ_USED_F_NO_NOTIFY);
  }

  /** Asks the driver for notifications; returns whether a buffer became available meanwhile. */
  override enableNotifications(): boolean {
    if (this.violation !== null) return false;
    if (this.eventIdx) Atomics.store(this.#used, this.#availEvent, this.#nextAvail);
    else Atomics.store(this.#used, this.#usedFlags, 0);
    // A buffer made available before the driver could see this store came without a notification.
    return this.#again !== null || Atomics.load(this.#avail, this.#availIdx) !== this.#nextAvail;
  }
}
