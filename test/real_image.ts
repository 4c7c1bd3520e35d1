/**
 * A disk image that nobody here made: GRUB's rescue disk, which boots from a CD and from a disk alike. It is taken
 * out of Debian's package `grub-rescue-pc` and kept outside the repository.
 *
 * As a program (`deno run -A test/real_image.ts`) it only fetches the image, so that tests find it.
 */

import { existsSync } from "@std/fs/exists";
import { ensureDir } from "@std/fs/ensure-dir";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { missing, type Requirement, requires } from "./requires.ts";

const PACKAGE = "grub-rescue-pc";
const IMAGE = "usr/lib/grub-rescue/grub-rescue-cdrom.iso";

/** The image, for the tests of a module: await it at the top, spread `requirement` into each test. */
export interface RealImage {
  /** Where it is. Tests share it, so they write to a copy. */
  path: string;
  /** Ignores a test on a machine that cannot have the image. */
  requirement: Requirement;
}

/**
 * Finds the image, or downloads it into `VBLK_TEST_CACHE` (by default a folder among the temporary ones).
 *
 * @example
 * ```ts ignore
 * const image = await realImage();
 * Deno.test({
 *   name: "a bootable disk image survives a copy through the ring",
 *   ...image.requirement,
 *   fn() {},
 * });
 * ```
 */
export async function realImage(): Promise<RealImage> {
  const cache = Deno.env.get("VBLK_TEST_CACHE") ?? join(tmpdir(), "vblk-test-cache");
  const path = join(cache, "grub-rescue-cdrom.iso");
  if (existsSync(path, { isFile: true })) return { path, requirement: { ignore: false } };
  const requirement = requires("apt-get", "dpkg-deb");
  if (requirement.ignore) return { path, requirement };
  const why = await download(cache, path);
  return { path, requirement: missing(why === "" ? "" : `Debian's package ${PACKAGE} (${why})`) };
}

/** Returns why the image cannot be had, or nothing once it is at `path`. */
async function download(cache: string, path: string): Promise<string> {
  await ensureDir(cache);
  const folder = await Deno.makeTempDir({ dir: cache });
  try {
    // Without a package list, as in a fresh container, this fails at once; it must not wait for a dead network either.
    const why = await run(folder, "apt-get", "download", "-q", "-o", "Acquire::http::Timeout=10", PACKAGE);
    if (why !== "") return why;
    const [deb] = [...Deno.readDirSync(folder)];
    const failure = await run(folder, "dpkg-deb", "-x", deb.name, ".");
    // A rename, so that another test file that runs now sees the whole image or none.
    if (failure === "") await Deno.rename(join(folder, IMAGE), path);
    return failure;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Runs a program to its end; returns the last thing it said if it failed, or nothing. */
async function run(cwd: string, program: string, ...args: string[]): Promise<string> {
  const { success, stderr } = await new Deno.Command(program, { args, cwd }).output();
  if (success) return "";
  return new TextDecoder().decode(stderr).trim().split("\n").at(-1) || `${program} failed`;
}

if (import.meta.main) {
  const { path, requirement } = await realImage();
  console.log(path);
  if (requirement.ignore) Deno.exit(1);
}
