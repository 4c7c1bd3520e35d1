/**
 * Bytes in a file or block device, through Deno's portable file API: no permission is needed but read and write.
 *
 * All data operations are synchronous. Deno's asynchronous file operations share one file position and take turns
 * on one lock, so they could not overlap anyway, and each would cost a thread switch.
 *
 * The API has no fallocate. Where the right to call foreign functions was given, holes are punched all the same (see
 * host/fallocate.ts). Otherwise, to keep sparse files sparse, zeros are written only where the file does not read as
 * zeros already.
 *
 * @module
 */

import { canPunchHoles, type HoleMode, HolePuncher } from "../host/fallocate.ts";
import { FileLock } from "../host/file_lock.ts";
import { HostUnavailable, libcProblem } from "../host/libc.ts";
import { SegmentList } from "../memory/segment_list.ts";
import { BlockError, type BlockOperation } from "./block_error.ts";
import { imageLockWish, lockedError } from "./image_lock.ts";
import type { Completion, Storage } from "./storage.ts";

/** How to open a file. */
export interface DenoFileOptions {
  /** Open for reading only. Default: false. */
  readOnly?: boolean;
  /** Take no lock (`-U` in qemu-io). Default: false. */
  share?: boolean;
  /** Call no foreign function, whatever the permissions. Default: false. */
  portable?: boolean;
}

const ZERO_CHUNK_BYTES = 1 << 20;

/** Where Deno has it (2.9; not in 2.4): a lock that is refused rather than waited for. */
interface TryLock {
  tryLockSync?(exclusive?: boolean): boolean;
}

/** A file or block device. */
export class DenoFileStorage implements Storage {
  readonly name: string;
  /** Whether it was opened for reading only. */
  readonly readOnly: boolean;
  /** The same for all names of one file, if the operating system says: device and inode. */
  readonly identity: string | null;
  readonly #file: Deno.FsFile;
  /** Block devices cannot be extended. */
  readonly #fixedSize: boolean;
  /** Where the file's position is, so that sequential access need not seek; -1 when unknown. */
  #position = -1;
  #closed = false;
  /** Opened with the first hole; `null` when that can't be done. */
  #puncher: HolePuncher | null | undefined;
  /** What the file system can't do. */
  readonly #unable = new Set<HoleMode>();
  /** QEMU's lock, where it can be had. Deno's own goes with the file. */
  #lock: FileLock | null = null;

  private constructor(name: string, file: Deno.FsFile, readOnly: boolean, fixedSize: boolean, identity: string | null) {
    this.identity = identity;
    this.name = name;
    this.readOnly = readOnly;
    this.#file = file;
    this.#fixedSize = fixedSize;
  }

  /**
   * Opens a file or block device, and takes an advisory lock on it: exclusive for writing, shared for reading, so
   * that nobody writes what somebody else uses. Where the right to call foreign functions was given, QEMU's lock is
   * taken as well, so that this goes for QEMU too.
   *
   * @throws BlockError
   */
  static open(path: string, options: DenoFileOptions = {}): DenoFileStorage {
    const readOnly = options.readOnly ?? false;
    if (path === "") {
      throw new BlockError({ kind: "invalid", path, operation: "open", reason: "A file name is required" });
    }
    let file: Deno.FsFile | undefined;
    try {
      // Before it is opened too: to open a FIFO would wait for somebody at its other end.
      checkIsDisk(Deno.statSync(path), path);
      file = Deno.openSync(path, { read: true, write: !readOnly });
      const stat = file.statSync();
      checkIsDisk(stat, path);
      if (!options.share) lock(file, path, readOnly);
      const identity = stat.ino === null ? null : `${stat.dev}:${stat.ino}`;
      const storage = new DenoFileStorage(path, file, readOnly, stat.isBlockDevice === true, identity);
      if (options.portable) storage.#puncher = null;
      else if (!options.share) storage.#lock = lockAsQemu(path, readOnly, stat);
      return storage;
    } catch (error) {
      file?.close();
      throw BlockError.from(error, { path, operation: "open", hint: openHint(error, path, readOnly) });
    }
  }

  /**
   * Opens a file for writing that may not exist yet, and takes the lock: what is in it is left as it is, so that nobody
   * loses an image to a mistake.
   *
   * @returns the storage, and whether the file is new
   * @throws BlockError
   */
  static create(path: string): { storage: DenoFileStorage; isNew: boolean } {
    let isNew = true;
    try {
      Deno.openSync(path, { write: true, createNew: true }).close();
    } catch (error) {
      isNew = false;
      if (!(error instanceof Deno.errors.AlreadyExists)) {
        throw BlockError.from(error, { path, operation: "create", hint: openHint(error, path, false) });
      }
    }
    try {
      return { storage: DenoFileStorage.open(path), isNew };
    } catch (error) {
      if (!(error instanceof BlockError) || error.kind === "locked") throw error;
      const { kind, reason, hint } = error;
      throw new BlockError({ kind, path, operation: "create", reason, hint, cause: error });
    }
  }

  /** Whether holes can be punched, unless the file system has none. */
  get canUnmap(): boolean {
    return !this.readOnly && this.#puncher !== null && !this.#unable.has("punch") && canPunchHoles();
  }

  get sizeBytes(): number {
    // Asked of the file each time: it is the only way to notice that somebody truncated it.
    return this.#attempt("probe", 0, () => {
      this.#position = -1;
      return this.#file.seekSync(0, Deno.SeekMode.End);
    });
  }

  /** How much of the disk the file takes, in bytes; `null` where the operating system does not say. */
  get allocatedBytes(): number | null {
    const { blocks } = this.#attempt("probe", undefined, () => this.#file.statSync());
    return blocks === null ? null : blocks * 512;
  }

  read(offset: number, into: SegmentList): Completion {
    this.#attempt("read", offset, () => {
      this.#seek(offset);
      for (let i = 0; i < into.count; i++) {
        const view = into.viewOf(i);
        for (let done = 0; done < view.byteLength;) {
          const count = this.#file.readSync(done === 0 ? view : view.subarray(done));
          if (count === null) {
            throw new BlockError({ kind: "truncated", path: this.name, operation: "read", offset });
          }
          done += count;
        }
        this.#position += view.byteLength;
      }
    });
  }

  write(offset: number, from: SegmentList): Completion {
    this.#attempt("write", offset, () => {
      this.#seek(offset);
      for (let i = 0; i < from.count; i++) {
        const view = from.viewOf(i);
        for (let done = 0; done < view.byteLength;) {
          done += this.#file.writeSync(done === 0 ? view : view.subarray(done));
        }
        this.#position += view.byteLength;
      }
    });
  }

  flush(): Completion {
    this.#attempt("flush", undefined, () => this.#file.syncDataSync());
  }

  zero(offset: number, lengthBytes: number, mayUnmap = false): Completion {
    this.#attempt("zero", offset, () => {
      if (!mayUnmap && this.#fallocate("zero", offset, lengthBytes)) return;
      const size = this.sizeBytes;
      const stored = Math.min(offset + lengthBytes, size) - offset;
      if (!mayUnmap || !this.#fallocate("punch", offset, stored)) return this.#writeZeros(offset, lengthBytes);
      if (lengthBytes > stored && offset + lengthBytes > size) this.#extend(offset + lengthBytes);
    });
  }

  /** Gives the space back; where that can't be done it writes zeros, which a reader expects to find. */
  discard(offset: number, lengthBytes: number): Completion {
    this.#attempt("discard", offset, () => {
      const end = Math.min(offset + lengthBytes, this.sizeBytes);
      if (offset < end && !this.#fallocate("punch", offset, end - offset)) this.#writeZeros(offset, end - offset);
    });
  }

  truncate(sizeBytes: number): Completion {
    this.#attempt("resize", undefined, () => {
      if (this.#fixedSize) {
        throw new BlockError({
          kind: "unsupported",
          path: this.name,
          operation: "resize",
          reason: "A block device has a fixed size",
        });
      }
      this.#position = -1;
      this.#file.truncateSync(sizeBytes);
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#puncher?.close();
    this.#lock?.release();
    this.#file.close();
  }

  #writeZeros(offset: number, lengthBytes: number): void {
    const size = this.sizeBytes;
    const end = offset + lengthBytes;
    const found = new Uint8Array(Math.min(ZERO_CHUNK_BYTES, lengthBytes));
    const zeros = new Uint8Array(found.byteLength);
    for (let at = offset; at < Math.min(end, size);) {
      const take = Math.min(found.byteLength, Math.min(end, size) - at);
      this.read(at, SegmentList.over(found.subarray(0, take)));
      // Only the blocks that hold something: a file system allocates what is written, even zeros.
      for (let from = 0; from < take;) {
        const to = Math.min(take, from + PAGE - ((at + from) % PAGE));
        if (!isZero(found, from, to)) this.write(at + from, SegmentList.over(zeros.subarray(0, to - from)));
        from = to;
      }
      at += take;
    }
    if (end > size) this.#extend(end);
  }

  #extend(end: number): void {
    if (this.#fixedSize) return;
    this.#position = -1;
    this.#file.truncateSync(end);
  }

  /** Whether a range could be made zeros without writing to it. */
  #fallocate(mode: HoleMode, offset: number, lengthBytes: number): boolean {
    if (lengthBytes <= 0) return mode === "punch";
    if (this.#unable.has(mode) || !canPunchHoles()) return false;
    if (this.#puncher === undefined) this.#puncher = HolePuncher.open(this.name, this.#file.statSync());
    const outcome = this.#puncher?.apply(mode, offset, lengthBytes) ?? "never";
    if (outcome === "never") this.#unable.add(mode);
    return outcome === "done";
  }

  #seek(offset: number): void {
    if (this.#position === offset) return;
    this.#position = -1;
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    this.#position = offset;
  }

  #attempt<T>(operation: BlockOperation, offset: number | undefined, action: () => T): T {
    if (this.#closed) throw new BlockError({ kind: "closed", path: this.name, operation, offset });
    try {
      return action();
    } catch (error) {
      this.#position = -1;
      throw BlockError.from(error, { path: this.name, operation, offset });
    }
  }
}

const PAGE = 4096;

function isZero(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) {
    if (bytes[i] !== 0) return false;
  }
  return true;
}

/** Refuses what is neither a file nor a block device. */
export function checkIsDisk(stat: Deno.FileInfo, path: string): void {
  if (stat.isDirectory) throw new BlockError({ kind: "is-directory", path, operation: "open" });
  if (stat.isFile || stat.isBlockDevice) return;
  throw new BlockError({
    kind: "unsupported",
    path,
    operation: "open",
    reason: "Neither a regular file nor a block device",
  });
}

function lock(file: Deno.FsFile & TryLock, path: string, readOnly: boolean): void {
  // Deno 2.4 can only wait for a lock; an image that hangs is worse than one without a lock.
  if (file.tryLockSync === undefined || file.tryLockSync(!readOnly)) return;
  throw lockedError(path, readOnly);
}

/** Deno gives nobody the descriptor of a file, so the lock has one of its own. */
function lockAsQemu(path: string, readOnly: boolean, { dev, ino }: Deno.FileInfo): FileLock | null {
  if (libcProblem() !== null) return null;
  let lock: ReturnType<typeof FileLock.acquireByName>;
  try {
    lock = FileLock.acquireByName(path, imageLockWish(readOnly));
  } catch (error) {
    // A libc that is not glibc: no lock is better than no image.
    if (error instanceof HostUnavailable) return null;
    throw error;
  }
  if (!(lock instanceof FileLock)) throw lockedError(path, readOnly, lock.reason);
  // The name may stand for another file by now, which is not ours to lock.
  if (isNameOf(path, dev, ino)) return lock;
  lock.release();
  return null;
}

function isNameOf(path: string, dev: number, ino: number | null): boolean {
  try {
    const now = Deno.statSync(path);
    return now.dev === dev && now.ino === ino;
  } catch {
    return false;
  }
}

/** What the user can do about a failure to open a file. */
export function openHint(error: unknown, path: string, readOnly: boolean): string | undefined {
  if (error instanceof BlockError) return error.hint;
  const { kind, reason } = BlockError.from(error, { path, operation: "open" });
  switch (kind) {
    case "not-capable": {
      const flags = readOnly ? `--allow-read=${path}` : `--allow-read=${path} --allow-write=${path}`;
      // Deno gives what is under /dev, /proc and /sys only to those who may do everything.
      const wanted = (error as Error).message.includes("all access") ? "--allow-all" : flags;
      return `run again with ${wanted} (right after 'deno run')`;
    }
    case "not-permitted":
      if (reason !== "Permission denied") return readOnly ? undefined : "give -r to read only";
      return readOnly
        ? "the file's mode does not let you read it"
        : "the file's mode does not let you read and write it; -r needs reading only";
    case "not-found":
      return `check the name; 'mem:64M' attaches a disk in memory`;
  }
}
