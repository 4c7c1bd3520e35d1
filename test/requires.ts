/**
 * Tests that need a peer program say so. On a machine without it they are ignored, by name; in CI
 * (`VBLK_REFUSE_SKIPS=1`) they fail, because a test that nobody runs holds nothing.
 */

import { existsSync } from "@std/fs/exists";
import { delimiter, join } from "node:path";

/** The part of `Deno.TestDefinition` that decides whether a test runs. */
export interface Requirement {
  /** True when something is missing. */
  ignore: boolean;
}

/** What was already reported: one line for each thing that is missing, however many tests need it. */
const reported = new Set<string>();

/**
 * Makes a test depend on programs in `PATH`.
 *
 * @example
 * ```ts ignore
 * Deno.test({
 *   name: "a raw image written by vblk reads back in qemu-io",
 *   ...requires("qemu-io", "qemu-img"),
 *   fn() {},
 * });
 * ```
 */
export function requires(...programs: string[]): Requirement {
  return missing(programs.filter((program) => !isInPath(program)).join(", "));
}

/** Decides for a test that lacks `what`, or for one that lacks nothing when it is empty. */
export function missing(what: string): Requirement {
  if (what === "") return { ignore: false };
  if (Deno.env.get("VBLK_REFUSE_SKIPS") === "1") {
    throw new Error(
      `missing: ${what}; install it, or unset VBLK_REFUSE_SKIPS to ignore the tests that need it`,
    );
  }
  if (!reported.has(what)) console.log(`ignoring the tests that need what this machine lacks: ${what}`);
  reported.add(what);
  return { ignore: true };
}

function isInPath(program: string): boolean {
  const folders = (Deno.env.get("PATH") ?? "").split(delimiter);
  return folders.some((folder) => existsSync(join(folder, program), { isFile: true }));
}
