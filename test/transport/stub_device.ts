/** A device without a purpose: notes what the transport tells it, and says what it is told to say. */

import type { Device, DeviceEvents } from "../../src/virtio/device.ts";
import { featureSet, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1 } from "../../src/virtio/features.ts";
import type { Virtqueue } from "../../src/virtio/virtqueue/virtqueue.ts";

/** A device type of its own, with two feature bits and eight bytes of configuration. */
export class StubDevice implements Device {
  readonly deviceId = 42;
  features: bigint = featureSet(0, 1, VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET);
  readonly featureNames = { 0: "ZERO", 1: "ONE" };
  readonly configSizeBytes = 8;
  configGeneration = 7;
  readonly config: Uint8Array = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  readonly calls: string[] = [];
  readonly queues: (Virtqueue | undefined)[] = [];
  sizes: readonly number[] = [16, 8];
  /** What `reset` and `stopQueue` return: when the device is at rest. */
  atRest: Promise<void> | undefined = undefined;
  events!: DeviceEvents;

  queueSizes(features: bigint): readonly number[] {
    // Bit 1 stands for "more than one queue".
    return features >> 1n & 1n ? this.sizes : this.sizes.slice(0, 1);
  }

  readConfig(offset: number, target: Uint8Array): void {
    for (let i = 0; i < target.length; i++) target[i] = this.config[offset + i] ?? 0;
  }

  writeConfig(offset: number, source: Uint8Array): void {
    this.calls.push(`config ${offset} ${[...source]}`);
  }

  configWritable(offset: number, lengthBytes: number): boolean {
    return offset >= 4 && offset + lengthBytes <= 8;
  }

  connect(events: DeviceEvents): void {
    this.events = events;
  }

  negotiated(features: bigint): void {
    this.calls.push(`negotiated ${features.toString(16)}`);
  }

  startQueue(index: number, queue: Virtqueue): void {
    this.queues[index] = queue;
    this.calls.push(`start ${index} size ${queue.size}`);
  }

  kick(index: number): void {
    this.calls.push(`kick ${index}`);
  }

  pauseQueue(index: number): void | Promise<void> {
    this.calls.push(`pause ${index}`);
    return this.atRest;
  }

  resumeQueue(index: number): void {
    this.calls.push(`resume ${index}`);
  }

  stopQueue(index: number): void | Promise<void> {
    this.queues[index] = undefined;
    this.calls.push(`stop ${index}`);
    return this.atRest;
  }

  reset(): void | Promise<void> {
    this.queues.length = 0;
    this.calls.push("reset");
    return this.atRest;
  }

  /** The calls since the last time that somebody asked. */
  take(): string[] {
    return this.calls.splice(0);
  }
}
