/**
 * Where commands come from: `-c`, a script, standard input.
 *
 * @module
 */

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
 * Runs a script: a command a line. A line that begins with `#` is a comment.
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
  for await (const line of lines) {
    number++;
    if (line.trimStart().startsWith("#")) continue;
    good = await runLine(session, line, `${name}:${number}`) && good;
    if (session.quitting) break;
  }
  return good;
}

/** The lines of a stream of bytes, as they come. */
export async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
  rest += decoder.decode();
  if (rest !== "") yield rest;
}
