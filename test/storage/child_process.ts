/**
 * Runs `child.ts` in a process of its own.
 */

import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("./child.ts", import.meta.url));

/** The command line of a child; `permissions` are Deno's flags. */
export function childCommand(args: readonly string[], permissions: readonly string[] = ["--allow-all"]): string[] {
  return [Deno.execPath(), "run", "--quiet", "--no-prompt", ...permissions, PROGRAM, ...args];
}

/** A child that prints one line and then waits for its standard input to end. */
export class Child implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  #ended = false;

  constructor(args: readonly string[], permissions?: readonly string[]) {
    const [program, ...rest] = childCommand(args, permissions);
    this.#process = new Deno.Command(program, { args: rest, stdin: "piped", stdout: "piped" }).spawn();
  }

  /** What the child printed, once. */
  async answer(): Promise<unknown> {
    const reader = this.#process.stdout.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      text += value ?? "";
      if (done || text.endsWith("\n")) break;
    }
    await reader.cancel();
    return JSON.parse(text);
  }

  /** Ends the child, and waits for that. */
  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await this.#process.stdin.close();
    await this.#process.status;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.end();
  }
}

/** Runs a child that answers and ends; returns its answer. */
export async function ask(args: readonly string[], permissions?: readonly string[]): Promise<unknown> {
  await using child = new Child(args, permissions);
  return await child.answer();
}
