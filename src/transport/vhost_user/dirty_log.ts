/**
 * The log of dirty pages that a live migration reads ("Migration"): one bit for each page of 4 KiB of guest memory,
 * shared with the front-end, which clears bits while they are set here.
 *
 * A page is marked after it was written: a front-end that copies it in between copies it once more. At the end of a
 * migration all rings are stopped first, so nothing is written behind the last look.
 *
 * @module
 */

import type { SegmentList } from "../../memory/segment_list.ts";
import type { DescriptorChain } from "../../virtio/virtqueue/chain.ts";
import type { VirtqueueRecord } from "../../virtio/virtqueue/virtqueue.ts";
import type { MappedBytes, Notifier } from "./seams.ts";
import { VHOST_LOG_PAGE } from "./vhost_user_layout.ts";

/** The log area. */
export class DirtyLog {
  readonly #mapping: MappedBytes;
  readonly #bits: Uint8Array;

  constructor(mapping: MappedBytes) {
    this.#mapping = mapping;
    this.#bits = mapping.bytes;
  }

  /** Whether the log has a bit for the last byte before a guest address. */
  covers(guestEnd: number): boolean {
    return guestEnd <= this.#bits.byteLength * 8 * VHOST_LOG_PAGE;
  }

  /** Marks the pages of a range; what the log has no bit for is left out. */
  mark(guestAddress: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const last = Math.floor((guestAddress + lengthBytes - 1) / VHOST_LOG_PAGE);
    for (let page = Math.floor(guestAddress / VHOST_LOG_PAGE); page <= last; page++) {
      const byte = Math.floor(page / 8);
      if (byte >= this.#bits.byteLength) return;
      const bit = 1 << (page % 8);
      // Most pages of a busy guest are marked already; looking costs less than a locked write.
      if ((Atomics.load(this.#bits, byte) & bit) === 0) Atomics.or(this.#bits, byte, bit);
    }
  }

  /** Marks what a list of segments covers. */
  markSegments(list: SegmentList): void {
    for (let i = 0; i < list.count; i++) {
      this.mark(list.regionOf(i).guestAddress + list.offsetOf(i), list.lengthOf(i));
    }
  }

  /** Gives the area back. */
  close(): void {
    this.#mapping.unmap();
  }
}

/** Guest addresses and lengths. */
export type LoggedRange = readonly [guestAddress: number, lengthBytes: number];

/** Marks what one queue writes: always its buffers, and its used ring when the front-end asked for that. */
export class DirtyRecord implements VirtqueueRecord {
  readonly #log: DirtyLog;
  readonly #ring: readonly LoggedRange[];
  readonly #notifier: Notifier | null;

  /**
   * @param ring where writes to the used ring are logged; nowhere when it is empty
   * @param notifier told after each batch, if the front-end wants to know
   */
  constructor(log: DirtyLog, ring: readonly LoggedRange[], notifier: Notifier | null) {
    this.#log = log;
    this.#ring = ring;
    this.#notifier = notifier;
  }

  taken(): void {}

  returned(chain: DescriptorChain): void {
    this.#log.markSegments(chain.writable);
  }

  staged(): void {}

  publishing(): void {}

  published(): void {
    this.markRing();
    this.#notifier?.signal();
  }

  /** Marks the used ring, notification wishes included: they are written without any buffer. */
  markRing(): void {
    for (const [address, lengthBytes] of this.#ring) this.#log.mark(address, lengthBytes);
  }
}

/** Two records of one queue. */
export class BothRecords implements VirtqueueRecord {
  readonly #first: VirtqueueRecord;
  readonly #second: VirtqueueRecord;

  constructor(first: VirtqueueRecord, second: VirtqueueRecord) {
    this.#first = first;
    this.#second = second;
  }

  taken(chain: DescriptorChain): void {
    this.#first.taken(chain);
    this.#second.taken(chain);
  }

  returned(chain: DescriptorChain): void {
    this.#first.returned(chain);
    this.#second.returned(chain);
  }

  staged(head: number, descriptorCount: number): void {
    this.#first.staged(head, descriptorCount);
    this.#second.staged(head, descriptorCount);
  }

  publishing(): void {
    this.#first.publishing();
    this.#second.publishing();
  }

  published(): void {
    this.#first.published();
    this.#second.published();
  }
}
