/**
 * The record of buffers in flight in a split queue: QueueRegionSplit ("Inflight I/O tracking").
 *
 * Every step may be the last one. What is written is in the order of the text, so that a back-end that is started again
 * finds each buffer either in flight or in the used ring.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import type { DescriptorChain } from "../../virtio/virtqueue/chain.ts";
import type { VirtqueueRecord } from "../../virtio/virtqueue/virtqueue.ts";
import { INFLIGHT_VERSION, type QueueRegion, REGION_DESC_NUM, SPLIT_REGION, SPLIT_STATE } from "./inflight_layout.ts";
import { vhostUserViolation } from "./rules.ts";

/** Where entry `head` starts. */
function stateAt(head: number): number {
  return SPLIT_REGION.desc + head * SPLIT_STATE.bytes;
}

/** Keeps the record while the queue runs. */
export class SplitInflight implements VirtqueueRecord {
  readonly #region: QueueRegion;
  #counter: number;
  /** Heads that were staged and that the driver does not see yet. */
  readonly #batch: Uint16Array;
  #batchCount = 0;

  /** @param counter above the counter of every buffer in flight */
  constructor(region: QueueRegion, counter: number) {
    this.#region = region;
    this.#counter = counter;
    this.#batch = new Uint16Array(region.queueSize);
  }

  /** Starts a record of a queue that nothing is in flight in. */
  static begin(region: QueueRegion, usedIdx: number): SplitInflight {
    region.clear();
    region.setWord(SPLIT_REGION.usedIdx, usedIdx);
    region.begin();
    return new SplitInflight(region, 0);
  }

  taken(chain: DescriptorChain): void {
    const at = stateAt(chain.head);
    this.#region.setCounter(at + SPLIT_STATE.counter, this.#counter++);
    this.#region.setByte(at + SPLIT_STATE.inflight, 1);
  }

  returned(): void {}

  staged(head: number): void {
    const region = this.#region;
    region.setWord(stateAt(head) + SPLIT_STATE.next, region.word(SPLIT_REGION.lastBatchHead));
    region.setWord(SPLIT_REGION.lastBatchHead, head);
    this.#batch[this.#batchCount++] = head;
  }

  publishing(): void {}

  published(): void {
    const region = this.#region;
    const count = this.#batchCount;
    for (let i = 0; i < count; i++) region.setByte(stateAt(this.#batch[i]) + SPLIT_STATE.inflight, 0);
    this.#batchCount = 0;
    region.setWord(SPLIT_REGION.usedIdx, (region.word(SPLIT_REGION.usedIdx) + count) & 0xffff);
  }
}

/** What is left of a back-end that is gone. */
export interface SplitRecovery {
  /** Heads in flight, in the order in which they were taken. */
  readonly heads: readonly number[];
  /** Goes on with the record. */
  readonly record: SplitInflight;
}

/**
 * Reads the record after a restart ("When reconnecting").
 *
 * @param usedIdx the index that the used ring stands at
 */
export function recoverSplit(region: QueueRegion, size: number, usedIdx: number): SplitRecovery | Violation {
  if (region.version !== INFLIGHT_VERSION || region.word(REGION_DESC_NUM) !== region.queueSize) {
    const found = `version ${region.version}, ${region.word(REGION_DESC_NUM)} entries`;
    return vhostUserViolation("inflight-content", `the record of a split queue has ${found}`);
  }
  // The driver saw a batch that is not taken off the record yet. (After a reset of the ring the difference means
  // nothing, but then nothing is in flight either. A list that leads in circles ends with the size of the batch.)
  const batch = Math.min((usedIdx - region.word(SPLIT_REGION.usedIdx)) & 0xffff, region.queueSize);
  for (let left = batch, head = region.word(SPLIT_REGION.lastBatchHead); left > 0; left--) {
    if (head >= region.queueSize) break;
    region.setByte(stateAt(head) + SPLIT_STATE.inflight, 0);
    head = region.word(stateAt(head) + SPLIT_STATE.next);
  }
  region.setWord(SPLIT_REGION.usedIdx, usedIdx);
  const found: { head: number; counter: bigint }[] = [];
  for (let head = 0; head < region.queueSize; head++) {
    if (region.byte(stateAt(head) + SPLIT_STATE.inflight) !== 1) continue;
    if (head >= size) {
      return vhostUserViolation("inflight-content", `descriptor ${head} is in flight in a queue of ${size}`);
    }
    found.push({ head, counter: region.counter(stateAt(head) + SPLIT_STATE.counter) });
  }
  found.sort((a, b) => a.counter < b.counter ? -1 : a.counter > b.counter ? 1 : a.head - b.head);
  // Counters start again from the lowest number: those of buffers in flight are rewritten in their order.
  found.forEach(({ head }, i) => region.setCounter(stateAt(head) + SPLIT_STATE.counter, i));
  return { heads: found.map(({ head }) => head), record: new SplitInflight(region, found.length) };
}
