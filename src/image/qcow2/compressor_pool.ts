/**
 * Compressing on several cores. Deno's asynchronous zlib calls run on the thread that makes them, so each core gets a
 * Worker.
 *
 * Where no Worker can be had (a program that leaves out the module, a permission that is missing) the work is done on
 * this thread, slower and with the same result.
 *
 * @module
 */

import { type CompressBatch, compressBatch, type CompressedBatch } from "./compress_batch.ts";
import type { Compressor } from "./compressor.ts";
import { compressorFor } from "./compressor.ts";

interface Job {
  readonly batch: CompressBatch;
  readonly resolve: (result: CompressedBatch) => void;
  readonly reject: (error: unknown) => void;
}

/** Compresses batches, as many at a time as there are workers. */
export class CompressorPool {
  readonly #compress: Compressor;
  readonly #workers: Worker[] = [];
  readonly #idle: Worker[] = [];
  readonly #running = new Map<Worker, Job>();
  readonly #waiting: Job[] = [];

  private constructor(compress: Compressor) {
    this.#compress = compress;
  }

  /**
   * Starts the workers.
   *
   * @param workers how many; with 0 all is done on this thread
   * @returns `null` when this Deno does not have the compression
   */
  static async start(compression: "zlib" | "zstd", workers: number): Promise<CompressorPool | null> {
    const compress = compressorFor(compression);
    if (compress === null) return null;
    const pool = new CompressorPool(compress);
    const started = await Promise.all(Array.from({ length: workers }, () => startWorker(compression)));
    for (const worker of started) {
      if (worker !== null) pool.#add(worker);
    }
    return pool;
  }

  /** How many batches are worth being under way: enough that no worker waits for the next. */
  get depth(): number {
    return this.#workers.length === 0 ? 1 : 2 * this.#workers.length;
  }

  /** Number of threads besides this one. */
  get workers(): number {
    return this.#workers.length;
  }

  /** Compresses a batch. Its buffer is gone until it comes back with the result. */
  compress(batch: CompressBatch): Promise<CompressedBatch> {
    if (this.#workers.length === 0) return Promise.resolve(compressBatch(batch, this.#compress));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ batch, resolve, reject });
      this.#next();
    });
  }

  /** Ends the workers. What is still under way never ends. */
  close(): void {
    for (const worker of this.#workers) worker.terminate();
    this.#workers.length = 0;
    this.#idle.length = 0;
  }

  #add(worker: Worker): void {
    worker.onmessage = ({ data }: MessageEvent<CompressedBatch>) => {
      const job = this.#running.get(worker)!;
      this.#running.delete(worker);
      this.#idle.push(worker);
      this.#next();
      job.resolve(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      this.#running.get(worker)?.reject(new Error(`a compressing thread failed: ${event.message}`));
      this.#running.delete(worker);
    };
    this.#workers.push(worker);
    this.#idle.push(worker);
  }

  #next(): void {
    if (this.#waiting.length === 0) return;
    const worker = this.#idle.pop();
    if (worker === undefined) return;
    const job = this.#waiting.shift()!;
    this.#running.set(worker, job);
    worker.postMessage(job.batch, [job.batch.clusters]);
  }
}

/** A worker that is ready; `null` when there can be none. */
function startWorker(compression: "zlib" | "zstd"): Promise<Worker | null> {
  return new Promise((resolve) => {
    try {
      const worker = new Worker(new URL("./compress_worker.ts", import.meta.url), { type: "module" });
      worker.onmessage = () => resolve(worker);
      worker.onerror = (event) => {
        event.preventDefault();
        worker.terminate();
        resolve(null);
      };
      worker.postMessage(compression);
    } catch {
      resolve(null);
    }
  });
}
