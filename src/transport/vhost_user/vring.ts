/**
 * One ring of a vhost-user device: what the front-end says about it, when it runs ("Ring states"), and the virtqueue
 * that it becomes then.
 *
 * A ring is started once it is set up whole and has a kick descriptor. The text starts it at the first kick; vblk looks
 * once by itself as well, since the kicks for what is in the ring may have been taken by a back-end that is gone, or
 * before the virtual machine was stopped. A disabled ring that was started is left alone: a block device can process
 * nothing without side effects.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import { hasFeature, VIRTIO_F_RING_PACKED } from "../../virtio/features.ts";
import type { Virtqueue } from "../../virtio/virtqueue/virtqueue.ts";
import { BothRecords, type DirtyLog, DirtyRecord, type LoggedRange } from "./dirty_log.ts";
import type { QueueRegion } from "./inflight_layout.ts";
import { openQueue, queueConfig } from "./open_queue.ts";
import { locateRing, logEnd, loggedRanges, type RingAddresses } from "./ring_place.ts";
import { vhostUserViolation } from "./rules.ts";
import { after, type Closable, type Completion, type Notifier } from "./seams.ts";
import type { VringAddress } from "./vhost_user_layout.ts";
import type { VringContext } from "./vring_context.ts";

/** Kicks of a new ring that may find nothing: QEMU sends one by itself when it starts a ring. */
const KICKS_IN_VAIN = 1;

/** A ring. */
export class Vring {
  readonly #index: number;
  readonly #context: VringContext;
  #size = 0;
  #address: VringAddress | null = null;
  #base = 0;
  #enabled = false;
  #kick: Closable | null = null;
  #call: Notifier | null = null;
  #err: Notifier | null = null;
  #queue: Virtqueue | null = null;
  /** Where the running queue keeps its record. */
  #region: QueueRegion | null = null;
  /** What keeps the record of buffers in flight, if anything does. */
  #inflight: Virtqueue["record"] = null;
  #dirty: DirtyRecord | null = null;
  /** The device holds the running queue, since the ring is disabled. */
  #paused = false;
  /** Memory is about to change: only `start` goes on. */
  #resting = false;
  /** Kicks of the running ring, while nothing was ever in it; `null` once something was, or may have been. */
  #inVain: number | null = null;
  /** The last start failed, and nothing was changed since. */
  #hopeless = false;

  constructor(index: number, context: VringContext) {
    this.#index = index;
    this.#context = context;
  }

  /** Whether it is started. */
  get running(): boolean {
    return this.#queue !== null;
  }

  /** Whether it is enabled. */
  get enabled(): boolean {
    return this.#enabled;
  }

  /** Number of descriptors; 0 before it was said. */
  get size(): number {
    return this.#size;
  }

  /** SET_VRING_NUM, for a ring that is stopped. */
  set size(size: number) {
    this.#size = size;
    this.#hopeless = false;
  }

  /** Where it goes on, in the form of the messages: for a stopped ring. */
  get base(): number {
    return this.#base;
  }

  /** SET_VRING_BASE, for a ring that is stopped. */
  set base(base: number) {
    this.#base = base;
    this.#hopeless = false;
  }

  /** What the rule is that the driver broke in the running ring, if any. */
  get violation(): Violation | null {
    return this.#queue?.violation ?? null;
  }

  /** SET_VRING_ADDR. Of a running ring only the logging can be changed. */
  setAddress(address: VringAddress): Violation | null {
    const before = this.#address;
    const moved = before === null || before.descriptor !== address.descriptor || before.used !== address.used ||
      before.available !== address.available;
    if (this.running && moved) {
      return vhostUserViolation("state", `the addresses of running ring ${this.#index} change`);
    }
    const refused = this.#locate(address, Math.max(1, this.#size));
    if ("rule" in refused) return refused;
    const log = this.#context.activeLog;
    if (log !== null && !log.covers(logEnd(address, Math.max(1, this.#size), this.#packed))) {
      return vhostUserViolation("log-range", `ring ${this.#index} is logged from ${address.log}`);
    }
    this.#address = address;
    this.#hopeless = false;
    this.updateRecord();
    return null;
  }

  /**
   * SET_VRING_KICK. Takes the descriptor over.
   *
   * @param fd `null` when the ring is to be polled
   * @returns why the ring, set up whole, could not be started
   */
  setKick(fd: number | null): Violation | null {
    this.#kick?.close();
    this.#kick = null;
    try {
      this.#kick = this.#context.host.watchKicks(fd, () => this.#kicked());
    } catch (error) {
      return vhostUserViolation("host", error instanceof Error ? error.message : String(error));
    }
    // Kicks that arrived at the old descriptor may be lost.
    if (this.#queue !== null && this.#enabled) this.#context.device.kick(this.#index);
    return this.start();
  }

  /** SET_VRING_CALL. */
  setCall(call: Notifier | null): void {
    this.#call?.close();
    this.#call = call;
    // The last call to the old descriptor may be lost; one too many does no harm.
    if (this.running) call?.signal();
  }

  /** SET_VRING_ERR. */
  setErr(err: Notifier | null): void {
    this.#err?.close();
    this.#err = err;
    if (this.violation !== null) err?.signal();
  }

  /** Enables or disables it; returns why it could not be started then. */
  setEnabled(enabled: boolean): Violation | null {
    if (enabled === this.#enabled) return null;
    this.#enabled = enabled;
    if (this.#queue === null) return enabled ? this.start() : null;
    this.#setPaused(!enabled);
    return null;
  }

  /** Used buffers are there, and the driver wants to know. */
  call(): void {
    if (this.running) this.#call?.signal();
  }

  /** The driver broke the ring. */
  err(): void {
    this.#err?.signal();
  }

  /** Starts it, if everything is there that it takes. */
  start(): Violation | null {
    this.#resting = false;
    const { deviceFeatures } = this.#context;
    const address = this.#address;
    if (this.running || this.#hopeless || this.#kick === null) return null;
    if (this.#size === 0 || address === null || deviceFeatures === null) return null;
    const refused = this.#open(address, deviceFeatures);
    this.#hopeless = refused !== null;
    return refused;
  }

  /** Stops it: ends when all that was taken from it was returned, and `base` tells where it goes on. */
  stop(): Completion {
    this.#kick?.close();
    this.#kick = null;
    return this.#halt();
  }

  /** Lets go of the memory for a while: like `stop`, but `start` goes on. Until then no kick does. */
  suspend(): Completion {
    this.#resting = true;
    return this.#halt();
  }

  #halt(): Completion {
    const queue = this.#queue;
    if (queue === null) return;
    const { device } = this.#context;
    return after(device.pauseQueue(this.#index), () => {
      const stopped = this.#queue === queue ? this.#close(queue) : undefined;
      device.resumeQueue(this.#index);
      return stopped;
    });
  }

  /**
   * The device was reset: the queue is gone, and what was in flight is never returned.
   *
   * @param forget whether that is known to the driver, so that nothing of it is to be carried out again
   */
  abandon(forget: boolean): void {
    this.#kick?.close();
    this.#kick = null;
    if (this.#queue !== null && forget) this.#region?.end();
    this.#gone();
  }

  /** Gives everything back and forgets what was said. */
  clear(): void {
    this.#call?.close();
    this.#err?.close();
    this.#call = this.#err = null;
    this.forgetSetup();
  }

  /** Forgets what was said about the ring itself. */
  forgetSetup(): void {
    this.#kick?.close();
    this.#kick = null;
    this.#enabled = false;
    this.#size = 0;
    this.#address = null;
    this.#base = 0;
    this.#hopeless = false;
  }

  /** Whether the used ring is logged within the log. */
  loggedWithin(log: DirtyLog): boolean {
    return this.#address === null || log.covers(logEnd(this.#address, this.#size, this.#packed));
  }

  /** Says anew who keeps a record of the running queue. */
  updateRecord(): void {
    const queue = this.#queue;
    if (queue === null) return;
    const { activeLog, logNotifier } = this.#context;
    this.#dirty = activeLog === null ? null : new DirtyRecord(activeLog, this.#logged(), logNotifier);
    this.#dirty?.markRing();
    const [inflight, dirty] = [this.#inflight, this.#dirty];
    queue.record = inflight === null ? dirty : dirty === null ? inflight : new BothRecords(inflight, dirty);
  }

  #kicked(): void {
    // Another ring may still have requests in flight in the memory that is to go.
    if (this.#resting) return;
    const refused = this.start();
    if (refused !== null) {
      this.err();
      this.#context.refused(refused);
    } else if (this.#queue !== null && this.#enabled) {
      this.#context.device.kick(this.#index);
      if (this.#inVain !== null) this.#doubt(this.#queue, this.#inVain);
    }
  }

  /**
   * A driver makes buffers available before it kicks. Where kicks come and nothing is ever there, the front-end has most
   * likely mapped the guest's memory for itself alone, and we see other pages: nothing tells that when a ring is set up.
   */
  #doubt(queue: Virtqueue, before: number): void {
    const isNew = queue.counters.popped === 0 && queue.violation === null;
    this.#inVain = isNew && before < KICKS_IN_VAIN ? before + 1 : null;
    if (isNew && this.#inVain === null) this.#context.kickedInVain(this.#index);
  }

  #open(address: VringAddress, features: bigint): Violation | null {
    const { device, table } = this.#context;
    if (device.queueSizes(features)[this.#index] === undefined) {
      return vhostUserViolation("queue-unknown", `ring ${this.#index} is started, which the features leave out`);
    }
    const located = this.#locate(address, this.#size);
    if ("rule" in located) return located;
    const region = this.#context.inflightRegion(this.#index, this.#size);
    if (region !== null && "rule" in region) return region;
    const config = queueConfig(table.memory, this.#size, located, features);
    const opened = openQueue(config, this.#packed, this.#base, region);
    if ("rule" in opened) return opened;
    // A ring that was used before may have been kicked for what the back-end before took from it.
    const isNew = this.#base === (this.#packed ? 0x8000_8000 : 0) && opened.queue.position === this.#base;
    this.#inVain = isNew ? 0 : null;
    this.#queue = opened.queue;
    this.#inflight = opened.record;
    this.#region = region;
    this.updateRecord();
    this.#setPaused(!this.#enabled);
    device.startQueue(this.#index, opened.queue);
    this.#context.started(this.#index, opened.queue, config);
    if (this.#enabled) device.kick(this.#index);
    return null;
  }

  #close(queue: Virtqueue): Completion {
    this.#base = queue.position;
    this.#dirty?.markRing();
    this.#region?.end();
    const stopped = this.#context.device.stopQueue(this.#index);
    this.#gone();
    return stopped;
  }

  #gone(): void {
    this.#queue = null;
    this.#region = null;
    this.#inflight = null;
    this.#dirty = null;
    this.#setPaused(false);
  }

  #setPaused(paused: boolean): void {
    if (paused === this.#paused) return;
    this.#paused = paused;
    // Nobody waits for what is in flight in a disabled ring: it is returned as ever.
    if (paused) void this.#context.device.pauseQueue(this.#index);
    else this.#context.device.resumeQueue(this.#index);
  }

  get #packed(): boolean {
    return hasFeature(this.#context.deviceFeatures ?? 0n, VIRTIO_F_RING_PACKED);
  }

  #logged(): LoggedRange[] {
    if (this.#address === null) return [];
    return loggedRanges(this.#context.table, this.#address, this.#size, this.#packed);
  }

  #locate(address: VringAddress, size: number): RingAddresses | Violation {
    return locateRing(this.#context.table, address, size, this.#packed);
  }
}
