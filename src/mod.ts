/**
 * vblk: a virtio block device that a person can drive, understand and trust.
 *
 * @example Write to a disk through a virtqueue, and read it back
 * ```ts
 * import { attach } from "@vblk/vblk";
 * import { assertEquals } from "@std/assert";
 *
 * const machine = await attach("mem:1M");
 * await machine.guest.write(4096, new TextEncoder().encode("hello"));
 * await machine.guest.flush();
 * assertEquals(new TextDecoder().decode(await machine.guest.read(4096, 5)), "hello");
 * await machine.close();
 * ```
 *
 * @module
 */

export * from "./attach.ts";
export * from "./machine.ts";
export * from "./statistics.ts";
export * from "./blk/device.ts";
export { BLK_DEFAULTS, type BlkOptions, type Lifetime } from "./blk/options.ts";
export type { BlkObservers, ObservedRequest, RequestObserver } from "./blk/observers.ts";
export type { BlkRequestKind } from "./blk/request.ts";
export * from "./blk/blk_layout.ts";
export * from "./guest/allocator.ts";
export { BlockDriver, type BlockDriverOptions } from "./guest/block_driver.ts";
export * from "./guest/driver_queue.ts";
export * from "./guest/guest.ts";
export * from "./guest/guest_error.ts";
export * from "./guest/mmio_probe.ts";
export * from "./guest/packed_driver_queue.ts";
export { LOST, NO_STATUS, RequestSlot } from "./guest/request_slot.ts";
export * from "./guest/split_driver_queue.ts";
export * from "./image/image.ts";
export { openImage, openImageOptions, type OpenOptions } from "./image/open.ts";
export { type CheckOptions, checkQcow2, type CheckReport } from "./image/qcow2/check.ts";
export { CreateOptionsError, createQcow2, type Preallocation, type Qcow2CreateOptions } from "./image/qcow2/create.ts";
export type { BitmapDirectory, HeaderExtension } from "./image/qcow2/extensions.ts";
export { type Qcow2Header, readHeader } from "./image/qcow2/header.ts";
export * from "./image/qcow2/qcow2_image.ts";
export { type RepairKind, repairQcow2 } from "./image/qcow2/repair.ts";
export type { JournalStore } from "./image/qcow2/journal.ts";
export type { Snapshot } from "./image/qcow2/snapshot_table.ts";
export * from "./image/raw/raw_image.ts";
export * from "./memory/guest_memory.ts";
export * from "./memory/region.ts";
export * from "./memory/segment_list.ts";
export * from "./storage/block_error.ts";
export * from "./storage/deno_file.ts";
export * from "./storage/fault.ts";
export * from "./storage/memory.ts";
export * from "./storage/overlay.ts";
export type { Storage } from "./storage/storage.ts";
export * from "./trace/events.ts";
export { explainSink } from "./trace/explain.ts";
export * from "./trace/histogram.ts";
export { jsonSink } from "./trace/json_sink.ts";
export { textSink } from "./trace/text_sink.ts";
export * from "./transport/mmio/mmio_layout.ts";
export * from "./transport/mmio/mmio_transport.ts";
export * from "./virtio/device.ts";
export * from "./virtio/features.ts";
export { statusNames } from "./virtio/status_layout.ts";
export * from "./virtio/violation.ts";
export * from "./virtio/virtqueue/chain.ts";
export { PackedVirtqueue } from "./virtio/virtqueue/packed_virtqueue.ts";
export { SplitVirtqueue } from "./virtio/virtqueue/split_virtqueue.ts";
export { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "./virtio/virtqueue/split_layout.ts";
export type { VirtqueueCounters } from "./virtio/virtqueue/counters.ts";
export type { VirtqueueConfig } from "./virtio/virtqueue/queue_parts.ts";
export { Virtqueue, type VirtqueueRecord } from "./virtio/virtqueue/virtqueue.ts";
