/**
 * Where bytes live. A storage moves bytes between an address space that starts at 0 and guest memory, and knows
 * nothing of formats, requests or rings.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";

/**
 * How an operation ends: at once (`undefined`), or later (a promise). Most operations of most storages end at
 * once, and then nothing is allocated and nobody waits. Failures are thrown, or reject, as `BlockError`.
 */
export type Completion = void | Promise<void>;

/** Runs `next` when `completion` has ended: at once if it has already. */
export function after(completion: Completion, next: () => Completion): Completion {
  return completion === undefined ? next() : completion.then(next);
}

/** A place for bytes. Callers keep `offset + length` at or below `sizeBytes`, except in `write` and `zero`. */
export interface Storage {
  /** Name for messages: the path as the user gave it. */
  readonly name: string;
  /** Whether it was opened for reading only. */
  readonly readOnly: boolean;
  /** Whether `zero` and `discard` can give space back. */
  readonly canUnmap: boolean;
  /** Size in bytes. `write` and `zero` beyond the end extend it. */
  readonly sizeBytes: number;
  /** Fills `into` with the bytes at `offset`; fails with kind `truncated` when the storage ends before. */
  read(offset: number, into: SegmentList): Completion;
  /** Writes the bytes of `from` at `offset`. */
  write(offset: number, from: SegmentList): Completion;
  /** Ends when everything written so far is on stable storage. */
  flush(): Completion;
  /**
   * Makes a range read as zeros.
   *
   * @param mayUnmap whether its space may be given back
   */
  zero(offset: number, lengthBytes: number, mayUnmap: boolean): Completion;
  /** Says that the contents of a range are not needed any more. */
  discard(offset: number, lengthBytes: number): Completion;
  /** Changes the size; new bytes read as zeros. */
  truncate(sizeBytes: number): Completion;
  /**
   * Hears what an image is about to do, by the names that QEMU's blkdebug has for it (`read_aio`, `l2_update`). A
   * storage with this method can hold the image there, or make what follows fail. An image asks for the method once,
   * when it is opened, and calls it only if it is there.
   */
  event?(name: string): Completion;
  /** Releases the storage. Nothing may be called afterwards. */
  close(): void;
}
