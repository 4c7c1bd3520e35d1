/**
 * A storage that keeps nothing (QEMU's `null-co`): to measure what is above it, and to try out what has no disk.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import { BlockError } from "./block_error.ts";
import type { Completion, Storage } from "./storage.ts";

/** Size when nothing is said: 1 GiB. */
export const NULL_DEFAULT_BYTES = 1 << 30;

/** Choices for a storage that keeps nothing. */
export interface NullOptions {
  readonly name?: string;
  /** Default: 1 GiB. */
  readonly sizeBytes?: number;
  /** Fill with zeros what is read; otherwise it stays as it was. Default: false. */
  readonly readZeroes?: boolean;
  /** How long an operation takes, about, in nanoseconds. Default: 0. */
  readonly latencyNs?: number;
  readonly readOnly?: boolean;
}

/** A storage that keeps nothing. */
export class NullStorage implements Storage {
  readonly name: string;
  /** Whether whoever writes should be refused. */
  readonly readOnly: boolean;
  readonly canUnmap = false;
  readonly sizeBytes: number;
  readonly #readZeroes: boolean;
  readonly #latencyMs: number;

  constructor(options: NullOptions = {}) {
    this.name = options.name ?? "null-co://";
    this.sizeBytes = options.sizeBytes ?? NULL_DEFAULT_BYTES;
    this.readOnly = options.readOnly ?? false;
    this.#readZeroes = options.readZeroes ?? false;
    this.#latencyMs = (options.latencyNs ?? 0) / 1e6;
  }

  read(_offset: number, into: SegmentList): Completion {
    if (this.#readZeroes) into.fill(0);
    return this.#wait();
  }

  write(): Completion {
    return this.#wait();
  }

  flush(): Completion {
    return this.#wait();
  }

  zero(): Completion {
    return this.#wait();
  }

  discard(): Completion {}

  truncate(): Completion {
    const reason = "Image format driver does not support resize";
    throw new BlockError({ kind: "unsupported", path: this.name, operation: "resize", reason });
  }

  close(): void {}

  #wait(): Completion {
    if (this.#latencyMs > 0) return new Promise((resolve) => setTimeout(resolve, this.#latencyMs));
  }
}
