/**
 * The prompt on a terminal: history in memory, and completion of command names.
 *
 * @module
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { allCommands, findCommand } from "./registry.ts";
import { runLine } from "./run.ts";
import type { Session } from "./session.ts";

/** What is shown when a line is awaited. */
export const PROMPT = "vblk> ";

/**
 * Reads lines from the terminal and runs them until `quit` or the end of input.
 *
 * @returns whether all of them succeeded
 */
export async function runPrompt(session: Session): Promise<boolean> {
  // Node's readline asks the environment for TERM, for which Deno before 2.9 wants a permission. It gets none to ask.
  Object.defineProperty(process, "env", { value: {}, configurable: true });
  const terminal = createInterface({ input: process.stdin, output: process.stdout, prompt: PROMPT, completer });
  let good = true;
  let running = false;
  let interrupted = false;
  terminal.on("SIGINT", () => {
    // A command can't be cut short, but whoever presses ctrl-C does not want to wait for it: as a signal would.
    if (running) Deno.exit(130);
    interrupted = true;
    terminal.close();
  });
  terminal.prompt();
  for await (const line of terminal) {
    // A line that was typed before may still come.
    if (interrupted) break;
    running = true;
    good = await runLine(session, line, null) && good;
    running = false;
    if (session.quitting) break;
    terminal.prompt();
  }
  terminal.close();
  // End of input leaves the cursor behind the prompt.
  if (!session.quitting) session.output.out([""]);
  return good;
}

/** Completes the name of a command; after `help`, its argument. */
export function completer(line: string): [matches: string[], typed: string] {
  const [, before, typed] = /^(\s*(?:(?:help|\?)\s+)?)(\S*)$/.exec(line) ?? [];
  if (before === undefined) return [[], line];
  const names = allCommands().map(({ name }) => name).filter((name) => name.startsWith(typed));
  // A whole name needs only the space that its arguments begin after.
  const complete = names.length === 1 && findCommand(names[0])?.args !== undefined ? [`${names[0]} `] : names;
  return [complete, typed];
}
