/**
 * Linux's fallocate(2), which Deno's file API lacks: holes in files. Used only where the right to call foreign functions
 * was given already; nobody is asked for it, and nothing is loaded before the first hole.
 *
 * @module
 */

import { EINTR, ENODEV, ENOSYS, EOPNOTSUPP } from "./errno.ts";
import { close, FALLOC_FL, fstat, lastErrno, type Libc, libc, libcProblem, O, open } from "./libc.ts";

/** What to do with a range of a file. */
export type HoleMode = "punch" | "zero";

// Keep the size and take the space away; or make zeros of it, with the space, and extend the file.
const MODES: Readonly<Record<HoleMode, number>> = {
  punch: FALLOC_FL.KEEP_SIZE | FALLOC_FL.PUNCH_HOLE,
  zero: FALLOC_FL.ZERO_RANGE,
};

/** Not supported by the file system, no such call, or no such device: trying again makes no sense. */
const NEVER = [EOPNOTSUPP, ENOSYS, ENODEV];

/** Whether holes can be punched: on Linux, with the right to call foreign functions. */
export function canPunchHoles(): boolean {
  return permitted ??= libcProblem() === null;
}

let permitted: boolean | undefined;

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
    if (!canPunchHoles()) return null;
    let descriptor = -1;
    try {
      descriptor = open(path, O.RDWR);
      if (fstat(descriptor).identity === `${identity.dev}:${identity.ino}`) return new HolePuncher(libc(), descriptor);
    } catch {
      // It can't be opened, or there is no such libc: holes are a courtesy.
    }
    if (descriptor >= 0) close(descriptor);
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
      const error = lastErrno();
      if (error !== EINTR) return NEVER.includes(error) ? "never" : "failed";
    }
  }

  /** Gives the descriptor back. */
  close(): void {
    close(this.#descriptor);
  }
}
