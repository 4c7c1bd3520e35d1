/**
 * The writing half of a qcow2 image.
 *
 * A write to clusters that are there already, and are this image's alone, goes straight to the storage: it changes no
 * table and waits for nobody. Everything else holds a lock, one at a time, and leaves the tables in memory as they will
 * be in the file, in the order that write_back.ts states.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { after, type Completion } from "../../storage/storage.ts";
import { ClusterWriter, type OldContents } from "./cluster_writer.ts";
import { CompressedWriter } from "./compressed_writer.ts";
import { DATA } from "./l2_entry.ts";
import { Lock } from "./lock.ts";
import type { WriteBack } from "./write_back.ts";
import { ZeroWriter } from "./zero_writer.ts";

/** Takes writes. */
export class Qcow2Writer {
  readonly tables: WriteBack;
  readonly #clusters: ClusterWriter;
  readonly zeros: ZeroWriter;
  readonly #compressed: CompressedWriter;
  readonly #lock = new Lock();
  /** Held shut while something needs that nobody writes. */
  #gate: Promise<unknown> | null = null;

  constructor(tables: WriteBack, old: OldContents) {
    this.tables = tables;
    this.#clusters = new ClusterWriter(tables, old);
    this.zeros = new ZeroWriter(tables, this.#clusters, old);
    this.#compressed = new CompressedWriter(tables, this.#clusters);
  }

  /** Writes the bytes of `from` at `offset`. */
  write(offset: number, from: SegmentList): Completion {
    const { bitmaps, file } = this.tables;
    file.assertSound();
    if (bitmaps !== null && !bitmaps.note(offset, from.byteLength)) return this.#writeNoted(offset, from);
    return this.#writeFrom(offset, from, 0);
  }

  /** Makes a range read as zeros. */
  writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    return this.#locked(async () => {
      if (this.tables.bitmaps !== null) await this.tables.noteChange(offset, lengthBytes);
      return await this.zeros.zero(offset, lengthBytes, mayUnmap);
    });
  }

  /** Gives up the clusters of a range. */
  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#locked(async () => {
      if (this.tables.bitmaps !== null) await this.tables.noteChange(offset, lengthBytes);
      return await this.zeros.discard(offset, lengthBytes);
    });
  }

  /** Stores the compressed form, shorter than a cluster, of the cluster at `offset`. */
  writeCompressed(offset: number, data: Uint8Array): Promise<void> {
    return this.#locked(async () => {
      if (this.tables.bitmaps !== null) await this.tables.noteChange(offset, this.tables.file.clusterBytes);
      return await this.#compressed.write(offset, data);
    });
  }

  /** Ends when everything that was written before is on stable storage. */
  flush(): Completion {
    const { file } = this.tables;
    file.assertSound();
    if (this.#lock.busy || this.tables.isDirty || file.ignoresFlush) return this.#locked(() => this.tables.flush());
    if (file.data === file.storage) return file.storage.flush();
    return after(file.data.flush(), () => file.storage.flush());
  }

  /** Brings everything to stable storage, so that the image is clean. */
  finish(): Completion {
    const { file } = this.tables;
    if (file.damage !== null) return;
    const hasWork = this.tables.isDirty || file.header.dirty || this.tables.bitmaps?.isChanged;
    if (this.#lock.busy || hasWork) return this.#locked(() => this.#finish());
  }

  async #finish(): Promise<void> {
    try {
      const { bitmaps } = this.tables;
      if (bitmaps?.isChanged) await (await import("./bitmap_store.ts")).storeBitmaps(this.tables, bitmaps);
    } finally {
      // Bitmaps that can't be stored are lost; what the guest wrote is not.
      if (this.tables.file.damage === null) await this.tables.finish();
    }
  }

  /** Runs `action` while nobody writes, and with the image clean before and after. */
  exclusive<T>(action: (tables: WriteBack) => Promise<T>): Promise<T> {
    return this.#locked(async () => {
      let open = () => {};
      this.#gate = new Promise<void>((resolve) => open = resolve);
      try {
        await this.tables.inFlight.settle();
        await this.tables.finish();
        const result = await action(this.tables);
        await this.tables.finish();
        return result;
      } finally {
        this.#gate = null;
        open();
      }
    });
  }

  async #writeNoted(offset: number, from: SegmentList): Promise<void> {
    await this.#locked(() => this.tables.noteChange(offset, from.byteLength));
    await this.#writeFrom(offset, from, 0);
  }

  /** Somebody had the image for himself, and may have changed its bitmaps. */
  async #writeBehind(gate: Promise<unknown>, offset: number, from: SegmentList, done: number): Promise<void> {
    await gate;
    const { bitmaps } = this.tables;
    if (bitmaps !== null) await this.#locked(() => this.tables.noteChange(offset, from.byteLength));
    await this.#writeFrom(offset, from, done);
  }

  #locked<T>(action: () => Promise<T>): Promise<T> {
    return this.#lock.run(async () => {
      this.tables.file.assertSound();
      const result = await action();
      if (this.tables.journal !== null) await this.tables.keepChanges();
      return result;
    });
  }

  /** Writes what is left of a list from its byte `done` on. */
  #writeFrom(offset: number, from: SegmentList, done: number): Completion {
    const { file, mapping, inFlight } = this.tables;
    const total = from.byteLength;
    while (done < total) {
      if (this.#gate !== null) return this.#writeBehind(this.#gate, offset, from, done);
      const at = offset + done;
      const miss = mapping.lookup(at, total - done, true);
      if (miss !== undefined) return this.#resume(miss, offset, from, done);
      if (mapping.kind !== DATA || !mapping.copied) return this.#allocate(offset, from, done);
      const { hostOffset, lengthBytes } = mapping;
      file.checkData(hostOffset, lengthBytes);
      let part = from;
      if (lengthBytes < total) {
        part = new SegmentList();
        part.appendRange(from, done, lengthBytes);
      }
      done += lengthBytes;
      const { data } = file;
      const event = data.event?.("write_aio");
      const writing = event === undefined
        ? data.write(hostOffset, part)
        : event.then(() => data.write(hostOffset, part));
      if (writing !== undefined) {
        const end = hostOffset + lengthBytes;
        return this.#resume(inFlight.track(writing.then(() => this.#noteEnd(end))), offset, from, done);
      }
      this.#noteEnd(hostOffset + lengthBytes);
    }
  }

  /** A cluster at the end of the file need not have been there in full. */
  #noteEnd(end: number): void {
    const { file, mapping } = this.tables;
    if (end <= file.dataEndBytes) return;
    file.noteDataEnd(end);
    mapping.grow(file.endBytes);
  }

  #resume(waiting: Promise<unknown>, offset: number, from: SegmentList, done: number): Promise<void> {
    return waiting.then(() => this.#writeFrom(offset, from, done));
  }

  async #allocate(offset: number, from: SegmentList, done: number): Promise<void> {
    const written = await this.#locked(async () => {
      if (this.tables.bitmaps !== null) await this.tables.noteChange(offset, from.byteLength);
      return await this.#clusters.write(offset + done, from, done);
    });
    await this.#writeFrom(offset, from, done + written);
  }
}
