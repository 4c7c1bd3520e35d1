/**
 * What a ring and its session know of each other.
 *
 * @module
 */

import type { Device } from "../../virtio/device.ts";
import type { Violation } from "../../virtio/violation.ts";
import type { VirtqueueConfig } from "../../virtio/virtqueue/queue_parts.ts";
import type { Virtqueue } from "../../virtio/virtqueue/virtqueue.ts";
import type { DirtyLog } from "./dirty_log.ts";
import type { QueueRegion } from "./inflight_layout.ts";
import type { MemoryTable } from "./memory_table.ts";
import type { Notifier, VhostUserHost } from "./seams.ts";

/** What a ring needs to know of its session. */
export interface VringContext {
  readonly device: Device;
  readonly host: VhostUserHost;
  readonly table: MemoryTable;
  /** The device's features as they were negotiated; `null` before. */
  readonly deviceFeatures: bigint | null;
  /** Where pages are logged, while the front-end wants it. */
  readonly activeLog: DirtyLog | null;
  readonly logNotifier: Notifier | null;
  /** Where the buffers in flight of a ring are kept; `null` without such an area, or why the ring has no place in it. */
  inflightRegion(index: number, size: number): QueueRegion | null | Violation;
  /** A ring could not be started, outside of any message. */
  refused(violation: Violation): void;
  /** A new ring is kicked, and there is nothing in it. */
  kickedInVain(index: number): void;
  /** A ring was started. */
  started(index: number, queue: Virtqueue, config: VirtqueueConfig): void;
}
