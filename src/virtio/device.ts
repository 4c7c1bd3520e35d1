/**
 * The seam between a transport and a device type: a transport sees a `Device` and never what kind it is.
 *
 * @module
 */

import type { Violation } from "./violation.ts";
import type { Virtqueue } from "./virtqueue/virtqueue.ts";

/** What a device tells its driver, through whatever the transport has for it. */
export interface DeviceEvents {
  /**
   * Whether the driver runs on a processor of its own while the device works. Each buffer is worth returning at once
   * then: the driver sees it, and makes the next one available, while the device is at the others. A driver that waits
   * for the device to be done is better served by one notification for all of them. Default: false.
   */
  readonly besideDriver?: boolean;
  /** Used buffers are visible in a queue, and the driver asked to be notified. */
  usedBuffer(queue: number): void;
  /** The configuration space changed. */
  configChanged(): void;
  /** The driver broke something that only a reset can mend. */
  needsReset(violation: Violation): void;
}

/** A virtio device, without its transport. */
export interface Device {
  /** Number of the device type (VIRTIO 1.4 §5). */
  readonly deviceId: number;
  /** The features on offer. The transport takes away those that it cannot carry. */
  readonly features: bigint;
  /** Names of the feature bits that belong to the device type. */
  readonly featureNames: Readonly<Record<number, string>>;
  /** Largest size of each queue, by queue index, once `features` are negotiated (or, before, all offered). */
  queueSizes(features: bigint): readonly number[];
  /** Size of the configuration space, in bytes. */
  readonly configSizeBytes: number;
  /** Changes whenever the device changes its configuration. */
  readonly configGeneration: number;
  /** Copies configuration bytes at `offset` out; zeros behind the end. */
  readConfig(offset: number, target: Uint8Array): void;
  /** The driver wrote configuration bytes at `offset`. */
  writeConfig(offset: number, source: Uint8Array): void;
  /** Whether the driver may write all of these configuration bytes, as far as the device type says. */
  configWritable(offset: number, lengthBytes: number): boolean;
  /** Says whom to tell. Called once. */
  connect(events: DeviceEvents): void;
  /** Negotiation ended with these features. */
  negotiated(features: bigint): void;
  /** A queue is ready; from the first `kick` on it may be used. */
  startQueue(index: number, queue: Virtqueue): void;
  /** Available buffer notification for a started queue. */
  kick(index: number): void;
  /**
   * Holds a queue: from here on no request is started. When it ends, every request that was started has been returned
   * to the driver. Pauses are counted; a queue may be paused before it is started and is not resumed by being stopped.
   */
  pauseQueue(index: number): void | Promise<void>;
  /** Takes one pause back. With the last one, what became available meanwhile is carried out. */
  resumeQueue(index: number): void;
  /**
   * Stops one queue. When it ends, no request of the queue is in flight, and none of its memory is touched any more.
   */
  stopQueue(index: number): void | Promise<void>;
  /** Back to the state before the driver came. When it ends, nothing of any queue is in flight. */
  reset(): void | Promise<void>;
}
