/**
 * Runs one line of the command language.
 *
 * @module
 */

import { type Command, CommandError, type Invocation, type Result } from "./command.ts";
import { checkDevice, failureText } from "./failures.ts";
import { findCommand, suggestCommand } from "./registry.ts";
import { jsonLine } from "./report.ts";
import type { Session } from "./session.ts";
import { splitWords, type Word } from "./words.ts";

/** Where a line came from: `disk.vblk:3`, `-c 2`; `null` for a prompt, where the line is still in sight. */
export type Origin = string | null;

/**
 * Runs a line.
 *
 * @returns whether it succeeded; an empty line does
 */
export async function runLine(session: Session, line: string, origin: Origin): Promise<boolean> {
  const words = splitWords(line);
  if (words.length === 0) return true;
  const { output, json } = session;
  const name = words[0].text;
  try {
    const result = await invoke(session, words);
    const failed = result.failure !== undefined;
    output.out(json ? [jsonLine(name, result.json, failed ? { error: result.failure } : {})] : result.text);
    if (failed && origin !== null) output.err([located(origin, words[0], result.failure!)]);
    return !failed;
  } catch (cause) {
    const error = asCommandError(cause, name);
    output.out(json ? [jsonLine(name, { error: error.message })] : error.text);
    report(session, error, words[error.word] ?? words[0], origin);
    return false;
  }
}

async function invoke(session: Session, words: readonly Word[]): Promise<Result> {
  const name = words[0].text;
  const command = findCommand(name);
  if (command === undefined) {
    const near = suggestCommand(name);
    throw new CommandError(`command "${name}" not found`, {
      stream: "stderr",
      hint: near === undefined ? "'help' lists them all" : `did you mean "${near}"?`,
    });
  }
  if (!command.withoutImage && !session.isOpen) {
    throw new CommandError("no file open, try 'help open'", { stream: "stderr" });
  }
  if (!command.goesOn) session.unplug();
  checkCount(command, words);
  if (command.writes && session.readOnly) throw new CommandError("Block node is read-only", { stream: "stderr" });
  if (command.sends) checkDevice(session);
  const invocation: Invocation = { session, command, words };
  return await command.run(invocation);
}

function checkCount({ count: [least, most] = [0, 0] }: Command, words: readonly Word[]): void {
  const given = words.length - 1;
  if (given >= least && given <= most) return;
  const expected = most === Infinity
    ? `at least ${least} arguments`
    : least === most
    ? `${least} arguments`
    : `between ${least} and ${most} arguments`;
  const message = `bad argument count ${given} to ${words[0].text}, expected ${expected}`;
  throw new CommandError(message, { stream: "stderr", word: given > most ? most + 1 : 0 });
}

/** What is no `CommandError` failed on the way: in the guest, or the host. A bug of ours is thrown on. */
function asCommandError(cause: unknown, name: string): CommandError {
  if (cause instanceof CommandError) return cause;
  const text = failureText(cause);
  if (text !== null) return new CommandError(`${name} failed: ${text}`);
  // Options that make no sense together with this image, and a driver that gave up.
  if (cause instanceof RangeError || (cause as Error)?.name === "ProbeError") {
    return new CommandError(`${name} failed: ${(cause as Error).message}`, { stream: "stderr" });
  }
  throw cause;
}

function report({ output, json }: Session, error: CommandError, word: Word, origin: Origin): void {
  const lines: string[] = [];
  const shown = error.stream === "stdout" && !json;
  if (origin !== null) lines.push(located(origin, word, error.message));
  else if (!shown) lines.push(error.message);
  if (error.hint !== undefined) lines.push(`hint: ${error.hint}`);
  output.err(lines);
}

function located(origin: string, word: Word, message: string): string {
  return `vblk: ${origin}:${word.column}: ${message}`;
}
