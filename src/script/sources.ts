/**
 * Where commands come from: `-c`, a script, standard input.
 *
 * @module
 */

import { CommandError } from "./command.ts";
import { runLine } from "./run.ts";
import type { Session } from "./session.ts";

/**
 * Runs the commands that were given with `-c`, in order.
 *
 * @returns whether all of them succeeded
 */
export async function runCommands(session: Session, commands: readonly string[]): Promise<boolean> {
  let good = true;
  for (const [i, command] of commands.entries()) {
    if (session.quitting) break;
    good = await runLine(session, command, `-c ${i + 1}`) && good;
  }
  return good;
}

/**
 * Runs a script: a command a line. A line that begins with `#` is a comment. Errors of reading `lines` are thrown on,
 * but for a line that is too long.
 *
 * @param name for messages
 * @returns whether all of them succeeded
 */
export async function runScript(
  session: Session,
  name: string,
  lines: AsyncIterable<string> | Iterable<string>,
): Promise<boolean> {
  let good = true;
  let number = 0;
  try {
    for await (const line of lines) {
      number++;
      if (line.trimStart().startsWith("#")) continue;
      good = await runLine(session, line, `${name}:${number}`) && good;
      if (session.quitting) break;
    }
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    session.output.err([`vblk: ${name}:${number + 1}: ${error.message}`]);
    good = false;
  }
  return good;
}

/** The longest line that is read, in characters: a file of zeros is one line, and must not fill the memory. */
const MAX_LINE = 1 << 20;

/**
 * The lines of a stream of bytes, as they come.
 *
 * @throws CommandError for a line that is too long
 */
export async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = decoder.decode(chunk, { stream: true }).split("\n");
    lines[0] = rest + lines[0];
    rest = lines.pop()!;
    yield* lines;
    if (rest.length > MAX_LINE) throw new CommandError(`the line is longer than ${MAX_LINE} characters`);
  }
  rest += decoder.decode();
  if (rest !== "") yield rest;
}
