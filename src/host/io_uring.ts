/**
 * io_uring: operations are written to one ring in shared memory, their results read from another, and one system call
 * starts any number of them and waits for any number of results.
 *
 * Nothing is allocated for an operation. Its name, `user_data`, is two 32-bit words, because a 64-bit one would be a
 * BigInt. Addresses and offsets are plain numbers: what a process can address and what a file can hold is below 2^53.
 *
 * A ring belongs to the thread that made it.
 *
 * @module
 */

import { EAGAIN, EBUSY, EINTR, ETIME, HostError } from "./errno.ts";
import * as abi from "./io_uring_layout.ts";
import { IORING_ENTER, IORING_REGISTER, IORING_SQ, IOSQE, OP } from "./io_uring_layout.ts";
import { setUp } from "./io_uring_setup.ts";
import { close, HostUnavailable, lastErrno, type Libc, libc, libcProblem } from "./libc.ts";
import { Mapping, pointerTo } from "./mapping.ts";

/** Takes the result of an operation: the two words of its name, what the call would return (or -errno), and flags. */
export type CompletionHandler = (owner: number, token: number, result: number, flags: number) => void;

/** How large a ring to make. */
export interface IoUringOptions {
  /** Operations that can be prepared before they are submitted; rounded up to a power of 2. Default: 256. */
  entries?: number;
  /** Results that can wait to be looked at. Default: four times as many. */
  completionEntries?: number;
}

const HIGH = 0x1_0000_0000;

/** One io_uring. */
export class IoUring implements Disposable {
  /** Its descriptor: other rings can send to it, and it can be polled. */
  readonly descriptor: number;
  /** How many operations fit before they are submitted. */
  readonly entries: number;
  /** How many results fit. */
  readonly completionEntries: number;
  /** The setup flags that the kernel took. */
  readonly flags: number;
  /** `IOSQE` bits of an operation whose success nobody wants to hear of; none before Linux 5.17. */
  readonly silent: number;
  /** How many operations were submitted. */
  submitted = 0;
  /** How many times the kernel was entered. */
  enters = 0;

  readonly #libc: Libc;
  readonly #rings: Mapping;
  readonly #sqes: Mapping;
  /** Both rings, as 32-bit words: heads, tails and flags. */
  readonly #words: Uint32Array;
  readonly #results: Int32Array;
  readonly #entriesWords: Uint32Array;
  readonly #sqHeadAt: number;
  readonly #sqTailAt: number;
  readonly #sqFlagsAt: number;
  readonly #sqMask: number;
  readonly #cqHeadAt: number;
  readonly #cqTailAt: number;
  readonly #cqMask: number;
  readonly #cqesAt: number;
  /** Ours alone; the kernel sees it when something is submitted. Runs free, as all of these do. */
  #sqTail = 0;
  #sqSubmitted = 0;
  #cqHead = 0;

  readonly #enterNumber: Deno.PointerValue;
  readonly #waitArgument = new DataView(new ArrayBuffer(abi.WAIT_ARGUMENT.bytesWithTimespec));
  readonly #waitPointer: Deno.PointerValue;
  readonly #waitBytes: Deno.PointerValue;
  /** How the kernel is told which ring: the descriptor, or a place in the thread's own table. */
  #handle: number;
  #handleFlag = 0;
  #closed = false;

  /**
   * Makes a ring.
   *
   * @throws HostUnavailable when there is no io_uring, or too old a one
   */
  constructor(options: IoUringOptions = {}) {
    const { entries = 256, completionEntries = 4 * entries } = options;
    this.#libc = libc();
    const params = new DataView(new ArrayBuffer(abi.PARAMS.bytes));
    this.descriptor = setUp(this.#libc, params, entries, completionEntries);
    this.#handle = this.descriptor;
    const word = (at: number) => params.getUint32(at, true);
    this.flags = word(abi.PARAMS.flags);
    const canSkip = (word(abi.PARAMS.features) & abi.IORING_FEAT.CQE_SKIP) !== 0;
    this.silent = canSkip ? IOSQE.CQE_SKIP_SUCCESS : 0;
    this.entries = word(abi.PARAMS.sqEntries);
    this.completionEntries = word(abi.PARAMS.cqEntries);
    const { sq, cq } = abi.PARAMS;
    const ringBytes = Math.max(
      word(sq.array) + 4 * this.entries,
      word(cq.cqes) + abi.CQE_BYTES * this.completionEntries,
    );
    try {
      this.#rings = Mapping.ofDevice(this.descriptor, abi.IORING_OFF.SQ_RING, ringBytes);
    } catch (error) {
      close(this.descriptor);
      throw error;
    }
    try {
      this.#sqes = Mapping.ofDevice(this.descriptor, abi.IORING_OFF.SQES, abi.SQE_BYTES * this.entries);
    } catch (error) {
      this.#rings.unmap();
      close(this.descriptor);
      throw error;
    }
    this.#words = new Uint32Array(this.#rings.bytes.buffer, 0, Math.floor(ringBytes / 4));
    this.#results = new Int32Array(this.#rings.bytes.buffer, 0, Math.floor(ringBytes / 4));
    this.#entriesWords = new Uint32Array(this.#sqes.bytes.buffer);
    this.#sqHeadAt = word(sq.head) / 4;
    this.#sqTailAt = word(sq.tail) / 4;
    this.#sqFlagsAt = word(sq.flags) / 4;
    this.#sqMask = this.#words[word(sq.mask) / 4];
    this.#cqHeadAt = word(cq.head) / 4;
    this.#cqTailAt = word(cq.tail) / 4;
    this.#cqMask = this.#words[word(cq.mask) / 4];
    this.#cqesAt = word(cq.cqes) / 4;
    // Entry n of the ring is always entry n of the array: the indirection has no use here.
    for (let i = 0; i < this.entries; i++) this.#words[word(sq.array) / 4 + i] = i;

    this.#enterNumber = pointerTo(abi.SYS.io_uring_enter);
    this.#waitBytes = pointerTo(abi.WAIT_ARGUMENT.bytes);
    const pointer = Deno.UnsafePointer.of(this.#waitArgument);
    this.#waitPointer = pointer;
    const timespecAddress = Deno.UnsafePointer.value(pointer) + BigInt(abi.WAIT_ARGUMENT.seconds);
    this.#waitArgument.setBigUint64(abi.WAIT_ARGUMENT.timespec, timespecAddress, true);
    this.#registerSelf();
  }

  /** How many more operations can be prepared before something must be submitted. */
  get room(): number {
    return this.entries - ((this.#sqTail - Atomics.load(this.#words, this.#sqHeadAt)) >>> 0);
  }

  /** How many operations are prepared and not submitted. */
  get prepared(): number {
    return (this.#sqTail - this.#sqSubmitted) >>> 0;
  }

  /** Whether there is a result to look at, or the kernel must be entered to get one. */
  get hasNews(): boolean {
    if (Atomics.load(this.#words, this.#cqTailAt) !== this.#cqHead) return true;
    return (Atomics.load(this.#words, this.#sqFlagsAt) & (IORING_SQ.TASKRUN | IORING_SQ.CQ_OVERFLOW)) !== 0;
  }

  /**
   * Prepares any operation; the named ones below are what it is made for.
   *
   * @param ioprio flags of some operations
   * @param opFlags the word that each operation has its own meaning for
   * @param sqeFlags `IOSQE` bits
   * @returns `false`, with nothing prepared, when the ring is full: submit first
   */
  prepare(
    owner: number,
    token: number,
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    opFlags = 0,
    ioprio = 0,
    sqeFlags = 0,
  ): boolean {
    const tail = this.#sqTail;
    if (((tail - Atomics.load(this.#words, this.#sqHeadAt)) >>> 0) >= this.entries) return false;
    const at = (tail & this.#sqMask) * 16;
    const words = this.#entriesWords;
    words[at] = op | sqeFlags << 8 | ioprio << 16;
    words[at + 1] = fd;
    words[at + 2] = offset;
    words[at + 3] = offset / HIGH;
    words[at + 4] = address;
    words[at + 5] = address / HIGH;
    words[at + 6] = length;
    words[at + 7] = opFlags;
    words[at + 8] = token;
    words[at + 9] = owner;
    words[at + 10] = 0;
    words[at + 11] = 0;
    words[at + 12] = 0;
    words[at + 13] = 0;
    words[at + 14] = 0;
    words[at + 15] = 0;
    this.#sqTail = (tail + 1) >>> 0;
    return true;
  }

  /** Does nothing, and has a result. */
  prepareNop(owner: number, token: number): boolean {
    return this.prepare(owner, token, OP.NOP, -1, 0, 0, 0);
  }

  /** Reads into `count` iovecs. They are looked at when the operation is submitted, and not later. */
  prepareReadv(owner: number, token: number, fd: number, iovecs: number, count: number, offset: number): boolean {
    return this.prepare(owner, token, OP.READV, fd, iovecs, count, offset);
  }

  /** Writes from `count` iovecs. */
  prepareWritev(owner: number, token: number, fd: number, iovecs: number, count: number, offset: number): boolean {
    return this.prepare(owner, token, OP.WRITEV, fd, iovecs, count, offset);
  }

  /** Reads into one buffer. */
  prepareRead(owner: number, token: number, fd: number, address: number, length: number, offset: number): boolean {
    return this.prepare(owner, token, OP.READ, fd, address, length, offset);
  }

  /** Writes from one buffer: to an eventfd too, with offset 0. */
  prepareWrite(owner: number, token: number, fd: number, address: number, length: number, offset: number): boolean {
    return this.prepare(owner, token, OP.WRITE, fd, address, length, offset);
  }

  /** Waits for `events`; with `multishot` again and again, as long as the results have `IORING_CQE_F.MORE`. */
  preparePoll(owner: number, token: number, fd: number, events: number, multishot: boolean): boolean {
    return this.prepare(owner, token, OP.POLL_ADD, fd, 0, multishot ? abi.IORING_POLL_ADD_MULTI : 0, 0, events);
  }

  /** Cancels the operations of a name: they end with -ECANCELED; this ends with how many there were, or -ENOENT. */
  prepareCancel(owner: number, token: number, ofOwner: number, ofToken: number): boolean {
    const at = (this.#sqTail & this.#sqMask) * 16;
    if (!this.prepare(owner, token, OP.ASYNC_CANCEL, -1, 0, 0, 0, abi.IORING_ASYNC_CANCEL_ALL)) return false;
    // A name is no address: its high word may have all its bits.
    this.#entriesWords[at + 4] = ofToken;
    this.#entriesWords[at + 5] = ofOwner;
    return true;
  }

  /** Submits what is prepared, without waiting. Returns how many operations the kernel took. */
  submit(): number {
    if (this.#sqTail === this.#sqSubmitted) return 0;
    return this.#enter(0, this.#needsEntry() ? IORING_ENTER.GETEVENTS : 0, false);
  }

  /**
   * Submits what is prepared, and waits.
   *
   * @param waitFor how many results there should be; with 0 the kernel is entered all the same, for results that it
   * holds back until then
   * @param timeoutNanoseconds how long to wait at most; -1 for ever
   * @returns how many operations the kernel took
   */
  submitAndWait(waitFor: number, timeoutNanoseconds = -1): number {
    if (timeoutNanoseconds < 0 || waitFor === 0) return this.#enter(waitFor, IORING_ENTER.GETEVENTS, false);
    const seconds = Math.floor(timeoutNanoseconds / 1e9);
    this.#waitArgument.setUint32(abi.WAIT_ARGUMENT.seconds, seconds, true);
    this.#waitArgument.setUint32(abi.WAIT_ARGUMENT.nanoseconds, timeoutNanoseconds - seconds * 1e9, true);
    return this.#enter(waitFor, IORING_ENTER.GETEVENTS | IORING_ENTER.EXT_ARG, true);
  }

  /**
   * Gives all results that are there to `handler`, which may prepare and submit more. Does not enter the kernel.
   *
   * @returns how many there were
   */
  reap(handler: CompletionHandler): number {
    const words = this.#words;
    const tail = Atomics.load(words, this.#cqTailAt);
    let count = 0;
    try {
      // Not until they are equal: a handler that reaps itself leaves the head beyond this tail.
      while (((tail - this.#cqHead) | 0) > 0) {
        const at = this.#cqesAt + (this.#cqHead & this.#cqMask) * 4;
        const token = words[at];
        const owner = words[at + 1];
        const result = this.#results[at + 2];
        const flags = words[at + 3];
        // Before the handler: one that throws, or that reaps, must not see this one again.
        this.#cqHead = (this.#cqHead + 1) >>> 0;
        count++;
        handler(owner, token, result, flags);
      }
    } finally {
      // Not before the entries were read: from here on the kernel may write over them.
      if (count > 0) Atomics.store(words, this.#cqHeadAt, this.#cqHead);
    }
    return count;
  }

  /** Ends it. The kernel cancels what is under way, but not at once: wait for it before its memory is given up. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#handleFlag !== 0) {
      const update = new DataView(new ArrayBuffer(16));
      update.setUint32(0, this.#handle, true);
      this.#libc.syscallRegister(
        BigInt(abi.SYS.io_uring_register),
        this.descriptor,
        IORING_REGISTER.UNREGISTER_RING_FDS,
        update,
        1,
      );
    }
    this.#sqes.unmap();
    this.#rings.unmap();
    close(this.descriptor);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #needsEntry(): boolean {
    return (Atomics.load(this.#words, this.#sqFlagsAt) & (IORING_SQ.TASKRUN | IORING_SQ.CQ_OVERFLOW)) !== 0;
  }

  #enter(waitFor: number, flags: number, timed: boolean): number {
    // With sequential consistency: the entries are written before the kernel sees the tail.
    Atomics.store(this.#words, this.#sqTailAt, this.#sqTail);
    const toSubmit = (this.#sqTail - this.#sqSubmitted) >>> 0;
    this.enters++;
    const result = this.#libc.syscallEnter(
      this.#enterNumber,
      this.#handle,
      toSubmit,
      waitFor,
      flags | this.#handleFlag,
      timed ? this.#waitPointer : null,
      timed ? this.#waitBytes : null,
    );
    if (result >= 0) {
      this.#sqSubmitted = (this.#sqSubmitted + result) >>> 0;
      this.submitted += result;
      return result;
    }
    const errno = lastErrno();
    // Time is up, a signal came, or results must be looked at before more is taken: all of these are for the caller's
    // loop, which sees from `prepared` what is left.
    if (errno === ETIME || errno === EINTR || errno === EAGAIN || errno === EBUSY) return 0;
    throw new HostError("io_uring_enter", errno);
  }

  #register(operation: number, argument: ArrayBufferView<ArrayBuffer>, count: number): number {
    const number = BigInt(abi.SYS.io_uring_register);
    const result = this.#libc.syscallRegister(number, this.descriptor, operation, argument, count);
    if (result < 0) throw new HostError("io_uring_register", lastErrno());
    return result;
  }

  /** Saves the kernel a look-up for each entry. Linux 5.18; others do without. */
  #registerSelf(): void {
    const update = new DataView(new ArrayBuffer(16));
    update.setUint32(0, 0xffffffff, true);
    update.setBigUint64(8, BigInt(this.descriptor), true);
    try {
      if (this.#register(IORING_REGISTER.RING_FDS, update, 1) !== 1) return;
    } catch {
      return;
    }
    this.#handle = update.getUint32(0, true);
    this.#handleFlag = IORING_ENTER.REGISTERED_RING;
  }
}

let problem: HostUnavailable | null | undefined;

/** Why io_uring can't be used here, or `null`. Tries it once, if that is allowed. */
export function ioUringProblem(): HostUnavailable | null {
  if (problem !== undefined) return problem;
  const missing = libcProblem();
  if (missing !== null) return missing;
  try {
    new IoUring({ entries: 1 }).close();
    problem = null;
  } catch (error) {
    problem = error instanceof HostUnavailable ? error : new HostUnavailable(String((error as Error).message));
  }
  return problem;
}
