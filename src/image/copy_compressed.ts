/**
 * Copies disks into an image that compresses its clusters, on several cores.
 *
 * Batches of clusters are read in order, compressed by whoever is free, and written in order; so many are under way
 * that nobody waits, and no more.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Completion } from "../storage/storage.ts";
import { type CopyOptions, writing } from "./copy.ts";
import { type CopyRun, CopySource } from "./copy_source.ts";
import type { Image } from "./image.ts";
import type { CompressBatch, CompressedBatch } from "./qcow2/compress_batch.ts";
import { RateLimit } from "./rate_limit.ts";
import { isZeros } from "./zeros.ts";

/** An image that takes clusters which are compressed already. */
export interface CompressedTarget extends Image {
  /** Stores the compressed data of the cluster at `guestOffset`, a multiple of the cluster size. */
  writeCompressedCluster(guestOffset: number, data: Uint8Array): Completion;
}

/** Compresses batches in any order. */
export interface BatchCompressor {
  /** How many batches are worth being under way. */
  readonly depth: number;
  compress(batch: CompressBatch): Promise<CompressedBatch>;
}

const BATCH_BYTES = 1 << 20;

interface Pending {
  readonly offset: number;
  readonly wanted: readonly number[];
  readonly result: Promise<CompressedBatch>;
}

/**
 * Copies the disks.
 *
 * @throws CopyError
 */
export async function copyCompressed(
  sources: readonly Image[],
  target: CompressedTarget,
  clusterBytes: number,
  compressor: BatchCompressor,
  options: CopyOptions,
): Promise<void> {
  await new CompressedCopy(new CopySource(sources, options), target, clusterBytes, compressor, options).run();
}

class CompressedCopy {
  readonly #source: CopySource;
  readonly #target: CompressedTarget;
  readonly #clusterBytes: number;
  readonly #batchBytes: number;
  readonly #compressor: BatchCompressor;
  readonly #options: CopyOptions;
  readonly #pending: Pending[] = [];
  readonly #free: ArrayBuffer[] = [];
  readonly #rate: RateLimit | null;

  constructor(
    source: CopySource,
    target: CompressedTarget,
    clusterBytes: number,
    compressor: BatchCompressor,
    options: CopyOptions,
  ) {
    this.#source = source;
    this.#target = target;
    this.#clusterBytes = clusterBytes;
    this.#batchBytes = Math.max(clusterBytes, BATCH_BYTES);
    this.#compressor = compressor;
    this.#options = options;
    this.#rate = options.bytesPerSecond === undefined ? null : new RateLimit(options.bytesPerSecond);
  }

  async run(): Promise<void> {
    const { sparseBytes, targetIsZero, onProgress } = this.#options;
    const total = this.#source.totalBytes;
    for await (const { offset, lengthBytes, kind } of wholeClusters(this.#source.runs(), this.#clusterBytes, total)) {
      const end = offset + lengthBytes;
      if (kind === "data" || (kind === "zero" && sparseBytes === 0)) await this.#copy(offset, end);
      else if (kind === "zero" && !targetIsZero) await this.#zero(offset, lengthBytes);
      onProgress?.(end, total);
    }
    while (this.#pending.length > 0) await this.#finishFirst();
  }

  async #copy(from: number, end: number): Promise<void> {
    for (let at = from; at < end; at += this.#batchBytes) {
      const length = Math.min(this.#batchBytes, end - at);
      const clusters = this.#free.pop() ?? new ArrayBuffer(this.#batchBytes);
      const bytes = new Uint8Array(clusters);
      await this.#source.read(at, bytes.subarray(0, length));
      const count = Math.ceil(length / this.#clusterBytes);
      // The disk's last cluster may be longer than the disk.
      bytes.fill(0, length, count * this.#clusterBytes);
      const wanted = await this.#wanted(at, bytes, count, end);
      if (wanted.length === 0) this.#free.push(clusters);
      else await this.#start(at, clusters, wanted);
      this.#options.onProgress?.(at + length, this.#source.totalBytes);
      if (this.#rate !== null) await this.#rate.spend(length);
    }
  }

  /** Clusters that hold something; the others are zeros when this ends. */
  async #wanted(offset: number, bytes: Uint8Array, count: number, end: number): Promise<number[]> {
    const { sparseBytes, targetIsZero } = this.#options;
    const wanted: number[] = [];
    for (let i = 0; i < count; i++) {
      const start = i * this.#clusterBytes;
      if (sparseBytes === 0 || !isZeros(bytes, start, start + this.#clusterBytes)) wanted.push(i);
      else if (!targetIsZero) await this.#zero(offset + start, Math.min(this.#clusterBytes, end - offset - start));
    }
    return wanted;
  }

  async #start(offset: number, clusters: ArrayBuffer, wanted: readonly number[]): Promise<void> {
    const result = this.#compressor.compress({ clusters, clusterBytes: this.#clusterBytes, wanted });
    // Whoever writes it hears of a failure; that an earlier one ends the copy first must not end the program.
    result.catch(() => {});
    this.#pending.push({ offset, wanted, result });
    if (this.#pending.length > this.#compressor.depth) await this.#finishFirst();
  }

  async #finishFirst(): Promise<void> {
    const { offset, wanted, result } = this.#pending.shift()!;
    const { clusters, data, lengths } = await result;
    let at = 0;
    for (const [i, index] of wanted.entries()) {
      const guestOffset = offset + index * this.#clusterBytes;
      const length = lengths[i];
      await writing(guestOffset, () => {
        if (length > 0) return this.#target.writeCompressedCluster(guestOffset, new Uint8Array(data, at, length));
        const inDisk = Math.min(this.#clusterBytes, this.#target.sizeBytes - guestOffset);
        const whole = new Uint8Array(clusters, index * this.#clusterBytes, inDisk);
        return this.#target.write(guestOffset, SegmentList.over(whole));
      });
      at += length;
    }
    this.#free.push(clusters);
  }

  #zero(offset: number, lengthBytes: number): Promise<void> {
    return writing(offset, () => this.#target.writeZeroes(offset, lengthBytes, true));
  }
}

/** Runs that begin and end with clusters, or with the disk: a cluster with something of several kinds is data. */
export async function* wholeClusters(
  runs: AsyncIterable<CopyRun>,
  clusterBytes: number,
  totalBytes: number,
): AsyncGenerator<CopyRun> {
  let done = 0;
  for await (const { offset, lengthBytes, kind } of runs) {
    const end = offset + lengthBytes;
    if (offset > done && end > done) {
      const cluster = Math.min(clusterBytes, totalBytes - done);
      yield { offset: done, lengthBytes: cluster, kind: "data" };
      done += cluster;
    }
    const whole = end === totalBytes ? end - done : Math.floor((end - done) / clusterBytes) * clusterBytes;
    if (whole <= 0) continue;
    yield { offset: done, lengthBytes: whole, kind };
    done += whole;
  }
}
