/**
 * Makes the virtqueue of a ring: at the place that the front-end names, or, when a back-end that is gone left a record of
 * buffers in flight, at the place that follows from it, with those buffers first ("Inflight I/O tracking").
 *
 * @module
 */

import type { GuestMemory } from "../../memory/guest_memory.ts";
import { hasFeature, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC } from "../../virtio/features.ts";
import type { Violation } from "../../virtio/violation.ts";
import { PVIRTQ_DESC_FLAGS, PVIRTQ_DESC_SIZE } from "../../virtio/virtqueue/packed_layout.ts";
import { PackedVirtqueue } from "../../virtio/virtqueue/packed_virtqueue.ts";
import { USED_IDX } from "../../virtio/virtqueue/split_layout.ts";
import { SplitVirtqueue } from "../../virtio/virtqueue/split_virtqueue.ts";
import type { VirtqueueConfig } from "../../virtio/virtqueue/queue_parts.ts";
import type { Virtqueue, VirtqueueRecord } from "../../virtio/virtqueue/virtqueue.ts";
import type { QueueRegion } from "./inflight_layout.ts";
import { PackedInflight, recoverPacked } from "./inflight_packed.ts";
import { recoverSplit, SplitInflight } from "./inflight_split.ts";
import type { RingAddresses } from "./ring_place.ts";
import { vhostUserViolation } from "./rules.ts";

/** A queue, and what keeps the record of its buffers in flight. */
export interface OpenedQueue {
  readonly queue: Virtqueue;
  readonly record: VirtqueueRecord | null;
}

/** What was said and negotiated about a ring that lies at `located`. */
export function queueConfig(
  memory: GuestMemory,
  size: number,
  located: RingAddresses,
  features: bigint,
): VirtqueueConfig {
  return {
    memory,
    size,
    ...located,
    eventIdx: hasFeature(features, VIRTIO_F_EVENT_IDX),
    indirect: hasFeature(features, VIRTIO_F_INDIRECT_DESC),
    inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
  };
}

/**
 * Opens a queue whose parts lie in memory.
 *
 * @param base where it stands, as SET_VRING_BASE said
 * @param region where buffers in flight are kept, if anywhere
 */
export function openQueue(
  config: VirtqueueConfig,
  packed: boolean,
  base: number,
  region: QueueRegion | null,
): OpenedQueue | Violation {
  return packed ? openPacked(config, base, region) : openSplit(config, base, region);
}

function openSplit(config: VirtqueueConfig, base: number, region: QueueRegion | null): OpenedQueue | Violation {
  // "A vring descriptor index for split virtqueues": the used index is the one in memory.
  const usedIdx = readWord(config, config.deviceAddress + USED_IDX);
  const fresh = (startIdx: number) => SplitVirtqueue.create(config, startIdx, usedIdx);
  if (region === null || !region.inUse) {
    const queue = fresh(base & 0xffff);
    if ("rule" in queue) return queue;
    return { queue, record: region === null ? null : SplitInflight.begin(region, usedIdx) };
  }
  const recovery = recoverSplit(region, config.size, usedIdx);
  if ("rule" in recovery) return recovery;
  // Every buffer that was taken was either used or is in flight: so many are taken. What the front-end says cannot
  // tell, when its back-end went without a word.
  const queue = fresh((usedIdx + recovery.heads.length) & 0xffff);
  if ("rule" in queue) return queue;
  queue.resubmit(recovery.heads);
  return { queue, record: recovery.record };
}

function openPacked(config: VirtqueueConfig, base: number, region: QueueRegion | null): OpenedQueue | Violation {
  if (region === null || !region.inUse) {
    const slots = [base & 0x7fff, base >>> 16 & 0x7fff];
    if (slots.some((slot) => slot >= config.size)) {
      return vhostUserViolation("payload-value", `a ring of ${config.size} stands at slots ${slots.join(" and ")}`);
    }
    const queue = PackedVirtqueue.create(config, base);
    if ("rule" in queue) return queue;
    const used = { slot: slots[1], wrap: base >>> 31 === 1 };
    return { queue, record: region === null ? null : PackedInflight.begin(region, config.size, used) };
  }
  const flagsAt = (slot: number) => readWord(config, config.descAddress + slot * PVIRTQ_DESC_SIZE + PVIRTQ_DESC_FLAGS);
  const recovery = recoverPacked(region, config.size, flagsAt);
  if ("rule" in recovery) return recovery;
  const queue = PackedVirtqueue.create(config, recovery.position);
  if ("rule" in queue) return queue;
  queue.resubmit(recovery.buffers);
  return { queue, record: recovery.record };
}

/** A 16-bit field of the ring, which the caller found in memory. */
function readWord(config: VirtqueueConfig, address: number): number {
  const bytes = new Uint8Array(2);
  config.memory.read(address, bytes);
  return bytes[0] | bytes[1] << 8;
}
