/**
 * What a Linux guest is made of. `.ci/guest` puts it together; where it has not been run, the tests are ignored by name.
 */

import { existsSync } from "@std/fs/exists";
import { join } from "node:path";
import { libcProblem } from "../../../src/host/libc.ts";
import { ioUringProblem } from "../../../src/host/io_uring.ts";
import { missing, type Requirement, requires } from "../../requires.ts";
import { requiresTrixie, trixie, type TrixieCommand } from "../../trixie.ts";

/** The files of a guest. */
export interface GuestPieces {
  readonly kernel: string;
  readonly initramfs: string;
  /** An ext4 disk with the programs that run in the guest. */
  readonly programs: string;
  /** UEFI for a virtual machine, and the first state of what it remembers. */
  readonly firmware: string;
  readonly variables: string;
}

/**
 * Which QEMU runs a guest: the one that is installed (7.2 with Debian 12), or Debian 13's. They are two front-ends, which
 * say some things in another order, and make rings of another size.
 */
export type Qemu = "installed" | "trixie";

/** All of them. */
export const QEMUS: readonly Qemu[] = ["installed", "trixie"];

/** How to start it. */
export function qemuCommand(version: Qemu): TrixieCommand {
  return version === "trixie" ? trixie("qemu-system-x86_64") : { command: "qemu-system-x86_64", args: [], env: {} };
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
    firmware: join(folder, "firmware"),
    variables: join(folder, "variables"),
  };
}

/** Ignores a test where a Linux guest cannot be had. */
export function requiresGuest(version: Qemu): Requirement {
  const present = requiresQemu(version, "qemu-img", "e2fsck");
  if (present.ignore) return present;
  const { kernel, initramfs, programs: disk } = guestPieces();
  const files = [kernel, initramfs, disk].every((path) => existsSync(path, { isFile: true }));
  return missing(files ? "" : "a Linux guest (made by .ci/guest)");
}

/** Ignores a test where OVMF cannot be had, or a program that is named. */
export function requiresFirmware(version: Qemu, ...programs: string[]): Requirement {
  const present = requiresQemu(version, ...programs);
  if (present.ignore) return present;
  const { firmware, variables } = guestPieces();
  const files = [firmware, variables].every((path) => existsSync(path, { isFile: true }));
  return missing(files ? "" : "OVMF (made by .ci/guest)");
}

/** Ignores a test where `vblk serve` or that QEMU cannot run, or a program that is named. */
export function requiresQemu(version: Qemu, ...programs: string[]): Requirement {
  const present = requiresServing(...version === "installed" ? ["qemu-system-x86_64"] : [], ...programs);
  return present.ignore || version === "installed" ? present : requiresTrixie();
}

/** Ignores a test where `vblk serve` cannot run, or a program that is named. */
export function requiresServing(...programs: string[]): Requirement {
  const problem = libcProblem() ?? ioUringProblem();
  if (problem !== null) return missing(problem.message);
  return requires(...programs);
}
