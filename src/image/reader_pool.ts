/**
 * Reading an image on several cores: what is compressed in it costs more to read than to write.
 *
 * Each thread opens the image once more; where that cannot be done there is no pool, and whoever wanted one reads by
 * himself.
 *
 * @module
 */

import { type AheadReader, COPY_CHUNK_BYTES } from "./copy.ts";
import type { ReadMessage, ReadResult } from "./read_worker.ts";

interface Job {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly resolve: (bytes: Uint8Array<ArrayBuffer>) => void;
  readonly reject: (error: unknown) => void;
}

/** Reads as many ranges at a time as there are threads. */
export class ReaderPool implements AheadReader {
  readonly #workers: Worker[];
  readonly #idle: Worker[];
  readonly #running = new Map<Worker, Job>();
  readonly #waiting: Job[] = [];
  readonly #free: ArrayBuffer[] = [];

  private constructor(workers: readonly Worker[]) {
    this.#workers = [...workers];
    this.#idle = [...workers];
    for (const worker of workers) {
      worker.onmessage = ({ data }: MessageEvent<ReadResult>) => this.#finish(worker, data);
      worker.onerror = (event) => {
        event.preventDefault();
        this.#lose(worker, event.message);
      };
    }
  }

  /** Starts threads that read the image; `null` when one of them can't. */
  static async start(name: string, format: string, threads: number): Promise<ReaderPool | null> {
    const started = await Promise.all(Array.from({ length: threads }, () => startReader(name, format)));
    const workers = started.filter((worker) => worker !== null);
    if (workers.length === threads && threads > 0) return new ReaderPool(workers);
    for (const worker of workers) worker.terminate();
    return null;
  }

  get depth(): number {
    return 2 * this.#workers.length;
  }

  read(offset: number, lengthBytes: number): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#workers.length === 0) return Promise.reject(new Error("no thread is left"));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ offset, lengthBytes, resolve, reject });
      this.#next();
    });
  }

  recycle(bytes: Uint8Array<ArrayBuffer>): void {
    this.#free.push(bytes.buffer);
  }

  /** Ends the threads. */
  close(): void {
    for (const worker of this.#workers) worker.terminate();
  }

  /** A thread is gone. With the last one go the reads that wait, for nobody would do them. */
  #lose(worker: Worker, why: string): void {
    this.#running.get(worker)?.reject(new Error(why));
    this.#running.delete(worker);
    this.#workers.splice(this.#workers.indexOf(worker), 1);
    if (this.#workers.length > 0) return;
    for (const { reject } of this.#waiting.splice(0)) reject(new Error(why));
  }

  #next(): void {
    if (this.#waiting.length === 0) return;
    const worker = this.#idle.pop();
    if (worker === undefined) return;
    const job = this.#waiting.shift()!;
    this.#running.set(worker, job);
    const buffer = this.#free.pop() ?? new ArrayBuffer(COPY_CHUNK_BYTES);
    const message: ReadMessage = { offset: job.offset, lengthBytes: job.lengthBytes, buffer };
    worker.postMessage(message, [buffer]);
  }

  #finish(worker: Worker, { buffer, isGood }: ReadResult): void {
    const job = this.#running.get(worker)!;
    this.#running.delete(worker);
    this.#idle.push(worker);
    this.#next();
    if (isGood) job.resolve(new Uint8Array(buffer, 0, job.lengthBytes));
    else job.reject(new Error("the range can't be read"));
  }
}

/** A thread that has the image open; `null` when there can be none. */
function startReader(name: string, format: string): Promise<Worker | null> {
  return new Promise((resolve) => {
    try {
      const worker = new Worker(new URL("./read_worker.ts", import.meta.url), { type: "module" });
      const fail = () => {
        worker.terminate();
        resolve(null);
      };
      worker.onmessage = ({ data }: MessageEvent<boolean>) => data ? resolve(worker) : fail();
      worker.onerror = (event) => {
        event.preventDefault();
        fail();
      };
      worker.postMessage({ name, format });
    } catch {
      resolve(null);
    }
  });
}
