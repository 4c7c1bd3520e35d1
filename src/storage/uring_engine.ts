/**
 * One io_uring for all that a thread reads and writes.
 *
 * It is driven in one of two ways. In a process that lives by Deno's event loop, nobody can wait there for a ring; so
 * at the end of a turn of microtasks everything that was asked for is submitted in one system call, which waits for
 * the first result. A thread that belongs to the ring alone (`drivenBy: "owner"`) calls `pollOnce` instead.
 *
 * Two ways lead in. Storages ask for operations that end as promises. A device that has slots of its own registers a
 * handler once and submits under its own tokens: nothing is allocated then, and nobody waits for a microtask.
 *
 * @module
 */

import { IoUring, type IoUringOptions } from "../host/io_uring.ts";
import { type Libc, libc, RWF_NOWAIT } from "../host/libc.ts";
import { addressOf } from "../host/mapping.ts";
import type { SegmentList } from "../memory/segment_list.ts";
import { Iovecs, MOST_IOVECS } from "./uring_iovecs.ts";

/** Takes a result: the token it was submitted under, what the call would return or -errno, `IORING_CQE_F` flags. */
export type TokenHandler = (token: number, result: number, flags: number) => void;

/** An operation that the engine keeps a slot for until it has ended. */
export interface UringOperation {
  /** Submits it, under the given name. Called again for what `completed` did not want to end with. */
  submit(engine: UringEngine, owner: number, token: number): void;
  /**
   * Takes the result.
   *
   * @returns whether it has ended; `false` submits it once more
   */
  completed(result: number): boolean;
}

/** How to make an engine. */
export interface UringEngineOptions extends IoUringOptions {
  /** Who makes it go. Default: `"microtasks"`. */
  drivenBy?: "microtasks" | "owner";
}

/** Registered by the engine itself: the owner of all `UringOperation`s. */
const OPERATIONS = 0;
/** How long microtasks may follow microtasks before timers and signals get a turn. */
const LONGEST_TURN_MS = 50;
/** After so long without us, it is taken that they had one. */
const PAUSE_MS = 2;

/** The io_uring of one thread, and what is under way on it. */
export class UringEngine implements Disposable {
  /** The ring: for operations that are nobody's business but the caller's, under a registered owner. */
  readonly ring: IoUring;
  readonly #byOwner: boolean;
  readonly #libc: Libc;
  readonly #iovecs = new Iovecs(8 * MOST_IOVECS);
  /** Those of a call that is made at once. */
  readonly #iovecsNow = new Iovecs(MOST_IOVECS);

  readonly #handlers: (TokenHandler | undefined)[] = [];
  readonly #operations: (UringOperation | undefined)[] = [];
  readonly #freeSlots: number[] = [];
  #active = 0;
  /** Results that had to be taken out of the ring while somebody was submitting, four numbers each. */
  #stash: number[] = [];

  #scheduled = false;
  #turnStarted = 0;
  #turnEnded = 0;
  #users = 0;
  #dispatching = 0;
  #isOver = false;

  readonly #dispatch = (owner: number, token: number, result: number, flags: number): void => {
    // Who has unregistered has no use for what comes late.
    this.#handlers[owner]?.(token, result, flags);
  };

  /**
   * Makes a ring for this thread.
   *
   * @throws HostUnavailable
   */
  constructor(options: UringEngineOptions = {}) {
    this.ring = new IoUring(options);
    this.#byOwner = options.drivenBy === "owner";
    this.#libc = libc();
    this.#handlers[OPERATIONS] = (token, result) => this.#operationEnded(token, result);
  }

  static #shared: UringEngine | undefined;

  /** The engine that this thread's storages share. It is made for the first that holds it, and ends with the last. */
  static shared(): UringEngine {
    return UringEngine.#shared ??= new UringEngine();
  }

  /** Says that a storage uses the engine. */
  hold(): void {
    this.#users++;
  }

  /** Says that a storage does not use it any more. */
  release(): void {
    if (--this.#users > 0 || this !== UringEngine.#shared) return;
    UringEngine.#shared = undefined;
    // Results may be on their way through: the last of them is what brought us here.
    if (this.#dispatching > 0) this.#isOver = true;
    else this.close();
  }

  /** How many operations of storages are under way. */
  get active(): number {
    return this.#active;
  }

  /** Takes a handler for all results of one owner; returns the owner's number, the high word of `user_data`. */
  register(handler: TokenHandler): number {
    const free = this.#handlers.indexOf(undefined);
    const owner = free < 0 ? this.#handlers.length : free;
    this.#handlers[owner] = handler;
    return owner;
  }

  /** Ends a registration. What is still under way must have been waited for: the number will be given out again. */
  unregister(owner: number): void {
    this.#handlers[owner] = undefined;
  }

  /** Reads into `count` iovecs (at most `MOST_IOVECS`) at an address. They may be reused after the next submission. */
  submitRead(owner: number, token: number, fd: number, iovecs: number, count: number, offset: number): void {
    while (!this.ring.prepareReadv(owner, token, fd, iovecs, count, offset)) this.makeRoom();
  }

  /** Writes from `count` iovecs at an address. */
  submitWrite(owner: number, token: number, fd: number, iovecs: number, count: number, offset: number): void {
    while (!this.ring.prepareWritev(owner, token, fd, iovecs, count, offset)) this.makeRoom();
  }

  /**
   * Reads into the bytes of a list from its byte `from` on, or writes them: at most `MOST_IOVECS` segments of it, so
   * that for longer lists the result is short. The caller keeps the list's memory alive.
   */
  submitSegments(
    owner: number,
    token: number,
    fd: number,
    isWrite: boolean,
    list: SegmentList,
    from: number,
    offset: number,
  ): void {
    if (list.count === 1) {
      const region = list.regionOf(0).bytes;
      const address = addressOf(region.buffer) + region.byteOffset + list.offsetOf(0) + from;
      const length = Math.min(list.lengthOf(0) - from, LARGEST_TRANSFER_BYTES);
      while (
        !(isWrite
          ? this.ring.prepareWrite(owner, token, fd, address, length, offset)
          : this.ring.prepareRead(owner, token, fd, address, length, offset))
      ) this.makeRoom();
      return;
    }
    const address = this.#iovecsFor(list, from);
    const count = this.#iovecs.count;
    // Making room submits what is prepared, which leaves these iovecs as they are.
    if (isWrite) this.submitWrite(owner, token, fd, address, count, offset);
    else this.submitRead(owner, token, fd, address, count, offset);
  }

  /**
   * Reads at once what the page cache has; a ring and a promise would cost more than that.
   *
   * @returns whether all of it was there. If not, some of `list` may be filled all the same.
   */
  readCached(fd: number, list: SegmentList, offset: number): boolean {
    if (list.count > MOST_IOVECS) return false;
    const { pointer, count } = this.#iovecsNow.only(list);
    return this.#libc.preadv2(fd, pointer, count, BigInt(offset), RWF_NOWAIT) === list.byteLength;
  }

  /**
   * Writes at once to the page cache. For a file that is not open for direct access this costs a half or a third of
   * what the ring costs: most file systems can't say beforehand whether such a write would wait, so io_uring gives it
   * to a thread. It does wait when the system has more unwritten data than it likes.
   *
   * @returns whether all was written. If not, some of it may be.
   */
  writeCached(fd: number, list: SegmentList, offset: number): boolean {
    if (list.count > MOST_IOVECS) return false;
    const { pointer, count } = this.#iovecsNow.only(list);
    return this.#libc.pwritev2(fd, pointer, count, BigInt(offset), 0) === list.byteLength;
  }

  /** Any operation, as `IoUring.prepare` has it. */
  submitAny(
    owner: number,
    token: number,
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    opFlags = 0,
  ): void {
    while (!this.ring.prepare(owner, token, op, fd, address, length, offset, opFlags)) this.makeRoom();
  }

  /** Submits what is prepared, so that more can be. Calls no handler. */
  makeRoom(): void {
    this.ring.submit();
    if (this.ring.room > 0) return;
    // The kernel is short of memory, or has more results than it likes to keep. They are set aside: a handler that
    // ran here would run in the middle of another.
    this.ring.submitAndWait(0);
    this.ring.reap((owner, token, result, flags) => this.#stash.push(owner, token, result, flags));
  }

  /** Starts an operation. */
  start(operation: UringOperation): void {
    const slot = this.#freeSlots.pop() ?? this.#operations.length;
    this.#operations[slot] = operation;
    this.#active++;
    operation.submit(this, OPERATIONS, slot);
    this.#schedule();
  }

  /** A single call, whose result is what it would return, or -errno. The caller keeps the memory alive. */
  call(op: number, fd: number, address: number, length: number, offset: number, opFlags = 0): Promise<number> {
    return new Promise((resolve) =>
      this.start({
        submit: (engine, owner, token) => engine.submitAny(owner, token, op, fd, address, length, offset, opFlags),
        completed(result) {
          if (isTransient(result)) return false;
          resolve(result);
          return true;
        },
      })
    );
  }

  /**
   * Submits what is prepared, and gives the results that there are to their handlers.
   *
   * @param waitNanoseconds how long to wait for the first one: 0 not at all, -1 for ever
   * @returns how many results there were
   */
  pollOnce(waitNanoseconds: number): number {
    const { ring } = this;
    this.#dispatching++;
    try {
      if (this.#stash.length > 0) return this.#unstash();
      if (ring.hasNews || waitNanoseconds === 0) {
        if (ring.prepared > 0 || ring.hasNews) ring.submitAndWait(0);
      } else {
        ring.submitAndWait(1, waitNanoseconds);
      }
      return ring.reap(this.#dispatch);
    } finally {
      if (--this.#dispatching === 0 && this.#isOver) this.close();
    }
  }

  /** Waits, without giving anybody else a turn, until `isDone`. */
  waitUntil(isDone: () => boolean): void {
    while (!isDone()) this.pollOnce(-1);
  }

  /** Ends it, when all that is under way has ended. */
  close(): void {
    this.waitUntil(() => this.#active === 0);
    this.ring.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #operationEnded(slot: number, result: number): void {
    const operation = this.#operations[slot]!;
    if (!operation.completed(result)) return operation.submit(this, OPERATIONS, slot);
    this.#operations[slot] = undefined;
    this.#freeSlots.push(slot);
    this.#active--;
  }

  #unstash(): number {
    const stash = this.#stash;
    this.#stash = [];
    for (let i = 0; i < stash.length; i += 4) this.#dispatch(stash[i], stash[i + 1], stash[i + 2], stash[i + 3]);
    return stash.length / 4;
  }

  /** Finds a place for iovecs; what was used is free again when all that is prepared has been submitted. */
  #iovecsFor(list: SegmentList, from: number): number {
    const count = Math.min(list.count, MOST_IOVECS);
    while (!this.#iovecs.hasRoom(count) && this.ring.prepared > 0) this.makeRoom();
    if (this.ring.prepared === 0) this.#iovecs.clear();
    return this.#iovecs.add(list, from);
  }

  #schedule(): void {
    if (this.#scheduled || this.#byOwner) return;
    this.#scheduled = true;
    const now = performance.now();
    if (now - this.#turnEnded > PAUSE_MS) this.#turnStarted = now;
    if (now - this.#turnStarted > LONGEST_TURN_MS) setTimeout(this.#nextTurn, 0);
    // Behind the microtasks that are there already, and behind those that they bring: what they ask for comes along.
    else queueMicrotask(this.#almostTurn);
  }

  readonly #almostTurn = (): void => queueMicrotask(this.#turn);

  /** Called by a timer: the others had their turn. */
  readonly #nextTurn = (): void => {
    this.#turnStarted = performance.now();
    this.#turn();
  };

  readonly #turn = (): void => {
    this.#scheduled = false;
    if (this.#active > 0) this.pollOnce(-1);
    this.#turnEnded = performance.now();
    if (this.#active > 0) this.#schedule();
  };
}

/** Linux moves no more at once: 2 GiB less a page. */
const LARGEST_TRANSFER_BYTES = 0x7ffff000;

/** Whether an operation is to be tried again: a signal came, or a queue in the kernel was full. */
export function isTransient(result: number): boolean {
  return result === -4 || result === -11;
}
