/**
 * The device's half of a virtqueue, whatever its layout: what a device type sees of it.
 *
 * `SplitVirtqueue` and `PackedVirtqueue` share what is here: which buffers are in flight, the order of
 * VIRTIO_F_IN_ORDER, and one bounded copy of each descriptor into a chain.
 *
 * @module
 */

import { checkedU64, type GuestMemory } from "../../memory/guest_memory.ts";
import type { Violation } from "../violation.ts";
import type { DescriptorChain } from "./chain.ts";
import { newCounters, type VirtqueueCounters } from "./counters.ts";
import { formatAddress, type VirtqueueConfig } from "./queue_parts.ts";
import { type VirtqueueRule, virtqueueViolation } from "./rules.ts";
import { VIRTQ_DESC_F_WRITE } from "./split_layout.ts";

/**
 * Indirect tables may be longer than the queue, up to this, as in QEMU (VIRTQUEUE_MAX_SIZE). §2.7.5.3.1 forbids
 * it, but Linux does it when it was given a small queue and a larger seg_max.
 */
export const INDIRECT_MAX_DESCRIPTORS = 1024;

/** §2.7.5.2: a chain describes at most this many bytes. */
const CHAIN_MAX_BYTES = 2 ** 32;

/**
 * Somebody who keeps a record of what a queue does, where it outlives this process or moves to another host. A queue
 * without one pays a comparison.
 */
export interface VirtqueueRecord {
  /** A buffer was taken from the ring, and nothing of it was carried out yet. */
  taken(chain: DescriptorChain): void;
  /** All that is to be written into a buffer was written. */
  returned(chain: DescriptorChain): void;
  /** A buffer's used entry was written, where the driver does not see it yet. */
  staged(head: number, descriptorCount: number): void;
  /** The driver is about to see what was staged. */
  publishing(): void;
  /** The driver can see all that was staged. */
  published(): void;
}

/** The device's half of a virtqueue. */
export abstract class Virtqueue {
  /** Which of the two layouts the queue has. */
  readonly layout: "split" | "packed";
  /** Number of descriptors. */
  readonly size: number;
  /** What the queue did so far. */
  readonly counters: VirtqueueCounters = newCounters();
  /** Set when the driver broke the ring: nothing is popped any more until the queue is reset. */
  violation: Violation | null = null;
  /** Who keeps a record of the queue, if anybody does. */
  record: VirtqueueRecord | null = null;

  /** Whether VIRTIO_F_EVENT_IDX was negotiated (§2.7.10, §2.8.10). */
  readonly eventIdx: boolean;

  /** Where the ring and its buffers are. */
  protected readonly memory: GuestMemory;
  readonly #indirectAllowed: boolean;

  /** 1 for each head (split) or buffer ID (packed) that is in flight. */
  protected readonly inFlight: Uint8Array;
  /** Buffers popped and not yet pushed. */
  #inFlightCount = 0;
  /** Ring descriptors of the buffers that were popped and that the driver has not seen returned. */
  #descriptorsHeld = 0;
  #sequence = 0;
  /** With VIRTIO_F_IN_ORDER: by sequence, what was completed but waits for an earlier buffer. */
  readonly #waiting: Map<number, { head: number; descriptorCount: number; bytesWritten: number }> | null;
  #nextInOrder = 0;
  /** Buffers pushed since the last `publish`, and their ring descriptors. */
  #staged = 0;
  #stagedDescriptors = 0;
  /** Whether the driver wrote a device-readable descriptor behind a device-writable one. */
  #sawWritable = false;

  /** For the two layouts; `idCount` is how many buffers can be in flight. */
  protected constructor(config: VirtqueueConfig, idCount: number, layout: "split" | "packed") {
    this.layout = layout;
    this.size = config.size;
    this.memory = config.memory;
    this.eventIdx = config.eventIdx;
    this.#indirectAllowed = config.indirect;
    this.#waiting = config.inOrder ? new Map() : null;
    this.inFlight = new Uint8Array(idCount);
  }

  /** Buffers popped and not yet pushed. */
  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  /**
   * Takes the next available buffer.
   *
   * @returns `false` when there is none, or when the driver broke the ring: then `violation` says how
   */
  abstract pop(chain: DescriptorChain): boolean;

  /** How many more buffers are known to be available, without a look; a packed ring tells no number. */
  get backlog(): number {
    return 0;
  }

  /**
   * Where the queue stands: for a split one the free-running index of the next buffer to take; for a packed one bits 0
   * to 14 are the slot of the next descriptor to take, 16 to 30 that of the next used descriptor, 15 and 31 their wrap
   * counters.
   */
  abstract get position(): number;

  /** Writes the used entry of one buffer; the driver need not see it before `publish`. */
  protected abstract stage(head: number, descriptorCount: number, bytesWritten: number): void;

  /**
   * Makes the used entries of `buffers` staged buffers, with `descriptors` ring descriptors, visible.
   *
   * @returns whether the driver asked to be notified of them
   */
  protected abstract publishStaged(buffers: number, descriptors: number): boolean;

  /** Advises the driver that available buffer notifications are not needed for now. */
  abstract disableNotifications(): void;

  /**
   * Asks for an available buffer notification again.
   *
   * @returns `true` when buffers became available meanwhile: the driver may have seen no need to notify, so the
   * caller must look again; always `false` for a broken ring, from which nothing more can be popped
   */
  abstract enableNotifications(): boolean;

  /**
   * Returns a buffer to the driver. It sees nothing of it before `publish`.
   *
   * @param bytesWritten how many bytes were written, from the first device-writable byte on
   */
  push(chain: DescriptorChain, bytesWritten: number): void {
    if (this.record !== null) this.record.returned(chain);
    if (this.#waiting === null) {
      this.#stageOne(chain.head, chain.descriptorCount, bytesWritten);
      return;
    }
    // §6.2: with VIRTIO_F_IN_ORDER buffers are used in the order in which they became available.
    const { head, descriptorCount } = chain;
    if (chain.sequence === this.#nextInOrder) {
      this.#nextInOrder = (this.#nextInOrder + 1) >>> 0;
      this.#stageOne(head, descriptorCount, bytesWritten);
    } else {
      this.#waiting.set(chain.sequence, { head, descriptorCount, bytesWritten });
    }
    for (let next; (next = this.#waiting.get(this.#nextInOrder)) !== undefined;) {
      this.#waiting.delete(this.#nextInOrder);
      this.#nextInOrder = (this.#nextInOrder + 1) >>> 0;
      this.#stageOne(next.head, next.descriptorCount, next.bytesWritten);
    }
  }

  /**
   * Makes all buffers pushed so far visible to the driver, at once.
   *
   * @returns whether the driver asked for a used buffer notification
   */
  publish(): boolean {
    const buffers = this.#staged;
    if (buffers === 0) return false;
    const descriptors = this.#stagedDescriptors;
    this.#staged = 0;
    this.#stagedDescriptors = 0;
    this.#descriptorsHeld -= descriptors;
    this.counters.batches++;
    this.counters.published += buffers;
    if (this.record !== null) this.record.publishing();
    const wanted = this.publishStaged(buffers, descriptors);
    if (this.record !== null) this.record.published();
    if (wanted) this.counters.calls++;
    else this.counters.callsSuppressed++;
    return wanted;
  }

  #stageOne(head: number, descriptorCount: number, bytesWritten: number): void {
    this.inFlight[head] = 0;
    this.#inFlightCount--;
    this.#staged++;
    this.#stagedDescriptors += descriptorCount;
    this.counters.pushed++;
    this.stage(head, descriptorCount, bytesWritten);
    if (this.record !== null) this.record.staged(head, descriptorCount);
  }

  /**
   * Notes that `chain` was taken from the ring.
   *
   * @returns `false` when that makes more descriptors in flight than there are: buffers share some, or the ring was
   * overrun. It also bounds what a hostile driver can make the device remember, and, as a buffer counts until the
   * driver can see it returned, how long one that adds buffers without end can keep the device from publishing.
   *
   * @param again the buffer was taken before, by a device that is gone, and is in the record
   */
  protected take(chain: DescriptorChain, again = false): boolean {
    const held = this.#descriptorsHeld + chain.descriptorCount;
    if (held > this.size) {
      const rule = this.layout === "packed" ? "ring-overrun" : "desc-shared";
      return this.broken(rule, `${held} descriptors are in flight, the ring has ${this.size}`);
    }
    this.#descriptorsHeld = held;
    this.inFlight[chain.head] = 1;
    this.#inFlightCount++;
    this.counters.popped++;
    chain.sequence = this.#sequence;
    this.#sequence = (this.#sequence + 1) >>> 0;
    if (again) this.counters.replayed++;
    else if (this.record !== null) this.record.taken(chain);
    return true;
  }

  /**
   * Notes that the ring is broken.
   *
   * @internal
   */
  protected broken(rule: VirtqueueRule, found: string): false {
    this.violation = this.#violationOf(rule, found);
    return false;
  }

  #violationOf(rule: VirtqueueRule, found: string): Violation {
    return virtqueueViolation(rule, found, this.layout === "packed");
  }

  /** Starts a chain. */
  protected begin(chain: DescriptorChain): void {
    chain.clear();
    this.#sawWritable = false;
  }

  /**
   * Adds the buffer element of the descriptor at `at`, whose flags were read before. What is wrong with it is noted
   * in the chain, and the walk goes on: the status byte at the end may still be there to be written.
   */
  protected addDescriptor(
    chain: DescriptorChain,
    index: number,
    indirect: boolean,
    view: DataView,
    at: number,
    flags: number,
  ): void {
    // Both layouts begin a descriptor with le64 addr, le32 len (§2.7.5, §2.8.13), and have the same bit for WRITE.
    const address = checkedU64(view.getUint32(at, true), view.getUint32(at + 4, true));
    const length = view.getUint32(at + 8, true);
    const writable = (flags & VIRTQ_DESC_F_WRITE) !== 0;
    chain.record(index, indirect, address, length, flags);
    // A zero-length element is not forbidden, so it is no buffer at all; QEMU gives up on the device here.
    if (length === 0) return;
    const list = writable ? chain.writable : chain.readable;
    if (writable) {
      this.#sawWritable = true;
    } else if (this.#sawWritable) {
      chain.violation ??= this.#violationOf(
        "readable-after-writable",
        `descriptor ${index} is device-readable but follows a device-writable one`,
      );
    }
    if (chain.readable.byteLength + chain.writable.byteLength + length > CHAIN_MAX_BYTES) {
      // A few descriptors can name the same memory over and over: what comes before is dropped, so that a request
      // that fails anyway never has to move, or clear, terabytes.
      chain.violation ??= this.#violationOf("chain-bytes", "the chain describes more bytes");
      list.clear();
      if (writable) chain.writablePrefixLost = true;
    }
    if (!this.memory.translate(list, address, length)) {
      chain.violation ??= this.#violationOf(
        "unmapped",
        `descriptor ${index} describes ${length} bytes at ${formatAddress(address)}, outside guest memory`,
      );
      // What follows is no longer where a reader of the list would look for it; only the last
      // device-writable byte, the status, keeps its meaning, and only if it comes later.
      if (writable) {
        chain.writable.clear();
        chain.writablePrefixLost = true;
      }
    }
  }

  /** Checks a descriptor with INDIRECT set, in the ring or table itself. */
  protected checkIndirect(index: number, length: number, hasNext: boolean): boolean {
    if (!this.#indirectAllowed) {
      return this.broken("indirect-not-negotiated", `descriptor ${index} has INDIRECT set`);
    }
    if (hasNext) return this.broken("indirect-next", `descriptor ${index} has both flags set`);
    if (length === 0 || length % 16 !== 0) {
      return this.broken("indirect-length", `descriptor ${index} gives its indirect table ${length} bytes`);
    }
    return true;
  }
}
