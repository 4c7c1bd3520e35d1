/**
 * Who looks on while the device works: counters, traces, and whoever tells a user what the guest can't be told.
 *
 * @module
 */

import type { BlockError } from "../image/image.ts";
import type { SegmentList } from "../memory/segment_list.ts";
import type { TraceSink, TraceViolation } from "../trace/events.ts";
import type { BlkRequestKind } from "./request.ts";

/** A request, as far as one who counts needs it. The object is reused. */
export interface ObservedRequest {
  /** What it asks for. */
  readonly kind: BlkRequestKind;
  /** VIRTIO_BLK_S_*, when it has ended. */
  readonly status: number;
  /** The rule that the driver broke in it, if any. */
  readonly violation: TraceViolation | null;
  /** Device-readable data: what a write writes. */
  readonly input: SegmentList;
  /** Device-writable data: what a read reads. */
  readonly output: SegmentList;
  /** For the observer to keep the time in, in milliseconds. A trace does the same. */
  startedAt: number;
}

/** Who counts requests. */
export interface RequestObserver {
  /** A chain was taken from the ring; nothing of it was read yet. */
  started(request: ObservedRequest): void;
  /** A request has ended, and `status` and `violation` say how: called once for each that was started. */
  ended(request: ObservedRequest): void;
}

/** Who wants to know what the device does. */
export interface BlkObservers {
  /** Counts requests; must be there from the start. */
  readonly requests?: RequestObserver;
  /** Takes every stage of every request. */
  trace?: TraceSink;
  /** Takes failures of the host, which the guest sees only as S_IOERR. */
  hostError?: (error: BlockError) => void;
  /**
   * Takes bugs of ours that end a request which was waiting for something. Without it they are unhandled rejections,
   * which end a program, but not a thread that never returns to its event loop.
   */
  crashed?: (error: unknown) => void;
}
