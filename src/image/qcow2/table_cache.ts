/**
 * A bounded cache of L2 tables, or of slices of them where a table is large: to read 4 KiB of a disk with clusters of
 * 2 MiB should not take 2 MiB of metadata.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Completion, Storage } from "../../storage/storage.ts";

/** Which slices are in memory; the clock algorithm decides which goes. */
export class TableCache {
  readonly #storage: Storage;
  readonly #sliceBytes: number;
  #capacity: number;
  /** Position of a slice in the arrays below. */
  readonly #slotOf = new Map<number, number>();
  readonly #keys: number[] = [];
  readonly #views: DataView<ArrayBuffer>[] = [];
  /** Whether a slice was asked for since the hand passed it. */
  readonly #used: boolean[] = [];
  #hand = 0;
  readonly #loading = new Map<number, Promise<void>>();
  /** Memory of a slice that was evicted, for the next one. */
  #spare: DataView<ArrayBuffer> | null = null;

  /** Takes no memory yet. */
  constructor(storage: Storage, sliceBytes: number, capacity: number) {
    this.#storage = storage;
    this.#sliceBytes = sliceBytes;
    this.#capacity = Math.max(1, capacity);
  }

  /** Most slices that are held. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Slices that are held now. */
  get count(): number {
    return this.#keys.length;
  }

  /** Allows fewer slices than before; to be called before the first is loaded. */
  limit(capacity: number): void {
    this.#capacity = Math.max(1, Math.min(this.#capacity, capacity));
  }

  /** A slice that is in memory. Valid until the caller waits for something. Allocates nothing. */
  get(key: number): DataView<ArrayBuffer> | undefined {
    const slot = this.#slotOf.get(key);
    if (slot === undefined) return undefined;
    this.#used[slot] = true;
    return this.#views[slot];
  }

  /** Brings a slice into memory. Whoever asks for one that is on its way waits for the same read. */
  load(key: number, hostOffset: number): Completion {
    const waiting = this.#loading.get(key);
    if (waiting !== undefined) return waiting;
    const view = this.#spare ?? new DataView(new ArrayBuffer(this.#sliceBytes));
    this.#spare = null;
    const reading = this.#storage.read(hostOffset, SegmentList.over(new Uint8Array(view.buffer)));
    if (reading === undefined) return this.#insert(key, view);
    const loaded = reading.then(() => {
      this.#loading.delete(key);
      this.#insert(key, view);
    }, (error) => {
      this.#loading.delete(key);
      throw error;
    });
    this.#loading.set(key, loaded);
    return loaded;
  }

  #insert(key: number, view: DataView<ArrayBuffer>): void {
    const slot = this.#freeSlot();
    this.#slotOf.set(key, slot);
    this.#keys[slot] = key;
    this.#views[slot] = view;
    this.#used[slot] = true;
  }

  #freeSlot(): number {
    if (this.#keys.length < this.#capacity) return this.#keys.length;
    // Once round at most: every mark that it passes is taken away.
    while (this.#used[this.#hand]) {
      this.#used[this.#hand] = false;
      this.#hand = (this.#hand + 1) % this.#capacity;
    }
    const slot = this.#hand;
    this.#hand = (slot + 1) % this.#capacity;
    this.#slotOf.delete(this.#keys[slot]);
    this.#spare = this.#views[slot];
    return slot;
  }
}
