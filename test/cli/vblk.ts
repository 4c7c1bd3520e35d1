/** Runs cli.ts as a process of its own, with just the permissions that users are told to give. */

import { fileURLToPath } from "node:url";

/** Path of cli.ts. */
export const CLI: string = fileURLToPath(new URL("../../cli.ts", import.meta.url));

/** How to run it. */
export interface RunOptions {
  /** What comes on standard input. */
  input?: string;
  /** Flags for `deno run`. */
  permissions?: readonly string[];
  cwd?: string;
}

/** What came of it. */
export interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `vblk` with the given arguments. */
export async function vblk(args: readonly string[], options: RunOptions = {}): Promise<Run> {
  const { input = "", permissions = ["--allow-read", "--allow-write"], cwd } = options;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...permissions, CLI, ...args],
    cwd,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    // Nothing of the caller's: a variable that vblk needed would be a permission that users had to give.
    clearEnv: true,
    env: {
      NO_COLOR: "1",
      DENO_NO_UPDATE_CHECK: "1",
      DENO_DIR: Deno.env.get("DENO_DIR") ?? "",
      HOME: Deno.env.get("HOME") ?? "",
    },
  }).spawn();
  const writer = child.stdin.getWriter();
  const fed = writer.write(new TextEncoder().encode(input)).then(() => writer.close()).catch(() => {});
  const [{ code, stdout, stderr }] = await Promise.all([child.output(), fed]);
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/** Runs `action` with the path of a folder that is removed afterwards. */
export async function inFolder<T>(action: (folder: string) => Promise<T>): Promise<T> {
  const folder = await Deno.makeTempDir();
  try {
    return await action(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}
