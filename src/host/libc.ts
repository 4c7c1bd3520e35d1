/**
 * libc through FFI: one table, loaded when first needed, and wrappers that throw `HostError`. Linux on x86_64 and
 * aarch64, where all structures used here have one layout but for a few fields, which are named.
 *
 * Nobody is asked for the right to call foreign functions: who lacks it gets `HostUnavailable`, which says so.
 *
 * Integers that may need 64 bits are `i64` and given as BigInt: a number there costs ten times as much. Results that
 * fit are `i32` for the same reason: Linux moves less than 2 GiB in one call.
 *
 * @module
 */

import { EINTR, HostError } from "./errno.ts";

const FD_AND_BUFFER = ["i32", "buffer", "usize", "i64"] as const;
const FD_AND_VECTOR = ["i32", "pointer", "i32", "i64"] as const;

const SYMBOLS = {
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  read: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  write: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  pread: { parameters: FD_AND_BUFFER, result: "i32" },
  pwrite: { parameters: FD_AND_BUFFER, result: "i32" },
  preadv: { parameters: FD_AND_VECTOR, result: "i32" },
  pwritev: { parameters: FD_AND_VECTOR, result: "i32" },
  pwritev2: { parameters: ["i32", "pointer", "i32", "i64", "i32"], result: "i32" },
  preadv2: { parameters: ["i32", "pointer", "i32", "i64", "i32"], result: "i32" },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  fdatasync: { parameters: ["i32"], result: "i32" },
  fchmod: { parameters: ["i32", "u32"], result: "i32" },
  chmod: { parameters: ["buffer", "u32"], result: "i32" },
  unlink: { parameters: ["buffer"], result: "i32" },
  flock: { parameters: ["i32", "i32"], result: "i32" },
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  mmap: { parameters: ["pointer", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  munmap: { parameters: ["pointer", "usize"], result: "i32" },
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  listen: { parameters: ["i32", "i32"], result: "i32" },
  accept4: { parameters: ["i32", "pointer", "pointer", "i32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  sendmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  recvmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  poll: { parameters: ["buffer", "u64", "i32"], result: "i32" },
  getrusage: { parameters: ["i32", "buffer"], result: "i32" },
  sysconf: { parameters: ["i32"], result: "i64" },
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  fcntlStructure: { name: "fcntl", parameters: ["i32", "i32", "buffer"], result: "i32" },
  // No functions of their own: fstat before glibc 2.33, io_uring_* ever. The kernel looks at the low half of what it
  // knows to be an int, so those may be i32.
  syscallStat: { name: "syscall", parameters: ["i64", "i32", "buffer"], result: "i32" },
  syscallStatAt: { name: "syscall", parameters: ["i64", "i32", "buffer", "buffer", "i32"], result: "i32" },
  syscallSetup: { name: "syscall", parameters: ["i64", "u32", "buffer"], result: "i32" },
  syscallRegister: { name: "syscall", parameters: ["i64", "i32", "u32", "buffer", "u32"], result: "i32" },
  // The one call that is made all the time: its two whole words are given as pointers, which cost nothing.
  syscallEnter: {
    name: "syscall",
    parameters: ["pointer", "i32", "u32", "u32", "u32", "pointer", "pointer"],
    result: "i32",
  },
  __errno_location: { parameters: [], result: "pointer" },
} as const;

/** The functions of libc, as FFI gives them. */
export type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

const isArm = Deno.build.arch === "aarch64";

/** Numbers that the two processors do not share. */
const NUMBER = isArm ? { fstat: 80n, newfstatat: 79n } : { fstat: 5n, newfstatat: 262n };

/** Flags of open(2). */
export const O = {
  RDONLY: 0,
  RDWR: 2,
  CREAT: 0x40,
  EXCL: 0x80,
  NONBLOCK: 0x800,
  CLOEXEC: 0x80000,
  DIRECT: isArm ? 0x10000 : 0x4000,
} as const;

/** Flags of fallocate(2). */
export const FALLOC_FL = { KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 0x10 } as const;

/** A flag of preadv2(2) and pwritev2(2): fail rather than wait for the disk. */
export const RWF_NOWAIT = 8;

const SC_PAGESIZE = 30;
const SEEK_END = 2;
const STAT_BYTES = 256;
const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;
const F_SETFD = 2;
const F_GETFL = 3;
const F_SETFL = 4;
const FD_CLOEXEC = 1;

/** What is missing for calls to the operating system, in one sentence. */
export class HostUnavailable extends Error {
  /** Always `"HostUnavailable"`: what a stack trace begins with. */
  override readonly name = "HostUnavailable";
  /** What the user can do about it, where there is something. */
  readonly hint: string | undefined;

  /** Takes what is missing. */
  constructor(problem: string, hint?: string, options?: ErrorOptions) {
    super(problem, options);
    this.hint = hint;
  }
}

let symbols: Libc | undefined;
/** The calling thread's errno: each Worker has its own copy of this module. */
let errnoCell: Int32Array | undefined;
let pageBytes = 0;

/** Why libc can't be called here, or `null`. Asks nobody and loads nothing. */
export function libcProblem(): HostUnavailable | null {
  const { os, arch } = Deno.build;
  if (os !== "linux") return new HostUnavailable(`This needs Linux, and here is ${os}`);
  if (arch !== "x86_64" && arch !== "aarch64") {
    return new HostUnavailable(`This needs an x86_64 or aarch64 processor, and here is ${arch}`);
  }
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") {
    return new HostUnavailable(
      "Deno was not given the permission to call libc (FFI)",
      "run again with --allow-ffi (right after 'deno run')",
    );
  }
  return null;
}

/**
 * The functions of libc.
 *
 * @throws HostUnavailable
 */
export function libc(): Libc {
  if (symbols !== undefined) return symbols;
  const problem = libcProblem();
  if (problem !== null) throw problem;
  try {
    symbols = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
  } catch (cause) {
    // musl, or a very old glibc.
    throw new HostUnavailable("libc.so.6 of glibc 2.28 or later is needed", undefined, { cause });
  }
  return symbols;
}

/** The number that the last call of this thread failed with. */
export function lastErrno(): number {
  errnoCell ??= new Int32Array(Deno.UnsafePointerView.getArrayBuffer(libc().__errno_location()!, 4));
  return errnoCell[0];
}

/** Makes a call until no signal interrupts it; a negative result becomes a `HostError`. */
export function check(call: string, action: () => number, subject?: string): number {
  for (;;) {
    const result = action();
    if (result >= 0) return result;
    const errno = lastErrno();
    if (errno !== EINTR) throw new HostError(call, errno, subject);
  }
}

/** A path as C wants it. */
export function pathBytes(path: string): Uint8Array<ArrayBuffer> {
  if (path.includes("\0")) throw new HostError("open", 22, path);
  return new TextEncoder().encode(`${path}\0`);
}

/** Size of a page, in bytes. */
export function pageSizeBytes(): number {
  return pageBytes ||= Number(libc().sysconf(SC_PAGESIZE));
}

/** Opens a file; it is closed when another program is started. */
export function open(path: string, flags: number, mode = 0o600): number {
  const name = pathBytes(path);
  return check("open", () => libc().open(name, flags | O.CLOEXEC, mode), path);
}

/** Closes a descriptor. Never tried again: on Linux it is closed even when a signal came. */
export function close(descriptor: number): void {
  libc().close(descriptor);
}

/** Reads at an offset; returns how many bytes. */
export function pread(descriptor: number, into: Uint8Array<ArrayBuffer>, offset: number): number {
  return check("pread", () => libc().pread(descriptor, into, BigInt(into.byteLength), BigInt(offset)));
}

/** Writes at an offset; returns how many bytes. */
export function pwrite(descriptor: number, from: Uint8Array<ArrayBuffer>, offset: number): number {
  return check("pwrite", () => libc().pwrite(descriptor, from, BigInt(from.byteLength), BigInt(offset)));
}

/** Size of a file or block device, in bytes. Moves the file's position. */
export function sizeOf(descriptor: number): number {
  const size = Number(libc().lseek(descriptor, 0n, SEEK_END));
  if (size < 0) throw new HostError("lseek", lastErrno());
  return size;
}

/** Changes the size of a file. */
export function ftruncate(descriptor: number, sizeBytes: number): void {
  check("ftruncate", () => libc().ftruncate(descriptor, BigInt(sizeBytes)));
}

/** What is known of a file. */
export interface Status {
  /** Device and inode: the same for all names of one file. */
  readonly identity: string;
  /** What kind of file it is; `"anonymous"` is what has no type: eventfds, epolls, timers. */
  readonly kind: "file" | "block" | "socket" | "anonymous" | "other";
  /** Its permission bits. */
  readonly mode: number;
  /** In bytes; 0 for a block device. */
  readonly sizeBytes: number;
  /** What it takes on the disk, in bytes. */
  readonly allocatedBytes: number;
}

const KINDS: Readonly<Record<number, Status["kind"]>> = {
  0o10: "file",
  0o06: "block",
  0o14: "socket",
  0: "anonymous",
};

function decodeStatus(bytes: Uint8Array<ArrayBuffer>): Status {
  const view = new DataView(bytes.buffer);
  const mode = view.getUint32(isArm ? 16 : 24, true);
  return {
    identity: `${view.getBigUint64(0, true)}:${view.getBigUint64(8, true)}`,
    kind: KINDS[mode >>> 12] ?? "other",
    mode: mode & 0o7777,
    sizeBytes: Number(view.getBigInt64(48, true)),
    allocatedBytes: Number(view.getBigInt64(64, true)) * 512,
  };
}

/** What an open file is. */
export function fstat(descriptor: number): Status {
  const bytes = new Uint8Array(STAT_BYTES);
  check("fstat", () => libc().syscallStat(NUMBER.fstat, descriptor, bytes));
  return decodeStatus(bytes);
}

/** What lies at a path, itself and not what it may point to. */
export function lstat(path: string): Status {
  const bytes = new Uint8Array(STAT_BYTES);
  const name = pathBytes(path);
  check("lstat", () => libc().syscallStatAt(NUMBER.newfstatat, AT_FDCWD, name, bytes, AT_SYMLINK_NOFOLLOW), path);
  return decodeStatus(bytes);
}

/** Removes a name. */
export function unlink(path: string): void {
  const name = pathBytes(path);
  check("unlink", () => libc().unlink(name), path);
}

/** A file in memory, without a name, of `sizeBytes`. The name given is for people who look into /proc. */
export function memfdCreate(name: string, sizeBytes: number): number {
  const bytes = pathBytes(name);
  const MFD_CLOEXEC = 1;
  const descriptor = check("memfd_create", () => libc().memfd_create(bytes, MFD_CLOEXEC));
  try {
    ftruncate(descriptor, sizeBytes);
    return descriptor;
  } catch (error) {
    close(descriptor);
    throw error;
  }
}

/** Keeps a descriptor from programs that are started later. */
export function setCloseOnExec(descriptor: number): void {
  check("fcntl", () => libc().fcntl(descriptor, F_SETFD, FD_CLOEXEC));
}

/** Makes another descriptor of the same open file. */
export function duplicate(descriptor: number): number {
  const F_DUPFD_CLOEXEC = 1030;
  return check("fcntl", () => libc().fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
}

/** Whether operations on a descriptor fail where they would wait. */
export function isNonBlocking(descriptor: number): boolean {
  return (check("fcntl", () => libc().fcntl(descriptor, F_GETFL, 0)) & O.NONBLOCK) !== 0;
}

/** Makes operations on a descriptor wait, or fail where they would wait: for everybody who shares it. */
export function setNonBlocking(descriptor: number, on: boolean): void {
  const flags = check("fcntl", () => libc().fcntl(descriptor, F_GETFL, 0));
  check("fcntl", () => libc().fcntl(descriptor, F_SETFL, on ? flags | O.NONBLOCK : flags & ~O.NONBLOCK));
}

/** Takes or drops a flock(2); returns whether nobody was in the way. */
export function tryFlock(descriptor: number, exclusive: boolean): boolean {
  const LOCK_NB = 4;
  if (libc().flock(descriptor, (exclusive ? 2 : 1) | LOCK_NB) === 0) return true;
  const errno = lastErrno();
  if (errno === 11) return false;
  throw new HostError("flock", errno);
}

/** What poll(2) may wait for. */
export const POLL = { IN: 1, OUT: 4, ERR: 8, HUP: 0x10 } as const;

/**
 * Waits for one descriptor.
 *
 * @param timeoutMs -1 waits for ever
 * @returns what happened, as `POLL` bits; 0 when nothing did
 */
export function poll(descriptor: number, events: number, timeoutMs: number): number {
  const pollfd = new Int32Array([descriptor, events]);
  check("poll", () => libc().poll(pollfd, 1n, timeoutMs));
  return pollfd[1] >>> 16;
}
