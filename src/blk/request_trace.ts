/**
 * What a request queue tells a trace: a request on its way, stage by stage, each as a plain value.
 *
 * @module
 */

import { BlockError, type Extent, type Image } from "../image/image.ts";
import type { TraceSink } from "../trace/events.ts";
import { statusName } from "./blk_layout.ts";
import type { BlkRequest } from "./request.ts";

/** Tells that a chain was taken from the ring, what it asks for, and where on the disk that is. */
export function traceStart(trace: TraceSink, queue: number, request: BlkRequest, image: Image): void {
  const { chain } = request;
  const { head, descriptors } = chain;
  trace({
    event: "chain",
    queue,
    head,
    readableBytes: chain.readable.byteLength,
    writableBytes: chain.writable.byteLength,
    descriptors,
  });
  if (request.violation !== null) return;
  const isRead = request.kind === "read";
  const lengthBytes = isRead ? request.output.byteLength : request.input.byteLength;
  const { kind, type, offset } = request;
  trace({ event: "request", queue, head, kind, type, offset: offset < 0 ? Infinity : offset, lengthBytes });
  const inside = offset >= 0 && offset + lengthBytes <= image.sizeBytes;
  if ((isRead || kind === "write") && inside) {
    traceExtents(trace, queue, request, image, lengthBytes);
  }
}

function traceExtents(
  trace: TraceSink,
  queue: number,
  request: BlkRequest,
  image: Image,
  lengthBytes: number,
): void {
  const { offset } = request;
  const { head } = request.chain;
  const show = (extents: readonly Extent[]) => trace({ event: "extents", queue, head, extents });
  // Where the map is broken the request fails too, and says why.
  const broken = (error: unknown) => {
    if (!(error instanceof BlockError)) throw error;
  };
  try {
    const extents = image.map(offset, lengthBytes);
    if (extents instanceof Promise) extents.then(show, broken);
    else show(extents);
  } catch (error) {
    broken(error);
  }
}

/** Tells how a request has ended: what the driver did wrong in it, if anything, and what it gets back. */
export function traceEnd(trace: TraceSink, queue: number, request: BlkRequest, bytesWritten: number): void {
  const { head, descriptors } = request.chain;
  if (request.violation !== null) {
    trace({
      event: "violation",
      queue,
      head,
      consequence: "request failed",
      violation: request.violation,
      descriptors,
    });
  }
  const microseconds = Math.round((performance.now() - request.startedAt) * 1000);
  trace({ event: "status", queue, head, status: request.status, name: statusName(request.status), microseconds });
  trace({ event: "used", queue, head, bytesWritten });
}
