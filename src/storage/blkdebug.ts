/**
 * QEMU's blkdebug: a storage that fails, and holds requests back, by rules. A rule waits for an event; the image raises
 * events by name while it works. The failing itself is `FaultStorage`'s, which tests use without any rules.
 *
 * @module
 */

import type { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type BlockErrorKind, type BlockOperation } from "./block_error.ts";
import { BLKDEBUG_EVENTS } from "./blkdebug_rules.ts";
import { FaultStorage, type StorageOperation } from "./fault.ts";
import { after, type Completion, type Storage } from "./storage.ts";

/** Makes operations fail once its event has happened. */
export interface InjectRule {
  readonly event: string;
  /** The state in which it counts; 0 for every state. */
  readonly state: number;
  /** The number of the error; 0 for none. */
  readonly errno: number;
  /** The byte that an operation must touch to fail; -1 for any. */
  readonly offset: number;
  readonly ioTypes: readonly string[];
  readonly once: boolean;
  /** Fail before anything else can go on. */
  readonly immediately: boolean;
}

/** Changes the state when its event happens. */
export interface StateRule {
  readonly event: string;
  readonly state: number;
  readonly newState: number;
}

interface Breakpoint {
  readonly event: string;
  readonly tag: string;
}

interface Suspended {
  readonly tag: string;
  readonly resume: () => void;
}

/** Kinds of operations by QEMU's names. */
const IO_TYPES: Readonly<Partial<Record<StorageOperation["kind"], string>>> = {
  read: "read",
  write: "write",
  zero: "write-zeroes",
  discard: "discard",
  flush: "flush",
};

/** Errors by their numbers on Linux. */
const ERRORS: Readonly<Record<number, readonly [kind: BlockErrorKind, reason: string]>> = {
  1: ["not-permitted", "Operation not permitted"],
  2: ["not-found", "No such file or directory"],
  5: ["io", "Input/output error"],
  11: ["io", "Resource temporarily unavailable"],
  12: ["io", "Cannot allocate memory"],
  13: ["not-permitted", "Permission denied"],
  16: ["io", "Device or resource busy"],
  22: ["invalid", "Invalid argument"],
  27: ["no-space", "File too large"],
  28: ["no-space", "No space left on device"],
  30: ["not-permitted", "Read-only file system"],
  61: ["io", "No data available"],
  71: ["io", "Protocol error"],
  95: ["unsupported", "Operation not supported"],
  110: ["io", "Connection timed out"],
  122: ["no-space", "Disk quota exceeded"],
  123: ["io", "No medium found"],
};

/** A storage with rules. */
export class BlkdebugStorage extends FaultStorage {
  /** Told when a request is held back or goes on: a line to print. */
  print: (line: string) => void = () => {};
  readonly #rules: InjectRule[];
  readonly #states: readonly StateRule[];
  /** The rules of the last event that had any: the first that fits an operation makes it fail. */
  #active: InjectRule[] = [];
  #state = 1;
  #breakpoints: Breakpoint[] = [];
  #suspended: Suspended[] = [];
  /** As in QEMU, a flush after which nothing was written goes no further, so it can't fail either. */
  #written = 0;
  #flushed = 0;

  /** Takes `inner` over: it is closed with this one. */
  constructor(inner: Storage, rules: readonly InjectRule[] = [], states: readonly StateRule[] = []) {
    super(inner);
    // Those that came last are looked at first.
    this.#rules = [...rules].reverse();
    this.#states = [...states].reverse();
    this.hook = (operation) => this.#before(operation);
    this.eventHook = (name) => this.#happen(name);
    this.#happen("none");
  }

  override write(offset: number, from: SegmentList): Completion {
    return this.#writing(() => super.write(offset, from));
  }

  override zero(offset: number, lengthBytes: number, mayUnmap: boolean): Completion {
    return this.#writing(() => super.zero(offset, lengthBytes, mayUnmap));
  }

  override discard(offset: number, lengthBytes: number): Completion {
    this.#written++;
    return super.discard(offset, lengthBytes);
  }

  override flush(): Completion {
    const written = this.#written;
    return after(super.flush(), () => {
      this.#flushed = Math.max(this.#flushed, written);
    });
  }

  override close(): void {
    for (const { resume } of this.#suspended.splice(0)) resume();
    super.close();
  }

  /** Holds back the next request that raises `event`. Returns whether there is such an event. */
  setBreakpoint(event: string, tag: string): boolean {
    if (!BLKDEBUG_EVENTS.includes(event)) return false;
    this.#breakpoints.unshift({ event, tag });
    return true;
  }

  /** Takes all breakpoints of a tag away, and lets go what they hold. Returns whether there were any. */
  removeBreakpoint(tag: string): boolean {
    const before = this.#breakpoints.length;
    this.#breakpoints = this.#breakpoints.filter((breakpoint) => breakpoint.tag !== tag);
    let found = this.#breakpoints.length < before;
    while (this.resume(tag)) found = true;
    return found;
  }

  /** Lets a request go on. Returns whether one was held back under that tag. */
  resume(tag: string): boolean {
    const index = this.#suspended.findIndex((request) => request.tag === tag);
    if (index < 0) return false;
    const [request] = this.#suspended.splice(index, 1);
    this.print(`blkdebug: Resuming request '${tag}'`);
    request.resume();
    return true;
  }

  /** Whether a request is held back under a tag. */
  isSuspended(tag: string): boolean {
    return this.#suspended.some((request) => request.tag === tag);
  }

  /** Tags of what is held back. */
  get suspended(): string[] {
    return this.#suspended.map(({ tag }) => tag);
  }

  #writing(action: () => Completion): Completion {
    this.#written++;
    // Whether it fails or not.
    const done = () => this.#happen("pwritev_done");
    let completion: Completion;
    try {
      completion = action();
    } catch (error) {
      const raised = done();
      if (raised === undefined) throw error;
      return raised.then(() => Promise.reject(error));
    }
    if (completion === undefined) return done();
    return completion.then(done, async (error) => {
      await done();
      throw error;
    });
  }

  #before(operation: StorageOperation): Completion {
    const { kind } = operation;
    if (kind === "flush" && this.#flushed === this.#written) return;
    const event = kind === "write" ? "pwritev" : kind === "zero" ? "pwritev_zero" : undefined;
    return event === undefined ? this.#check(operation) : after(this.#happen(event), () => this.#check(operation));
  }

  #check({ kind, offset, lengthBytes }: StorageOperation): Completion {
    const ioType = IO_TYPES[kind];
    if (ioType === undefined) return;
    const rule = this.#active.find((rule) =>
      rule.ioTypes.includes(ioType) &&
      (rule.offset < 0 || (rule.offset >= offset && rule.offset < offset + lengthBytes))
    );
    if (rule === undefined || rule.errno === 0) return;
    if (rule.once) {
      this.#active = this.#active.filter((other) => other !== rule);
      this.#rules.splice(this.#rules.indexOf(rule), 1);
    }
    const error = this.#failure(rule.errno, kind as BlockOperation, offset);
    if (rule.immediately) throw error;
    return Promise.reject(error);
  }

  #failure(errno: number, operation: BlockOperation, offset: number): BlockError {
    const [kind, reason] = ERRORS[errno] ?? ["io", `Error ${errno}`];
    const hint = "a rule of blkdebug made it fail";
    return new BlockError({ kind, path: this.name, operation, offset, reason, hint });
  }

  #happen(event: string): Completion {
    if (event === "flush_to_disk" && this.#flushed === this.#written) return;
    const counts = (rule: InjectRule | StateRule) =>
      rule.event === event && (rule.state === 0 || rule.state === this.#state);
    const rules = this.#rules.filter(counts);
    if (rules.length > 0) this.#active = rules.reverse();
    const newState = this.#states.filter(counts).at(-1)?.newState;
    if (newState !== undefined) this.#state = newState;
    const reached = this.#breakpoints.filter((breakpoint) => breakpoint.event === event);
    if (reached.length === 0) return;
    this.#breakpoints = this.#breakpoints.filter((breakpoint) => breakpoint.event !== event);
    return Promise.all(reached.map(({ tag }) => this.#suspend(tag))).then(() => {});
  }

  #suspend(tag: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#suspended.unshift({ tag, resume: resolve });
    this.print(`blkdebug: Suspended request '${tag}'`);
    return promise;
  }
}
