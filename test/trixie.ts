/**
 * Programs of Debian 13 on any machine: QEMU 10 with libblkio, a front-end of vhost-user-blk without a VM. `.ci/trixie`
 * unpacks them into a folder, and they run from there through the dynamic linker that came with them, on the host's
 * own paths.
 */

import { existsSync } from "@std/fs/exists";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { missing, type Requirement } from "./requires.ts";

/** What `.ci/trixie` unpacks and this project uses. */
export type TrixieProgram = "qemu-img" | "qemu-io" | "qemu-storage-daemon" | "qemu-system-x86_64" | "fio";

/** How to start a program, for `Deno.Command`. */
export interface TrixieCommand {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const LIBRARIES = "usr/lib/x86_64-linux-gnu";

/** The folder of Debian 13; what `.ci/trixie` makes, in the place where it makes it. */
export function trixieRoot(): string {
  const variable = (name: string) => Deno.env.get(name) || undefined;
  const caches = variable("XDG_CACHE_HOME") ?? join(variable("HOME") ?? "/tmp", ".cache");
  return join(variable("VBLK_CI_CACHE") ?? join(caches, "vblk-ci"), "trixie");
}

/** Ignores a test where the folder was not made. */
export function requiresTrixie(): Requirement {
  return missing(isThere() ? "" : "Debian 13's QEMU (made by .ci/trixie)");
}

/** Makes the folder if there is none; says what went wrong by an error. */
export async function makeTrixie(): Promise<void> {
  if (isThere()) return;
  console.log("Debian 13's QEMU is fetched once, by .ci/trixie ...");
  const script = fileURLToPath(new URL("../.ci/trixie", import.meta.url));
  const { success, stderr } = await new Deno.Command(script, { stdout: "null", stderr: "piped" }).output();
  if (!success) throw new Error(`.ci/trixie: ${new TextDecoder().decode(stderr).trim()}`);
}

/** How to run one of the programs with these arguments. */
export function trixie(program: TrixieProgram, ...args: readonly string[]): TrixieCommand {
  const root = trixieRoot();
  const libraries = join(root, LIBRARIES);
  // An emulator looks for its firmware beside itself, and takes the linker's place for its own.
  const folders = program === "qemu-system-x86_64" ? ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] : [];
  const firmware = folders.flatMap((folder) => ["-L", join(root, folder)]);
  return {
    command: join(root, "usr/lib64/ld-linux-x86-64.so.2"),
    args: [
      ...["--library-path", `${libraries}:${join(libraries, "ceph")}`, join(root, "usr/bin", program)],
      ...firmware,
      ...args,
    ],
    env: { QEMU_MODULE_DIR: join(libraries, "qemu") },
  };
}

/** The option that makes QEMU's programs a front-end of the back-end at a socket. */
export function frontEnd(socket: string, more = ""): string {
  return `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on${more}`;
}

function isThere(): boolean {
  return existsSync(join(trixieRoot(), "made-by"), { isFile: true });
}
