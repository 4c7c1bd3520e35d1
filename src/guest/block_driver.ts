/**
 * A virtio block driver (the driver's half of VIRTIO 1.4 §5.2): request slots, queues, interrupts.
 *
 * It allocates nothing per request, and calls back; `Guest` puts promises on top.
 *
 * @module
 */

import {
  CONFIG_FIELDS,
  configField,
  type ConfigFieldName,
  VIRTIO_BLK_F_MQ,
  VIRTIO_ID_BLOCK,
} from "../blk/blk_layout.ts";
import type { TraceSink } from "../trace/events.ts";
import { type RegisterWindow, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING } from "../transport/mmio/mmio_layout.ts";
import {
  hasFeature,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
} from "../virtio/features.ts";
import { VIRTIO_CONFIG_S_NEEDS_RESET } from "../virtio/status_layout.ts";
import type { GuestAllocator } from "./allocator.ts";
import type { DriverQueue } from "./driver_queue.ts";
import { UNDERSTOOD } from "./driver_features.ts";
import { MmioProbe, ProbeError } from "./mmio_probe.ts";
import { PackedDriverQueue } from "./packed_driver_queue.ts";
import { IDLE, LOST, type RequestSlot } from "./request_slot.ts";
import { RequestSlots } from "./request_slots.ts";
import { SplitDriverQueue } from "./split_driver_queue.ts";

/** Choices of the driver. */
export interface BlockDriverOptions {
  /** Features to decline although the device offers them. Default: none. */
  decline?: bigint;
  /** Largest queue to set up; the device may allow less. Default: 256. */
  queueSize?: number;
  /** Put requests into indirect tables when that was negotiated. Default: true. */
  useIndirect?: boolean;
  /** Take no interrupts by itself: `poll` and `handleInterrupt` are called by hand. Default: false. */
  manualInterrupts?: boolean;
  /** Takes kicks and interrupts. */
  trace?: TraceSink;
}

/** A block driver on a virtio-mmio register window. */
export class BlockDriver {
  /** The register window with the driver's procedures, for whoever wants to try something else. */
  readonly registers: MmioProbe;
  /** The guest's memory. */
  readonly allocator: GuestAllocator;
  /** The negotiated features. */
  features = 0n;
  /** Called after the device said that its configuration changed. */
  onConfigChange: () => void = () => {};
  /** Called after each completion, for statistics. */
  onComplete: ((slot: RequestSlot) => void) | null = null;

  readonly #options: BlockDriverOptions;
  readonly #slots: RequestSlots;
  #queues: DriverQueue[] = [];
  /** By queue: requests that wait for free descriptors. */
  #waiting: RequestSlot[][] = [];
  #inFlight = 0;
  #needsReset = false;
  /** By queue: whether the device may be notified of it. */
  #live: boolean[] = [];
  /** VIRTIO_F_NOTIFICATION_DATA was negotiated. */
  #notificationData = false;

  /** Touches no register before `start`. */
  constructor(window: RegisterWindow, allocator: GuestAllocator, options: BlockDriverOptions = {}) {
    this.registers = new MmioProbe(window);
    this.allocator = allocator;
    this.#slots = new RequestSlots(allocator);
    this.#options = options;
  }

  /** The queues in use. */
  get queues(): readonly DriverQueue[] {
    return this.#queues;
  }

  /** Requests submitted and not completed. */
  get inFlightCount(): number {
    return this.#inFlight;
  }

  /** Requests that wait for free descriptors of a queue. */
  waitingCount(queue: number): number {
    return this.#waiting[queue].length;
  }

  /** Whether the device said that it needs a reset. */
  get needsReset(): boolean {
    return this.#needsReset;
  }

  /**
   * Finds the device, negotiates and sets all queues up (§3.1.1).
   *
   * @throws ProbeError
   */
  async start(): Promise<void> {
    const id = this.registers.identify();
    if (id !== VIRTIO_ID_BLOCK) throw new ProbeError(`device ID ${id} is not a block device`);
    await this.#quiesce();
    this.#needsReset = false;
    const { decline = 0n, queueSize = 256 } = this.#options;
    this.features = this.registers.negotiate((offered) => offered & UNDERSTOOD & ~decline);
    this.#notificationData = hasFeature(this.features, VIRTIO_F_NOTIFICATION_DATA);
    const count = hasFeature(this.features, VIRTIO_BLK_F_MQ) ? this.readConfig("num_queues") : 1;
    try {
      for (let index = 0; index < count; index++) {
        const sizeMax = this.registers.queueSizeMax(index);
        if (sizeMax === 0) throw new ProbeError(`the device has no queue ${index}`);
        this.#addQueue(index, this.#fitSize(Math.min(sizeMax, queueSize)));
      }
    } catch (error) {
      // §3.1.1: the driver says that it has given up.
      this.registers.fail();
      throw error;
    }
    this.registers.goLive();
    this.#live = this.#queues.map(() => true);
  }

  /** Resets the device; requests in flight end with `LOST`. The device is not usable until `start`. */
  stop(): Promise<void> {
    return this.#quiesce();
  }

  /** Resets the device and forgets the queues, once the device has let go of them. */
  async #quiesce(): Promise<void> {
    this.#live = [];
    await this.registers.reset();
    this.#loseAll();
    for (const queue of this.#queues) queue.release();
    this.#queues = [];
    this.#waiting = [];
  }

  /**
   * Resets one queue (§2.6.1) and sets it up again, with another size if given. Its requests in flight end with `LOST`.
   *
   * @throws RangeError for a size that the queue cannot have
   * @throws ProbeError when the device cannot reset a queue, or this one is being reset already
   */
  async resetQueue(index: number, size: number = this.#queues[index].size): Promise<void> {
    if (!hasFeature(this.features, VIRTIO_F_RING_RESET)) throw new ProbeError("the device cannot reset a single queue");
    if (!this.#live[index]) throw new ProbeError(`queue ${index} is being reset already`);
    this.registers.write("QueueSel", index);
    const sizeMax = this.registers.read("QueueSizeMax");
    // §4.2.2.2: never more than QueueSizeMax. Checked first: a queue that was reset could not come back.
    if (!(size >= 1 && size <= sizeMax && this.#fitSize(size) === size)) {
      throw new RangeError(`queue ${index} cannot have ${size} descriptors; the device allows ${sizeMax}`);
    }
    const live = this.#live;
    live[index] = false;
    await this.registers.resetQueue(index);
    // Meanwhile the whole device may have been reset, and the queue with it.
    if (this.#live !== live) return;
    for (const slot of this.#slots.all) if (slot.queue === index) this.#lose(slot);
    this.#waiting[index] = [];
    this.#queues[index].release();
    this.#addQueue(index, size);
    live[index] = true;
  }

  /** A free request slot with an empty element list. */
  take(): RequestSlot {
    return this.#slots.take();
  }

  /** Begins a request in `slot`: writes the header and makes it the first element. */
  begin(slot: RequestSlot, type: number, sector: number): void {
    this.#slots.begin(slot, type, sector);
  }

  /** Ends a request in `slot`: makes the status byte the last element. */
  end(slot: RequestSlot): void {
    this.#slots.end(slot);
  }

  /**
   * Hands a request to the device; it sees it after the next `kick`. `done` is called with the slot when it has
   * ended, after which the slot is free again.
   *
   * @throws RangeError when the queue could never take it
   * @throws GuestMemoryError when there is no memory for its indirect table
   */
  submit(slot: RequestSlot, queue: number, done: (slot: RequestSlot) => void): void {
    slot.queue = queue;
    try {
      this.#checkFits(slot);
      if (this.#waiting[queue].length > 0 || !this.#place(slot)) this.#waiting[queue].push(slot);
    } catch (error) {
      this.#slots.giveBack(slot);
      throw error;
    }
    slot.done = done;
    slot.status = 0;
    this.#inFlight++;
    if (this.onComplete !== null) slot.submittedAt = performance.now();
  }

  /** Makes everything submitted to `queue` available, and notifies the device if it wants to be. */
  kick(queue: number): void {
    // §3.1.1: nothing is notified before DRIVER_OK; nor a queue that is being reset.
    if (!this.#live[queue]) return;
    const ring = this.#queues[queue];
    const before = this.#options.trace === undefined ? 0 : ring.addedCount;
    const wanted = ring.publish();
    if (before > 0) this.#options.trace?.({ event: "kick", queue, buffers: before, sent: wanted });
    if (wanted) this.notify(queue);
  }

  /** Notifies the device of `queue`, wanted or not. */
  notify(queue: number): void {
    const value = this.#notificationData ? ((this.#queues[queue].position << 16) | queue) >>> 0 : queue;
    this.registers.write("QueueNotify", value);
  }

  /** The interrupt handler. */
  handleInterrupt(): void {
    const reason = this.registers.read("InterruptStatus");
    if (reason === 0) return;
    // Acknowledged first, though §4.2.3.4.1 has it after the handling: so does Linux, as what happens from here on
    // raises the line again, and no event is lost with the acknowledgement of another.
    this.registers.write("InterruptACK", reason & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG));
    const usedBuffer = (reason & VIRTIO_MMIO_INT_VRING) !== 0;
    const configChange = (reason & VIRTIO_MMIO_INT_CONFIG) !== 0;
    this.#options.trace?.({ event: "interrupt", usedBuffer, configChange });
    // §4.2.3.4.1: one line for all queues.
    if (usedBuffer) this.poll();
    if (configChange) this.#configChanged();
  }

  /** Takes back all used buffers, interrupt or not. */
  poll(): void {
    // What was in flight was given up as lost; that the device goes on with it changes nothing (§2.1.1).
    if (this.#needsReset) return;
    for (let index = 0; index < this.#queues.length; index++) {
      const queue = this.#queues[index];
      do {
        queue.disableInterrupts();
        for (let token = queue.take(); token >= 0; token = queue.take()) {
          const slot = this.#slots.all[token];
          slot.usedLength = queue.usedLength;
          this.#complete(slot);
        }
        // A completion can reset the device, and this queue with it.
        if (this.#queues[index] !== queue) return;
      } while (queue.enableInterrupts());
      this.#placeWaiting(index);
    }
  }

  /** Reads a field of the configuration space. */
  readConfig(name: ConfigFieldName): number {
    const { offset, width } = configField(name);
    return this.registers.consistently(() => this.registers.readConfig(offset, width));
  }

  /** Reads every field of the configuration space that exists, by name. */
  readAllConfig(): Partial<Record<ConfigFieldName, number>> {
    return this.registers.consistently(() => {
      const entries = CONFIG_FIELDS
        .filter((field) => !("feature" in field) || hasFeature(this.features, field.feature))
        .map(({ name, offset, width }) => [name, this.registers.readConfig(offset, width)]);
      return Object.fromEntries(entries);
    });
  }

  #addQueue(index: number, size: number): void {
    const options = {
      size,
      eventIdx: hasFeature(this.features, VIRTIO_F_EVENT_IDX),
      inOrder: hasFeature(this.features, VIRTIO_F_IN_ORDER),
      indirect: hasFeature(this.features, VIRTIO_F_INDIRECT_DESC) && (this.#options.useIndirect ?? true),
    };
    const queue = hasFeature(this.features, VIRTIO_F_RING_PACKED)
      ? new PackedDriverQueue(this.allocator, options)
      : new SplitDriverQueue(this.allocator, options);
    this.registers.setUpQueue(index, size, queue.addresses);
    this.#queues[index] = queue;
    this.#waiting[index] = [];
  }

  #place(slot: RequestSlot): boolean {
    const queue = this.#queues[slot.queue];
    if (slot.raw !== null) return queue.addRaw(slot.raw.descriptors, slot.raw.indirect, slot.index);
    return queue.add(slot.elements, slot.count, slot.index);
  }

  /** A request that the ring can never take would wait for ever, and all behind it too. */
  #checkFits(slot: RequestSlot): void {
    const queue = this.#queues[slot.queue];
    const { raw } = slot;
    const elements = raw === null ? slot.count : raw.descriptors.length;
    // §2.7.5.3.1: an indirect table does not lift the limit; only a chain made by hand may try.
    const counted = raw !== null && raw.indirect ? 1 : elements;
    if (elements > 0 && counted <= queue.size) return;
    throw new RangeError(`a request of ${elements} elements does not fit a queue of ${queue.size}`);
  }

  /** The largest size up to `size` that a queue of the negotiated layout can have: §2.7 wants powers of two. */
  #fitSize(size: number): number {
    return hasFeature(this.features, VIRTIO_F_RING_PACKED) ? size : 2 ** Math.floor(Math.log2(size));
  }

  #placeWaiting(index: number): void {
    const waiting = this.#waiting[index];
    if (waiting.length === 0) return;
    let placed = 0;
    while (placed < waiting.length && this.#place(waiting[placed])) placed++;
    if (placed === 0) return;
    waiting.splice(0, placed);
    this.kick(index);
  }

  #complete(slot: RequestSlot): void {
    // Where a chain made by hand has its status byte, only who made it knows.
    if (slot.raw === null) slot.status = this.#slots.statusOf(slot);
    this.#release(slot);
  }

  #release(slot: RequestSlot): void {
    this.#inFlight--;
    this.onComplete?.(slot);
    const { done } = slot;
    slot.done = IDLE;
    done(slot);
    this.#slots.giveBack(slot);
  }

  #configChanged(): void {
    if (this.registers.read("Status") & VIRTIO_CONFIG_S_NEEDS_RESET) {
      this.#needsReset = true;
      // §2.1.1: completion of what is in flight can't be relied on any more.
      this.#loseAll();
    }
    this.onConfigChange();
  }

  #loseAll(): void {
    for (const slot of this.#slots.all) this.#lose(slot);
    this.#waiting = this.#waiting.map(() => []);
  }

  #lose(slot: RequestSlot): void {
    if (slot.done === IDLE) return;
    slot.status = LOST;
    slot.usedLength = 0;
    this.#release(slot);
  }
}
