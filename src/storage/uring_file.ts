/**
 * Bytes in a file or block device, through io_uring: reads and writes go straight to and from guest memory, many at a
 * time, and holes are punched where the file system has them. What the page cache can do at once is done at once.
 * Linux only.
 *
 * @module
 */

import { EINVAL, ENODEV, ENOSYS, EOPNOTSUPP } from "../host/errno.ts";
import type { FileLock } from "../host/file_lock.ts";
import { IORING_FSYNC_DATASYNC, OP } from "../host/io_uring_layout.ts";
import * as host from "../host/libc.ts";
import { Mapping } from "../host/mapping.ts";
import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type BlockOperation } from "./block_error.ts";
import type { Completion, Storage } from "./storage.ts";
import { DirectAccess } from "./uring_direct.ts";
import { UringEngine } from "./uring_engine.ts";
import { WriteGate } from "./uring_gate.ts";
import { checkName, openDisk, openFailure, takeLock } from "./uring_open.ts";
import { copyOf, failure, type TransferOwner, UringTransfer } from "./uring_transfer.ts";

/** How to open a file. */
export interface UringFileOptions {
  /** Open for reading only. Default: false. */
  readOnly?: boolean;
  /** Take no lock. Default: false. */
  share?: boolean;
  /** Go past the page cache (O_DIRECT). Default: false. */
  direct?: boolean;
  /** The ring to use. It must outlive the storage. Default: one that all storages of the thread share. */
  engine?: UringEngine;
}

const PUNCH = host.FALLOC_FL.PUNCH_HOLE | host.FALLOC_FL.KEEP_SIZE;
const NEVER = [-EOPNOTSUPP, -ENOSYS, -ENODEV];
const ZERO_BYTES = 1 << 20;

/** A file or block device. */
export class UringFileStorage implements Storage, TransferOwner {
  readonly name: string;
  /** Whether it was opened for reading only. */
  readonly readOnly: boolean;
  /** The same for all names of one file: device and inode. */
  readonly identity: string;
  /** For operations that a device submits itself: see `UringEngine.submitRead`. Not with `isDirect`. */
  readonly descriptor: number;
  readonly #engine: UringEngine;
  readonly #lock: FileLock | null;
  readonly #direct: DirectAccess | null;
  readonly #gate = new WriteGate();
  /** Block devices cannot be extended. */
  readonly #fixedSize: boolean;
  #sizeBytes: number;
  #active = 0;
  #closed = false;
  /** What fallocate(2) can't do here. */
  readonly #unable = new Set<number>();

  private constructor(
    name: string,
    descriptor: number,
    readOnly: boolean,
    lock: FileLock | null,
    direct: boolean,
    engine: UringEngine,
  ) {
    const status = host.fstat(descriptor);
    this.name = name;
    this.readOnly = readOnly;
    this.identity = status.identity;
    this.descriptor = descriptor;
    this.#engine = engine;
    this.#fixedSize = status.kind === "block";
    this.#lock = lock;
    this.#sizeBytes = host.sizeOf(descriptor);
    this.#direct = direct ? new DirectAccess(name, descriptor, engine) : null;
  }

  /**
   * Opens a file or block device, and locks it as QEMU does and as `DenoFileStorage` does: nobody writes what somebody
   * else uses.
   *
   * @throws BlockError
   */
  static open(path: string, options: UringFileOptions = {}): UringFileStorage {
    const { readOnly = false, direct = false, share = false } = options;
    let descriptor = -1;
    let engine: UringEngine | undefined;
    try {
      checkName(path, readOnly);
      engine = options.engine ?? UringEngine.shared();
      engine.hold();
      descriptor = openDisk(path, readOnly, direct);
      const lock = share ? null : takeLock(descriptor, path, readOnly);
      return new UringFileStorage(path, descriptor, readOnly, lock, direct, engine);
    } catch (error) {
      if (descriptor >= 0) host.close(descriptor);
      engine?.release();
      throw openFailure(error, path, readOnly);
    }
  }

  /** Whether holes can be punched, unless the file system has none. */
  get canUnmap(): boolean {
    return !this.readOnly && !this.#unable.has(PUNCH);
  }

  /** Whether it goes past the page cache. */
  get isDirect(): boolean {
    return this.#direct !== null;
  }

  /** As it was when it was opened, and as it was changed through this since; see `refreshSize`. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** How much of the disk the file takes, in bytes. */
  get allocatedBytes(): number {
    return this.#attempt("probe", () => host.fstat(this.descriptor).allocatedBytes);
  }

  /** Asks how long the file is now: somebody may have changed it from outside. */
  refreshSize(): number {
    return this.#sizeBytes = this.#attempt("probe", () => host.sizeOf(this.descriptor));
  }

  read(offset: number, into: SegmentList): Completion {
    this.#checkOpen("read", offset);
    if (into.byteLength === 0) return;
    const direct = this.#direct;
    // Nothing is lost by asking: the ring would look there first as well.
    if (direct === null && this.#engine.readCached(this.descriptor, into, offset)) return;
    const list = copyOf(into);
    if (direct === null || direct.isAligned(offset, list)) return this.#transfer(false, offset, list);
    return this.#counted(() => direct.read(offset, list));
  }

  write(offset: number, from: SegmentList): Completion {
    this.#checkOpen("write", offset);
    if (from.byteLength === 0) return;
    const direct = this.#direct;
    // Not past one who is alone; but nobody can come in while this runs.
    if (direct === null && this.#gate.isOpen && this.#engine.writeCached(this.descriptor, from, offset)) {
      this.#sizeBytes = Math.max(this.#sizeBytes, offset + from.byteLength);
      return;
    }
    // What failed is tried again, for the error or for the rest.
    const list = copyOf(from);
    if ((direct === null || direct.isAligned(offset, list)) && this.#gate.tryEnter()) {
      return this.#transfer(true, offset, list);
    }
    return this.#counted(() => this.#write(offset, list));
  }

  /** Ends when the writes that have ended are on stable storage; others may be or not. */
  flush(): Completion {
    this.#checkOpen("flush", undefined);
    return this.#counted(() => this.#flush());
  }

  zero(offset: number, lengthBytes: number, mayUnmap = false): Completion {
    this.#checkOpen("zero", offset);
    if (lengthBytes <= 0) return;
    return this.#counted(() => this.#zero(offset, lengthBytes, mayUnmap));
  }

  /** Gives the space back; where that can't be done it writes zeros, which a reader expects to find. */
  discard(offset: number, lengthBytes: number): Completion {
    this.#checkOpen("discard", offset);
    const end = Math.min(offset + lengthBytes, this.#sizeBytes);
    if (offset >= end) return;
    return this.#counted(() => this.#punch("discard", offset, end - offset));
  }

  truncate(sizeBytes: number): Completion {
    this.#checkOpen("resize", undefined);
    if (this.#fixedSize) {
      const reason = "A block device has a fixed size";
      throw new BlockError({ kind: "unsupported", path: this.name, operation: "resize", reason });
    }
    return this.#counted(() => this.#gate.alone(() => this.#attempt("resize", () => this.#setSize(sizeBytes))));
  }

  /** Hears of the end of a read or write; nobody else calls it. */
  transferEnded(isWrite: boolean, endOffset: number, error: BlockError | null): void {
    if (isWrite) {
      if (error === null) this.#sizeBytes = Math.max(this.#sizeBytes, endOffset);
      this.#gate.leave();
    }
    // How a file that somebody cut shows; and a write that failed may have written something.
    if (error !== null && !this.#closed) this.refreshSize();
    this.#ended();
  }

  /**
   * Waits for what the kernel is doing: it must not write to memory that is somebody else's by then. The file itself
   * is closed when the last operation has ended.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#active > 0) this.#engine.waitUntil(() => this.#active === 0 || this.#engine.active === 0);
    if (this.#active === 0) this.#release();
  }

  async #write(offset: number, from: SegmentList): Promise<void> {
    const direct = this.#direct;
    if (direct !== null && !direct.isWhole(offset, from.byteLength)) {
      return await this.#gate.alone(() => this.#writeAlone(direct, offset, from));
    }
    await this.#gate.enter();
    // What it comes to is not this one's to count and to let out a second time.
    if (direct === null || direct.isAligned(offset, from)) return await this.#transfer(true, offset, from);
    try {
      await direct.write(offset, from);
      this.#sizeBytes = Math.max(this.#sizeBytes, offset + from.byteLength);
    } finally {
      this.#gate.leave();
    }
  }

  async #writeAlone(direct: DirectAccess, offset: number, from: SegmentList): Promise<void> {
    const sizeBytes = Math.max(this.#sizeBytes, offset + from.byteLength);
    try {
      await direct.write(offset, from);
      this.#sizeBytes = sizeBytes;
    } finally {
      // Whole blocks were written: at the end of the file that was too much.
      if (!this.#fixedSize && this.#sizeBytes % direct.alignment.blockBytes !== 0) {
        this.#attempt("write", () => host.ftruncate(this.descriptor, this.#sizeBytes));
      }
    }
  }

  async #flush(): Promise<void> {
    const result = await this.#engine.call(OP.FSYNC, this.descriptor, 0, 0, 0, IORING_FSYNC_DATASYNC);
    if (result < 0) throw failure(this.name, "flush", undefined, "fdatasync", result);
  }

  async #zero(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    const end = offset + lengthBytes;
    if (!mayUnmap) {
      if (await this.#fallocate("zero", host.FALLOC_FL.ZERO_RANGE, offset, lengthBytes)) return;
      return await this.#writeZeros(offset, lengthBytes);
    }
    const stored = Math.min(end, this.#sizeBytes) - offset;
    if (stored > 0) await this.#punch("zero", offset, stored);
    if (end <= this.#sizeBytes) return;
    // Alone: a write that makes it longer still must not be cut.
    await this.#gate.alone(() => this.#attempt("zero", () => end > this.#sizeBytes && this.#setSize(end)));
  }

  async #punch(operation: BlockOperation, offset: number, lengthBytes: number): Promise<void> {
    if (await this.#fallocate(operation, PUNCH, offset, lengthBytes)) return;
    await this.#writeZeros(offset, lengthBytes);
  }

  /** Returns `false` when it can't be done here; throws when it could and failed. */
  async #fallocate(operation: BlockOperation, mode: number, offset: number, lengthBytes: number): Promise<boolean> {
    if (this.#unable.has(mode)) return false;
    await this.#gate.enter();
    try {
      const result = await this.#engine.call(OP.FALLOCATE, this.descriptor, lengthBytes, mode, offset);
      if (result >= 0) {
        if (mode !== PUNCH) this.#sizeBytes = Math.max(this.#sizeBytes, offset + lengthBytes);
        return true;
      }
      if (NEVER.includes(result)) this.#unable.add(mode);
      // A block device says EINVAL of what is not made of whole sectors.
      else if (result !== -EINVAL) throw failure(this.name, operation, offset, "fallocate", result);
      return false;
    } finally {
      this.#gate.leave();
    }
  }

  async #writeZeros(offset: number, lengthBytes: number): Promise<void> {
    using zeros = Mapping.anonymous(Math.min(ZERO_BYTES, lengthBytes));
    const whole = SegmentList.over(zeros.bytes);
    for (let done = 0; done < lengthBytes;) {
      const part = new SegmentList();
      part.appendRange(whole, 0, lengthBytes - done);
      await this.#write(offset + done, part);
      done += part.byteLength;
    }
  }

  #transfer(isWrite: boolean, offset: number, list: SegmentList): Promise<void> {
    this.#active++;
    return new Promise((resolve, reject) => {
      this.#engine.start(new UringTransfer(this, isWrite, offset, list, resolve, reject));
    });
  }

  #setSize(sizeBytes: number): void {
    host.ftruncate(this.descriptor, sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  async #counted(action: () => Promise<void>): Promise<void> {
    this.#active++;
    try {
      await action();
    } finally {
      this.#ended();
    }
  }

  #ended(): void {
    if (--this.#active === 0 && this.#closed) this.#release();
  }

  #release(): void {
    this.#direct?.close();
    this.#lock?.release();
    host.close(this.descriptor);
    this.#engine.release();
  }

  #checkOpen(operation: BlockOperation, offset: number | undefined): void {
    if (this.#closed) throw new BlockError({ kind: "closed", path: this.name, operation, offset });
  }

  #attempt<T>(operation: BlockOperation, action: () => T): T {
    try {
      return action();
    } catch (error) {
      throw BlockError.from(error, { path: this.name, operation });
    }
  }
}
