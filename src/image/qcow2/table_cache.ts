/**
 * A bounded cache of tables, or of slices of them where a table is large: to read 4 KiB of a disk with clusters of
 * 2 MiB should not take 2 MiB of metadata. L2 tables and refcount blocks are kept in caches of this kind.
 *
 * Changes are made in memory, and stay there until whoever owns the cache writes them: in what order is not decided
 * here (see write_back.ts). A slice that has been changed is never evicted.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { after, type Completion, type Storage } from "../../storage/storage.ts";

/** Which slices are in memory; the clock algorithm decides which goes. */
export class TableCache {
  readonly #storage: Storage;
  readonly #sliceBytes: number;
  /** What reading and writing a slice is called by those who watch for it (blkdebug). */
  readonly #events: { readonly load: string; readonly update: string };
  #capacity: number;
  /** Position of a slice in the arrays below. */
  readonly #slotOf = new Map<number, number>();
  readonly #keys: number[] = [];
  readonly #views: DataView<ArrayBuffer>[] = [];
  /** Where each slice belongs in the file. */
  readonly #offsets: number[] = [];
  /** Whether a slice was asked for since the hand passed it. */
  readonly #used: boolean[] = [];
  /** Slices that differ from the file. */
  readonly #dirty = new Set<number>();
  readonly #free: number[] = [];
  #hand = 0;
  readonly #loading = new Map<number, Promise<void>>();
  /** Memory of a slice that was evicted, for the next one. */
  #spare: DataView<ArrayBuffer> | null = null;
  /** Counts the times that slices were dropped: what was being read then is not to be kept. */
  #generation = 0;
  #hits = 0;
  #misses = 0;

  /** Takes no memory yet. */
  constructor(
    storage: Storage,
    sliceBytes: number,
    capacity: number,
    events: { readonly load: string; readonly update: string },
  ) {
    this.#storage = storage;
    this.#events = events;
    this.#sliceBytes = sliceBytes;
    this.#capacity = Math.max(1, capacity);
  }

  /** Most slices that are held, but for changed ones that could not be written yet. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Slices that are held now. */
  get count(): number {
    return this.#slotOf.size;
  }

  /** How often a slice was in memory when it was asked for, and how often it had to be read. */
  get lookups(): { hits: number; misses: number } {
    // What was read was asked for a second time.
    return { hits: Math.max(0, this.#hits - this.#misses), misses: this.#misses };
  }

  /** Slices that have to be written. */
  get dirtyCount(): number {
    return this.#dirty.size;
  }

  /** Whether it is time to write changed slices, so that others have room. */
  get isStrained(): boolean {
    return this.#dirty.size > 0 && this.#dirty.size * 2 >= this.#capacity;
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
    this.#hits++;
    return this.#views[slot];
  }

  /** Brings a slice into memory. Whoever asks for one that is on its way waits for the same read. */
  load(key: number, hostOffset: number): Completion {
    const waiting = this.#loading.get(key);
    if (waiting !== undefined) return waiting;
    this.#misses++;
    const view = this.#spare ?? new DataView(new ArrayBuffer(this.#sliceBytes));
    this.#spare = null;
    const list = SegmentList.over(new Uint8Array(view.buffer));
    const reading = after(this.#storage.event?.(this.#events.load), () => this.#storage.read(hostOffset, list));
    if (reading === undefined) return this.#insert(key, view, hostOffset);
    const generation = this.#generation;
    const loaded = reading.then(() => {
      this.#loading.delete(key);
      if (generation === this.#generation && !this.#slotOf.has(key)) this.#insert(key, view, hostOffset);
    }, (error) => {
      this.#loading.delete(key);
      throw error;
    });
    this.#loading.set(key, loaded);
    return loaded;
  }

  /** A slice for changing it, which is in memory until it has been written. */
  async dirty(key: number, hostOffset: number): Promise<DataView<ArrayBuffer>> {
    for (;;) {
      const view = this.get(key);
      if (view !== undefined) {
        this.#dirty.add(key);
        return view;
      }
      await this.load(key, hostOffset);
    }
  }

  /** A slice of zeros that is in no file yet. */
  create(key: number, hostOffset: number): DataView<ArrayBuffer> {
    this.#remove(key);
    const view = new DataView(new ArrayBuffer(this.#sliceBytes));
    this.#insert(key, view, hostOffset);
    this.#dirty.add(key);
    return view;
  }

  /** A slice belongs somewhere else from now on, where the same bytes have been written. */
  move(key: number, hostOffset: number): void {
    const slot = this.#slotOf.get(key);
    if (slot !== undefined) this.#offsets[slot] = hostOffset;
  }

  /** Changed slices, in the order of the file. */
  dirtyKeys(): number[] {
    const place = (key: number) => this.#offsets[this.#slotOf.get(key)!];
    return [...this.#dirty].sort((a, b) => place(a) - place(b));
  }

  /**
   * Writes some changed slices. They count as changed until `settle`: what no barrier has followed may be lost.
   *
   * @param check looks at each place before it is written; throws to refuse
   */
  async write(keys: readonly number[], check: (hostOffset: number, lengthBytes: number) => void): Promise<void> {
    for (let i = 0; i < keys.length;) {
      // Neighbours in the file go together.
      const start = this.#offsets[this.#slotOf.get(keys[i])!];
      const list = new SegmentList();
      for (; i < keys.length && list.byteLength < WRITE_BYTES; i++) {
        const slot = this.#slotOf.get(keys[i])!;
        if (this.#offsets[slot] !== start + list.byteLength) break;
        const part = SegmentList.over(new Uint8Array(this.#views[slot].buffer));
        list.appendRange(part, 0, part.byteLength);
      }
      check(start, list.byteLength);
      await this.#storage.event?.(this.#events.update);
      await this.#storage.write(start, list);
    }
  }

  /** Says that slices are on stable storage as they are in memory. */
  settle(keys: readonly number[]): void {
    for (const key of keys) this.#dirty.delete(key);
  }

  /** Forgets some slices, changed ones too. */
  drop(firstKey: number, count: number): void {
    this.#generation++;
    for (let key = firstKey; key < firstKey + count; key++) this.#remove(key);
  }

  /** Forgets all slices, changed ones too. */
  clear(): void {
    this.#generation++;
    for (const key of [...this.#slotOf.keys()]) this.#remove(key);
  }

  #remove(key: number): void {
    const slot = this.#slotOf.get(key);
    if (slot === undefined) return;
    this.#slotOf.delete(key);
    this.#dirty.delete(key);
    this.#used[slot] = false;
    this.#keys[slot] = -1;
    this.#free.push(slot);
  }

  #insert(key: number, view: DataView<ArrayBuffer>, hostOffset: number): void {
    const slot = this.#freeSlot();
    this.#slotOf.set(key, slot);
    this.#keys[slot] = key;
    this.#views[slot] = view;
    this.#offsets[slot] = hostOffset;
    this.#used[slot] = true;
  }

  #freeSlot(): number {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    const slots = this.#keys.length;
    if (slots < this.#capacity) return slots;
    // Twice round at most: the first time takes the marks away. Changed slices must stay, even if more than there is
    // room for: then there is one more until they have been written.
    for (let steps = 2 * slots; steps > 0; steps--) {
      const slot = this.#hand % slots;
      this.#hand = (slot + 1) % slots;
      if (this.#used[slot]) this.#used[slot] = false;
      else if (!this.#dirty.has(this.#keys[slot])) {
        this.#slotOf.delete(this.#keys[slot]);
        this.#spare = this.#views[slot];
        return slot;
      }
    }
    return slots;
  }
}

/** Most bytes of tables that are written at a time. */
const WRITE_BYTES = 1 << 20;
