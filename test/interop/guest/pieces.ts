/**
 * What a Linux guest is made of. `.ci/guest` puts it together; where it has not been run, the tests are ignored by name.
 */

import { existsSync } from "@std/fs/exists";
import { join } from "node:path";
import { libcProblem } from "../../../src/host/libc.ts";
import { ioUringProblem } from "../../../src/host/io_uring.ts";
import { missing, type Requirement, requires } from "../../requires.ts";

/** The files of a guest. */
export interface GuestPieces {
  readonly kernel: string;
  readonly initramfs: string;
  /** An ext4 disk with the programs that run in the guest. */
  readonly programs: string;
}

/** Where they are, or would be: in the folder where CI keeps what it makes and fetches. */
export function guestPieces(): GuestPieces {
  const { env } = Deno;
  const cache = env.get("VBLK_CI_CACHE") ??
    join(env.get("XDG_CACHE_HOME") ?? join(env.get("HOME") ?? "/tmp", ".cache"), "vblk-ci");
  const folder = join(cache, "guest");
  return {
    kernel: join(folder, "vmlinuz"),
    initramfs: join(folder, "initramfs"),
    programs: join(folder, "programs"),
  };
}

/** Ignores a test where a Linux guest cannot be had, or a program that is named. */
export function requiresGuest(...programs: string[]): Requirement {
  const present = requiresServing("qemu-system-x86_64", "qemu-img", "e2fsck", ...programs);
  if (present.ignore) return present;
  const files = Object.values(guestPieces()).every((path) => existsSync(path, { isFile: true }));
  return missing(files ? "" : "a Linux guest (made by .ci/guest)");
}

/** Ignores a test where `vblk serve` cannot run, or a program that is named. */
export function requiresServing(...programs: string[]): Requirement {
  const problem = libcProblem() ?? ioUringProblem();
  if (problem !== null) return missing(problem.message);
  return requires(...programs);
}
