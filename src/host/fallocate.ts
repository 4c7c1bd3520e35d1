/**
 * Linux's fallocate(2), which Deno's file API lacks: holes in files. Used only where the right to call foreign functions
 * was given already; nobody is asked for it, and nothing is loaded before the first hole.
 *
 * @module
 */

/** What to do with a range of a file. */
export type HoleMode = "punch" | "zero";

// fallocate(2): keep the size and take the space away; or make zeros of it, with the space, and extend the file.
const MODES: Readonly<Record<HoleMode, number>> = { punch: 0x01 | 0x02, zero: 0x10 };

const O_RDWR = 0x2;
const O_CLOEXEC = 0x80000;
/** Not supported by the file system, no such call, or no such device: trying again makes no sense. */
const NEVER = [95, 38, 19];
const EINTR = 4;
/** Larger than the structure that fstat(2) fills. It starts with device and inode, on both processors. */
const STAT_BYTES = 512;

const SYMBOLS = {
  open: { parameters: ["buffer", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  // Since glibc 2.33; before that it is no function of its own.
  fstat: { parameters: ["i32", "buffer"], result: "i32", optional: true },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  __errno_location: { parameters: [], result: "pointer" },
} as const;

type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

let libc: Libc | null | undefined;

/** Whether holes can be punched: on Linux, with the right to call foreign functions. */
export function canPunchHoles(): boolean {
  return permitted ??= Deno.build.os === "linux" && ["x86_64", "aarch64"].includes(Deno.build.arch) &&
    Deno.permissions.querySync({ name: "ffi" }).state === "granted";
}

let permitted: boolean | undefined;

function load(): Libc | null {
  if (libc !== undefined) return libc;
  try {
    libc = canPunchHoles() ? Deno.dlopen("libc.so.6", SYMBOLS).symbols : null;
  } catch {
    libc = null;
  }
  return libc;
}

/** A second way to an open file, for what the first one can't do. */
export class HolePuncher {
  readonly #libc: Libc;
  readonly #descriptor: number;

  private constructor(libc: Libc, descriptor: number) {
    this.#libc = libc;
    this.#descriptor = descriptor;
  }

  /**
   * Opens the file again.
   *
   * @param identity device and inode that it must have: its name may stand for another file by now
   * @returns `null` where that can't be done
   */
  static open(path: string, identity: { dev: number; ino: number | null }): HolePuncher | null {
    const libc = load();
    if (libc === null || identity.ino === null || path.includes("\0")) return null;
    const descriptor = libc.open(new TextEncoder().encode(`${path}\0`), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return null;
    const stat = new BigUint64Array(STAT_BYTES / 8);
    const isSame = libc.fstat?.(descriptor, new Uint8Array(stat.buffer)) === 0 &&
      stat[0] === BigInt(identity.dev) && stat[1] === BigInt(identity.ino);
    if (isSame) return new HolePuncher(libc, descriptor);
    libc.close(descriptor);
    return null;
  }

  /**
   * Makes a range read as zeros.
   *
   * @returns `done`; `failed`: not this time; `never`: the file system can't
   */
  apply(mode: HoleMode, offset: number, lengthBytes: number): "done" | "failed" | "never" {
    for (;;) {
      if (this.#libc.fallocate(this.#descriptor, MODES[mode], BigInt(offset), BigInt(lengthBytes)) === 0) return "done";
      const error = new Deno.UnsafePointerView(this.#libc.__errno_location()!).getInt32();
      if (error !== EINTR) return NEVER.includes(error) ? "never" : "failed";
    }
  }

  close(): void {
    this.#libc.close(this.#descriptor);
  }
}
