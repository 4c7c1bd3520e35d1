/**
 * The device's half of the packed virtqueue (VIRTIO 1.4 §2.8).
 *
 * One ring serves both directions: the driver makes descriptors available in ring order, the device overwrites
 * them with used ones in the order of completion. Which lap a descriptor belongs to is told by its AVAIL and USED
 * bits against a wrap counter. The flags word is the only field on which both sides synchronise; it is read and
 * written atomically, every other field is read once, after it.
 *
 * @module
 */

import { checkedU64 } from "../../memory/guest_memory.ts";
import type { Violation } from "../violation.ts";
import type { DescriptorChain } from "./chain.ts";
import { passesEvent } from "./notification_layout.ts";
import {
  EVENT_FLAGS,
  EVENT_OFF_WRAP,
  PACKED_ALIGNMENT,
  packedSizes,
  PVIRTQ_DESC_F_AVAIL,
  PVIRTQ_DESC_F_INDIRECT,
  PVIRTQ_DESC_F_NEXT,
  PVIRTQ_DESC_F_USED,
  PVIRTQ_DESC_F_WRITE,
  PVIRTQ_DESC_FLAGS,
  PVIRTQ_DESC_ID,
  PVIRTQ_DESC_LEN,
  PVIRTQ_DESC_SIZE,
  PVIRTQ_MAX_SIZE,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
} from "./packed_layout.ts";
import { virtqueueViolation } from "./rules.ts";
import { locateParts, type QueuePart, type VirtqueueConfig } from "./queue_parts.ts";
import { INDIRECT_MAX_DESCRIPTORS, Virtqueue } from "./virtqueue.ts";

/** Where a ring stands that was never used: at its first slot, both wrap counters set (§2.8.1). */
export const PACKED_START = 0x8000_8000;

/** A packed virtqueue, as the device sees it. */
export class PackedVirtqueue extends Virtqueue {
  readonly #ring: DataView;
  /** Where the ring starts in its region, in bytes. */
  readonly #ringOffset: number;
  readonly #ringWords: Uint16Array;
  /** Index of the first descriptor's flags among the region's 16-bit units. */
  readonly #flagsWord: number;
  readonly #driverEvent: Uint16Array;
  readonly #driverEventWord: number;
  readonly #deviceEvent: Uint16Array;
  readonly #deviceEventWord: number;

  /** The next descriptor that the driver will make available. */
  #availSlot = 0;
  #availWrap = true;
  /** Where the next used descriptor goes. */
  #usedSlot = 0;
  #usedWrap = true;
  /** Descriptors of buffers to be given out before all that is in the ring. */
  #again: DataView[] | null = null;
  /** Flags of the first staged descriptor, written last, so that a batch appears at once. */
  #firstStagedWord = -1;
  #firstStagedFlags = 0;
  readonly #scratch = new Uint8Array(PVIRTQ_DESC_SIZE);
  readonly #scratchView = new DataView(this.#scratch.buffer);

  private constructor(
    config: VirtqueueConfig,
    parts: { desc: QueuePart; driver: QueuePart; device: QueuePart },
    position: number,
  ) {
    // A buffer ID is any 16-bit number; nothing in §2.8 ties it to the queue size.
    super(config, 0x1_0000, "packed");
    this.#ring = parts.desc.region.view;
    this.#ringOffset = parts.desc.offset;
    this.#ringWords = parts.desc.region.words;
    this.#flagsWord = (parts.desc.offset + PVIRTQ_DESC_FLAGS) / 2;
    this.#driverEvent = parts.driver.region.words;
    this.#driverEventWord = parts.driver.offset / 2;
    this.#deviceEvent = parts.device.region.words;
    this.#deviceEventWord = parts.device.offset / 2;
    this.#availSlot = position & 0x7fff;
    this.#availWrap = (position & 0x8000) !== 0;
    this.#usedSlot = position >>> 16 & 0x7fff;
    this.#usedWrap = position >>> 31 === 1;
  }

  /**
   * Takes over a queue that the driver set up.
   *
   * @param position where it stands, as `position` tells it; the caller has checked that both slots are below the size
   * @returns the queue, or the rule that the driver broke when it set the queue up
   */
  static create(config: VirtqueueConfig, position: number = PACKED_START): PackedVirtqueue | Violation {
    const { size } = config;
    if (!Number.isInteger(size) || size < 1 || size > PVIRTQ_MAX_SIZE) {
      return virtqueueViolation("packed-queue-size", `the queue's size is ${size}`, true);
    }
    const parts = locateParts(config, true, packedSizes(size), PACKED_ALIGNMENT);
    return "rule" in parts ? parts : new PackedVirtqueue(config, parts, position);
  }

  /** Takes the next available buffer (§2.8.1), if there is one. */
  override pop(chain: DescriptorChain): boolean {
    if (this.violation !== null) return false;
    this.begin(chain);
    if (this.#again !== null) return this.#popAgain(chain, this.#again);
    const flags = Atomics.load(this.#ringWords, this.#flagsWord + this.#availSlot * 8);
    if (!this.#isAvailable(flags, this.#availWrap)) return false;
    if (!this.#walk(chain, flags)) return false;
    if (this.inFlight[chain.head] !== 0) {
      return this.broken("id-in-flight", `buffer ID ${chain.head} was used again while in flight`);
    }
    if (!this.take(chain)) return false;
    this.#availSlot += chain.descriptorCount;
    if (this.#availSlot >= this.size) {
      this.#availSlot -= this.size;
      this.#availWrap = !this.#availWrap;
    }
    return true;
  }

  /** Both slots and wrap counters, in the form of vhost-user. */
  override get position(): number {
    const avail = this.#availSlot | (this.#availWrap ? 0x8000 : 0);
    const used = this.#usedSlot | (this.#usedWrap ? 0x8000 : 0);
    return avail + used * 0x1_0000;
  }

  /**
   * Gives buffers out once more, before all others: those that a device which is gone took and did not return. The
   * ring need not hold them any more, so each comes as a copy of its descriptors.
   *
   * @param buffers for each buffer its descriptors of 16 bytes, one or more, with the buffer ID in the last
   */
  resubmit(buffers: readonly DataView[]): void {
    this.#again = buffers.length === 0 ? null : [...buffers];
    this.#unstage();
  }

  /**
   * The device that is gone may have written used descriptors behind one that it never showed. In their places they
   * would pass for used as soon as the first of them is, so they are made to look as if never used.
   */
  #unstage(): void {
    for (let slot = this.#usedSlot, wrap = this.#usedWrap, left = this.size; left > 0; left--) {
      if (slot === this.#availSlot && wrap === this.#availWrap) return;
      const word = this.#flagsWord + slot * 8;
      const flags = Atomics.load(this.#ringWords, word);
      const avail = (flags & PVIRTQ_DESC_F_AVAIL) !== 0;
      const used = (flags & PVIRTQ_DESC_F_USED) !== 0;
      if (avail === wrap && used === wrap) Atomics.store(this.#ringWords, word, flags ^ PVIRTQ_DESC_F_USED);
      if (++slot === this.size) {
        slot = 0;
        wrap = !wrap;
      }
    }
  }

  #popAgain(chain: DescriptorChain, buffers: DataView[]): boolean {
    const view = buffers.shift()!;
    if (buffers.length === 0) this.#again = null;
    const count = view.byteLength / PVIRTQ_DESC_SIZE;
    chain.descriptorCount = count;
    for (let i = 0; i < count; i++) {
      const at = i * PVIRTQ_DESC_SIZE;
      const flags = view.getUint16(at + PVIRTQ_DESC_FLAGS, true);
      chain.head = view.getUint16(at + PVIRTQ_DESC_ID, true);
      if (!(flags & PVIRTQ_DESC_F_INDIRECT)) this.addDescriptor(chain, i, false, view, at, flags);
      else if (!this.#walkIndirect(chain, i, view, at, flags, count > 1)) return false;
    }
    if (this.inFlight[chain.head] !== 0) {
      return this.broken("id-in-flight", `the record of buffers in flight names buffer ID ${chain.head} twice`);
    }
    return this.take(chain, true);
  }

  /** §2.8.1: AVAIL equals the wrap counter of the descriptor's lap and USED does not. */
  #isAvailable(flags: number, wrap: boolean): boolean {
    const avail = (flags & PVIRTQ_DESC_F_AVAIL) !== 0;
    const used = (flags & PVIRTQ_DESC_F_USED) !== 0;
    return avail === wrap && used !== wrap;
  }

  #walk(chain: DescriptorChain, firstFlags: number): boolean {
    let slot = this.#availSlot;
    let wrap = this.#availWrap;
    let flags = firstFlags;
    for (let count = 1;; count++) {
      const at = this.#ringOffset + slot * PVIRTQ_DESC_SIZE;
      // §2.8.6: the ID is in the last descriptor of the list; taking each as it comes leaves the last.
      chain.head = this.#ring.getUint16(at + PVIRTQ_DESC_ID, true);
      if (flags & PVIRTQ_DESC_F_INDIRECT) {
        chain.descriptorCount = count;
        return this.#walkIndirect(chain, slot, this.#ring, at, flags, count > 1);
      }
      this.addDescriptor(chain, slot, false, this.#ring, at, flags);
      if (!(flags & PVIRTQ_DESC_F_NEXT)) {
        chain.descriptorCount = count;
        return true;
      }
      if (count >= this.size) {
        return this.broken("chain-too-long", `the list at slot ${this.#availSlot} has more than ${this.size}`);
      }
      if (++slot === this.size) {
        slot = 0;
        wrap = !wrap;
      }
      flags = this.#ring.getUint16(this.#ringOffset + slot * PVIRTQ_DESC_SIZE + PVIRTQ_DESC_FLAGS, true);
      // §2.8.15: no descriptor is used before its own flags say that it is available, behind the first one too.
      if (!this.#isAvailable(flags, wrap)) {
        return this.broken(
          "list-unavailable",
          `the list at slot ${this.#availSlot} continues at slot ${slot}, which is not available`,
        );
      }
    }
  }

  #walkIndirect(
    chain: DescriptorChain,
    slot: number,
    from: DataView,
    at: number,
    flags: number,
    inList: boolean,
  ): boolean {
    const address = checkedU64(from.getUint32(at, true), from.getUint32(at + 4, true));
    const length = from.getUint32(at + PVIRTQ_DESC_LEN, true);
    chain.record(slot, false, address, length, flags);
    if (!this.checkIndirect(slot, length, inList || (flags & PVIRTQ_DESC_F_NEXT) !== 0)) return false;
    // §2.8.7: the entries follow each other and only WRITE counts in them, so the table is the list.
    const entries = length / PVIRTQ_DESC_SIZE;
    if (entries > Math.max(this.size, INDIRECT_MAX_DESCRIPTORS)) {
      return this.broken("chain-too-long", `the indirect table at slot ${slot} has ${entries} descriptors`);
    }
    const whole = this.memory.regionHolding(address, length);
    for (let entry = 0; entry < entries; entry++) {
      const view = whole === null ? this.#scratchView : whole.view;
      let place = 0;
      if (whole !== null) {
        place = address - whole.guestAddress + entry * PVIRTQ_DESC_SIZE;
      } else if (!this.memory.read(address + entry * PVIRTQ_DESC_SIZE, this.#scratch)) {
        return this.broken("indirect-memory", `entry ${entry} of the table at slot ${slot} is not`);
      }
      const entryFlags = view.getUint16(place + PVIRTQ_DESC_FLAGS, true);
      this.addDescriptor(chain, entry, true, view, place, entryFlags);
    }
    return true;
  }

  /** Writes a used descriptor that the driver cannot see yet. */
  protected override stage(id: number, descriptorCount: number, bytesWritten: number): void {
    const at = this.#ringOffset + this.#usedSlot * PVIRTQ_DESC_SIZE;
    this.#ring.setUint32(at + PVIRTQ_DESC_LEN, bytesWritten, true);
    this.#ring.setUint16(at + PVIRTQ_DESC_ID, id, true);
    // §2.8.1: a used descriptor has AVAIL and USED both equal to the device's wrap counter; §2.8.3: WRITE says
    // that the length counts.
    const flags = (this.#usedWrap ? PVIRTQ_DESC_F_AVAIL | PVIRTQ_DESC_F_USED : 0) |
      (bytesWritten > 0 ? PVIRTQ_DESC_F_WRITE : 0);
    const word = this.#flagsWord + this.#usedSlot * 8;
    if (this.#firstStagedWord < 0) {
      this.#firstStagedWord = word;
      this.#firstStagedFlags = flags;
    } else {
      Atomics.store(this.#ringWords, word, flags);
    }
    this.#usedSlot += descriptorCount;
    if (this.#usedSlot >= this.size) {
      this.#usedSlot -= this.size;
      this.#usedWrap = !this.#usedWrap;
    }
  }

  /** Shows the driver what was staged; returns whether it wants a notification (§2.8.10). */
  protected override publishStaged(_buffers: number, descriptors: number): boolean {
    // The driver looks at its next descriptor only, so the first one, written last, exposes the batch.
    Atomics.store(this.#ringWords, this.#firstStagedWord, this.#firstStagedFlags);
    this.#firstStagedWord = -1;
    const wish = Atomics.load(this.#driverEvent, this.#driverEventWord + EVENT_FLAGS / 2) & 3;
    if (wish === RING_EVENT_FLAGS_DISABLE) return false;
    // Without EVENT_IDX the value DESC is not valid, and 3 is reserved: a notification too many does no harm.
    if (wish !== RING_EVENT_FLAGS_DESC || !this.eventIdx) return true;
    const offWrap = Atomics.load(this.#driverEvent, this.#driverEventWord + EVENT_OFF_WRAP / 2);
    let event = offWrap & 0x7fff;
    if ((offWrap >>> 15 === 1) !== this.#usedWrap) event -= this.size;
    return passesEvent(event, this.#usedSlot, this.#usedSlot - descriptors);
  }

  /** Asks the driver for no notifications (§2.8.14). */
  override disableNotifications(): void {
    Atomics.store(this.#deviceEvent, this.#deviceEventWord + EVENT_FLAGS / 2, RING_EVENT_FLAGS_DISABLE);
  }

  /** Asks the driver for notifications; returns whether a buffer became available meanwhile. */
  override enableNotifications(): boolean {
    if (this.violation !== null) return false;
    if (this.eventIdx) {
      const offWrap = this.#availSlot | (this.#availWrap ? 0x8000 : 0);
      Atomics.store(this.#deviceEvent, this.#deviceEventWord + EVENT_OFF_WRAP / 2, offWrap);
      // The position must be there before the flag that refers to it.
      Atomics.store(this.#deviceEvent, this.#deviceEventWord + EVENT_FLAGS / 2, RING_EVENT_FLAGS_DESC);
    } else {
      Atomics.store(this.#deviceEvent, this.#deviceEventWord + EVENT_FLAGS / 2, RING_EVENT_FLAGS_ENABLE);
    }
    const flags = Atomics.load(this.#ringWords, this.#flagsWord + this.#availSlot * 8);
    return this.#again !== null || this.#isAvailable(flags, this.#availWrap);
  }
}
