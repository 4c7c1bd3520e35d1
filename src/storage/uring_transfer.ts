/**
 * Moving bytes between a file and memory, to the last byte: what the kernel left over is asked for again.
 *
 * @module
 */

import { HostError } from "../host/errno.ts";
import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type BlockOperation } from "./block_error.ts";
import { isTransient, type UringEngine, type UringOperation } from "./uring_engine.ts";

/** Who asked for a transfer. */
export interface TransferOwner {
  /** For messages. */
  readonly name: string;
  /** The open file. */
  readonly descriptor: number;
  /** Hears of the end, before anybody else does. */
  transferEnded(isWrite: boolean, endOffset: number, error: BlockError | null): void;
}

/** One read or write of a storage. */
export class UringTransfer implements UringOperation {
  readonly #owner: TransferOwner;
  readonly #isWrite: boolean;
  readonly #offset: number;
  /** A list of our own: the caller may use his for other things while this goes on. It keeps the memory alive. */
  readonly #list: SegmentList;
  readonly #resolve: () => void;
  readonly #reject: (error: BlockError) => void;
  #doneBytes = 0;

  /** Takes `list` over. */
  constructor(
    owner: TransferOwner,
    isWrite: boolean,
    offset: number,
    list: SegmentList,
    resolve: () => void,
    reject: (error: BlockError) => void,
  ) {
    this.#owner = owner;
    this.#isWrite = isWrite;
    this.#offset = offset;
    this.#list = list;
    this.#resolve = resolve;
    this.#reject = reject;
  }

  submit(engine: UringEngine, owner: number, token: number): void {
    const { descriptor } = this.#owner;
    const done = this.#doneBytes;
    engine.submitSegments(owner, token, descriptor, this.#isWrite, this.#list, done, this.#offset + done);
  }

  completed(result: number): boolean {
    if (isTransient(result)) return false;
    if (result > 0) {
      this.#doneBytes += result;
      if (this.#doneBytes < this.#list.byteLength) return false;
      this.#owner.transferEnded(this.#isWrite, this.#offset + this.#doneBytes, null);
      this.#resolve();
    } else {
      const operation = this.#isWrite ? "write" : "read";
      const error = failure(this.#owner.name, operation, this.#offset, operation, result);
      this.#owner.transferEnded(this.#isWrite, this.#offset + this.#doneBytes, error);
      this.#reject(error);
    }
    return true;
  }
}

/** A list that stays as it is, of the same bytes. */
export function copyOf(list: SegmentList): SegmentList {
  const copy = new SegmentList();
  copy.appendRange(list, 0, list.byteLength);
  return copy;
}

/**
 * The error that a result stands for.
 *
 * @param call what the kernel was asked for
 * @param result -errno; 0 for a transfer that moved nothing
 */
export function failure(
  path: string,
  operation: BlockOperation,
  offset: number | undefined,
  call: string,
  result: number,
): BlockError {
  if (result === 0 && operation === "read") return new BlockError({ kind: "truncated", path, operation, offset });
  const cause = new HostError(call, result === 0 ? 5 : -result);
  return BlockError.from(cause, { path, operation, offset });
}
