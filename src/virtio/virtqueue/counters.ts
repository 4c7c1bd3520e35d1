/**
 * What a virtqueue did, in numbers that only grow.
 *
 * @module
 */

/** Counts what a queue did; each notification is what would be an exit of the virtual machine. */
export interface VirtqueueCounters {
  /** Buffers taken from the ring. */
  popped: number;
  /** Those of them that a device which is gone had taken before, and not returned. */
  replayed: number;
  /** Times that the device looked at the ring and took something. */
  bursts: number;
  /** Buffers returned. */
  pushed: number;
  /** Buffers that the driver can see. */
  published: number;
  /** Calls to `publish` that returned at least one buffer. */
  batches: number;
  /** Used buffer notifications that the driver asked for. */
  calls: number;
  /** Batches for which the driver wanted no notification. */
  callsSuppressed: number;
}

/** Counters at zero. */
export function newCounters(): VirtqueueCounters {
  return { popped: 0, replayed: 0, bursts: 0, pushed: 0, published: 0, batches: 0, calls: 0, callsSuppressed: 0 };
}

/** Adds `more` to `sum`. */
export function addCounters(sum: VirtqueueCounters, more: VirtqueueCounters): VirtqueueCounters {
  for (const key of Object.keys(sum) as (keyof VirtqueueCounters)[]) sum[key] += more[key];
  return sum;
}
