/**
 * The virtio block device: configuration, cache mode and queues (VIRTIO 1.4 §5.2).
 *
 * @module
 */

import { after, type Completion, type Image } from "../image/image.ts";
import type { Device, DeviceEvents } from "../virtio/device.ts";
import { hasFeature } from "../virtio/features.ts";
import { addCounters, newCounters, type VirtqueueCounters } from "../virtio/virtqueue/counters.ts";
import type { Virtqueue } from "../virtio/virtqueue/virtqueue.ts";
import {
  BLK_FEATURE_NAMES,
  CONFIG_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_ID_BLOCK,
} from "./blk_layout.ts";
import { BlkConfigSpace } from "./config_space.ts";
import type { BlkContext } from "./execute.ts";
import type { BlkObservers } from "./observers.ts";
import { type BlkOptions, blkOptions, offeredFeatures } from "./options.ts";
import { BlkQueue } from "./queue.ts";

/** A virtio block device on an image. */
export class BlkDevice implements Device {
  readonly deviceId: number = VIRTIO_ID_BLOCK;
  readonly featureNames: Readonly<Record<number, string>> = BLK_FEATURE_NAMES;
  readonly features: bigint;
  readonly configSizeBytes: number = CONFIG_SIZE;
  /** Its choices, with every default filled in. */
  readonly options: BlkOptions;

  /**
   * Whether a driver that runs beside the device (`DeviceEvents`) is shown each request as it ends, or all at the end of a
   * turn. May be changed at any time. Default: true.
   */
  returnsEarly = true;

  readonly #context: BlkContext;
  readonly #config: BlkConfigSpace;
  readonly #queues: BlkQueue[];
  #events: DeviceEvents | null = null;

  /**
   * Makes a device in front of an image.
   *
   * @param image where the data is; the device never closes it
   * @throws RangeError for an option that makes no sense
   */
  constructor(image: Image, options: Partial<BlkOptions> = {}, observers: BlkObservers = {}) {
    const readOnly = image.readOnly || (options.readOnly ?? false);
    this.options = blkOptions({ ...options, readOnly });
    this.features = offeredFeatures(this.options);
    this.#config = new BlkConfigSpace(this.options, this.features, image);
    this.#context = { image, options: this.options, features: 0n, writethrough: true };
    this.#queues = Array.from(
      { length: this.options.queues },
      (_, index) =>
        new BlkQueue(index, this.#context, observers, {
          usedBuffer: () => this.#events?.usedBuffer(index),
          needsReset: (violation) => this.#events?.needsReset(violation),
          besideDriver: () => this.#events?.besideDriver ?? false,
          returnsEarly: () => this.returnsEarly,
        }),
    );
  }

  queueSizes(features: bigint): readonly number[] {
    // §5.2.2: there is one queue unless MQ was negotiated.
    const count = hasFeature(features, VIRTIO_BLK_F_MQ) ? this.options.queues : 1;
    return Array.from({ length: count }, () => this.options.queueSize);
  }

  get configGeneration(): number {
    return this.#config.generation;
  }

  /** Requests in flight in all queues. */
  get inFlightCount(): number {
    return this.#queues.reduce((sum, queue) => sum + queue.inFlightCount, 0);
  }

  /**
   * Looks at all queues, without being notified: from here on drivers are not asked to notify, until `endPolling`.
   *
   * @returns whether there was anything to do
   */
  poll(): boolean {
    let found = false;
    for (const queue of this.#queues) found = queue.poll() || found;
    return found;
  }

  /**
   * Looks once more, and leaves it to the drivers to notify.
   *
   * @returns whether all that there was is under way: `false` when somebody has to look again
   */
  endPolling(): boolean {
    let all = true;
    for (const queue of this.#queues) all = queue.endPolling() && all;
    return all;
  }

  /** Whether a write is on stable storage before it completes. */
  get writethrough(): boolean {
    return this.#context.writethrough;
  }

  /** Requests taken from all rings since the device was made. */
  get takenCount(): number {
    return this.counters.popped;
  }

  /** What all queues did since the device was made, resets included. */
  get counters(): VirtqueueCounters {
    return this.#queues.reduce((sum, queue) => addCounters(sum, queue.counters), newCounters());
  }

  readConfig(offset: number, target: Uint8Array): void {
    this.#config.read(offset, target);
  }

  writeConfig(offset: number, source: Uint8Array): void {
    // Only with CONFIG_WCE negotiated is there anything that a driver may write (§5.2.6.1).
    if (!hasFeature(this.#context.features, VIRTIO_BLK_F_CONFIG_WCE)) return;
    if (this.#config.write(offset, source)) this.#context.writethrough = !this.#config.writeback;
  }

  configWritable(offset: number, lengthBytes: number): boolean {
    return this.#config.writable(offset, lengthBytes);
  }

  connect(events: DeviceEvents): void {
    this.#events = events;
  }

  negotiated(features: bigint): void {
    this.#context.features = features;
    const flush = hasFeature(features, VIRTIO_BLK_F_FLUSH);
    // A driver that cannot flush must not be left with a cache: §5.2.6.2 case 1, and with CONFIG_WCE §5.2.5.2.
    const writeback = this.options.writeback && (flush || !this.options.flush);
    this.#config.setWriteback(writeback);
    this.#context.writethrough = !writeback;
  }

  startQueue(index: number, queue: Virtqueue): void {
    this.#queues[index].start(queue);
  }

  kick(index: number): void {
    this.#queues[index].run();
  }

  pauseQueue(index: number): Completion {
    return this.#queues[index].pause();
  }

  resumeQueue(index: number): void {
    this.#queues[index].resume();
  }

  stopQueue(index: number): Completion {
    return this.#queues[index].stop();
  }

  reset(): Completion {
    let done: Completion = undefined;
    for (const queue of this.#queues) {
      const stopped = queue.stop();
      done = after(done, () => stopped);
    }
    return after(done, () => {
      this.#context.features = 0n;
      this.#context.writethrough = true;
      this.#config.setWriteback(this.options.writeback);
    });
  }

  /**
   * Changes the size of the image and tells the driver. What is in flight ends first, and what comes meanwhile waits
   * in the ring: a request was checked against the size that it meets.
   *
   * @throws BlockError when the image cannot have that size
   */
  async resize(sizeBytes: number): Promise<void> {
    const drained = this.#queues.map((queue) => queue.pause());
    try {
      await Promise.all(drained);
      await this.#context.image.resize(sizeBytes);
      this.capacityChanged();
    } finally {
      for (const queue of this.#queues) queue.resume();
    }
  }

  /** Says that the image has a new size: the capacity changes and the driver is told (§5.2.6.2). */
  capacityChanged(): void {
    this.#config.setCapacity(this.#context.image.sizeBytes);
    this.#events?.configChanged();
  }
}
