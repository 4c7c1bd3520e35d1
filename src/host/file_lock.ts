/**
 * QEMU's image locks: bytes of the file, locked per open file description (fcntl's F_OFD_SETLK), so that a QEMU and a
 * vblk find each other. One byte for each thing that somebody does with an image, from 100 on, and one for each that
 * somebody wants nobody else to do, from 200 on. All are shared locks: the meaning is in which bytes are locked.
 *
 * @module
 */

import { EAGAIN, EINTR, HostError } from "./errno.ts";
import { HostUnavailable, libcProblem, O, pathBytes } from "./libc.ts";

/** Of libc no more than this: to load all that the rest of vblk calls takes as long as a short command. */
const SYMBOLS = {
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  fcntl: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  __errno_location: { parameters: [], result: "pointer" },
} as const;

let symbols: Deno.DynamicLibrary<typeof SYMBOLS>["symbols"] | undefined;

function calls(): Deno.DynamicLibrary<typeof SYMBOLS>["symbols"] {
  if (symbols !== undefined) return symbols;
  const problem = libcProblem();
  if (problem !== null) throw problem;
  try {
    return symbols = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
  } catch (cause) {
    throw new HostUnavailable("libc.so.6 of glibc 2.28 or later is needed", undefined, { cause });
  }
}

function lastErrno(): number {
  return new Deno.UnsafePointerView(calls().__errno_location()!).getInt32();
}

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const EACCES = 13;

const USED_BASE = 100;
const REFUSED_BASE = 200;

/** What somebody does with an image, in QEMU's words and order. */
export const PERMISSIONS = ["consistent read", "write", "write unchanged", "resize"] as const;

/** One of them. */
export type Permission = typeof PERMISSIONS[number];

/** What a lock is for. */
export interface LockWish {
  /** What the holder does. */
  readonly uses: readonly Permission[];
  /** What nobody else may do meanwhile. */
  readonly refuses: readonly Permission[];
}

/** Why a lock could not be had. */
export interface LockRefusal {
  /** What was in the way. */
  readonly permission: Permission;
  /** Whether somebody does what the wish refuses (rather than refusing what the wish uses). */
  readonly shared: boolean;
  /** QEMU's words: `Failed to get "write" lock`. */
  readonly reason: string;
}

/** Held on an open file. It goes with the last descriptor of the open file description, or with `release`. */
export class FileLock {
  readonly #descriptor: number;
  /** Whether the descriptor is only there for the lock. */
  readonly #owned: boolean;
  #held = true;

  private constructor(descriptor: number, owned: boolean) {
    this.#descriptor = descriptor;
    this.#owned = owned;
  }

  /**
   * Takes a lock, or says who is in the way. On a file system without locks everybody gets one.
   *
   * @throws HostError
   */
  static acquire(descriptor: number, wish: LockWish): FileLock | LockRefusal {
    return FileLock.#acquire(new FileLock(descriptor, false), wish);
  }

  /**
   * Takes a lock on a file by its name, with a descriptor of its own: for a file that is open in a way which gives none.
   * Locks belong to an open file description, so closing the other one changes nothing.
   *
   * @throws HostError, HostUnavailable
   */
  static acquireByName(path: string, wish: LockWish): FileLock | LockRefusal {
    const name = pathBytes(path);
    for (;;) {
      const descriptor = calls().open(name, O.RDONLY | O.NONBLOCK | O.CLOEXEC, 0);
      if (descriptor >= 0) return FileLock.#acquire(new FileLock(descriptor, true), wish);
      const errno = lastErrno();
      if (errno !== EINTR) throw new HostError("open", errno, path);
    }
  }

  static #acquire(lock: FileLock, wish: LockWish): FileLock | LockRefusal {
    try {
      const refusal = lock.#take(wish);
      if (refusal !== null) lock.release();
      return refusal ?? lock;
    } catch (error) {
      lock.release();
      if (error instanceof HostError && WITHOUT_LOCKS.includes(error.code)) return lock;
      throw error;
    }
  }

  /** Gives it back. */
  release(): void {
    if (!this.#held) return;
    this.#held = false;
    if (this.#owned) {
      calls().close(this.#descriptor);
      return;
    }
    for (let i = 0; i < PERMISSIONS.length; i++) {
      for (const base of [USED_BASE, REFUSED_BASE]) {
        calls().fcntl(this.#descriptor, F_OFD_SETLK, structure(F_UNLCK, base + i));
      }
    }
  }

  /** First the own bytes, then a look at those of others: of two who come at once at least one sees the other. */
  #take({ uses, refuses }: LockWish): LockRefusal | null {
    for (const permission of uses) {
      if (!this.#set(USED_BASE + PERMISSIONS.indexOf(permission))) return refusal(permission, true);
    }
    for (const permission of refuses) {
      if (!this.#set(REFUSED_BASE + PERMISSIONS.indexOf(permission))) return refusal(permission, false);
    }
    for (const permission of uses) {
      if (this.#isLocked(REFUSED_BASE + PERMISSIONS.indexOf(permission))) return refusal(permission, false);
    }
    for (const permission of refuses) {
      if (this.#isLocked(USED_BASE + PERMISSIONS.indexOf(permission))) return refusal(permission, true);
    }
    return null;
  }

  #set(offset: number): boolean {
    if (calls().fcntl(this.#descriptor, F_OFD_SETLK, structure(F_RDLCK, offset)) === 0) return true;
    const errno = lastErrno();
    if (errno === EAGAIN || errno === EACCES) return false;
    throw new HostError("fcntl", errno);
  }

  /** Whether anybody else holds a lock on a byte. */
  #isLocked(offset: number): boolean {
    const bytes = structure(F_WRLCK, offset);
    if (calls().fcntl(this.#descriptor, F_OFD_GETLK, bytes) !== 0) throw new HostError("fcntl", lastErrno());
    return new DataView(bytes.buffer).getInt16(0, true) !== F_UNLCK;
  }
}

/** What fcntl(2) says where there are no such locks: an old kernel, or a file system that has none. */
const WITHOUT_LOCKS: readonly string[] = ["EINVAL", "ENOLCK", "ENOSYS", "EOPNOTSUPP"];

/** struct flock, for one byte. */
function structure(type: number, offset: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setInt16(0, type, true);
  view.setBigInt64(8, BigInt(offset), true);
  view.setBigInt64(16, 1n, true);
  return bytes;
}

function refusal(permission: Permission, shared: boolean): LockRefusal {
  return { permission, shared, reason: `Failed to get ${shared ? "shared " : ""}"${permission}" lock` };
}
