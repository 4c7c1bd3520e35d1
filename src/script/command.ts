/**
 * What a command is: a row with a name, its arguments, and a function from words to a result. Commands print
 * nothing themselves; a result is a value that has a printed form and a JSON form.
 *
 * @module
 */

import type { Session } from "./session.ts";
import type { Word } from "./words.ts";

/** What came of a command. */
export interface Result {
  /** The printed form: lines for standard output, made when they are printed, since a dump may have millions. */
  readonly text: Iterable<string>;
  /** The JSON form: the fields of one object. Bytes become hexadecimal digits when it is printed. */
  readonly json: Readonly<Record<string, unknown>>;
  /** Set when the command ran but did not succeed: why. The line is in `text` already. */
  readonly failure?: string;
}

/** A result that says nothing. */
export const SILENT: Result = { text: [], json: {} };

/** The words of a command, and what it acts on. */
export interface Invocation {
  readonly session: Session;
  readonly command: Command;
  /** All words; the first is the name as it was typed. */
  readonly words: readonly Word[];
}

/** A command of the language. */
export interface Command {
  readonly name: string;
  /** A second, short name. */
  readonly alias?: string;
  /** The arguments, for the usage line. */
  readonly args?: string;
  /** What it does, in one line without a capital or a full stop. */
  readonly summary: string;
  /** The rest of its help: lines. */
  readonly help?: readonly string[];
  /** Fewest and most arguments. Default: none. */
  readonly count?: readonly [least: number, most: number];
  /** Whether it works without an image. Default: no. */
  readonly withoutImage?: boolean;
  /** Whether it changes the image, so that it is refused on a read-only one. Default: no. */
  readonly writes?: boolean;
  /** Whether it sends requests, which a device that needs a reset does not take. Default: no. */
  readonly sends?: boolean;
  /** Whether it ends before its requests do, so that they may wait to be sent together with the next. Default: no. */
  readonly goesOn?: boolean;
  /** Short options as getopt(3) takes them. */
  readonly letters?: string;
  run(invocation: Invocation): Result | Promise<Result>;
}

/** Where qemu-io prints a failure. */
export type Stream = "stdout" | "stderr";

/** A command failed before it had a result. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  /** Where the line goes, as in qemu-io. */
  readonly stream: Stream;
  /** Index of the word that is at fault; 0 is the command itself. */
  readonly word: number;
  readonly hint: string | undefined;
  /** Lines for standard output that go with it. */
  readonly text: readonly string[];

  constructor(
    message: string,
    options: { stream?: Stream; word?: number; hint?: string; text?: readonly string[] } = {},
  ) {
    super(message);
    this.stream = options.stream ?? "stdout";
    this.word = options.word ?? 0;
    this.hint = options.hint;
    this.text = options.text ?? (this.stream === "stdout" ? [message] : []);
  }
}

/** The line that shows how to call a command. */
export function usageLine(command: Command, name: string = command.name): string {
  return [name, command.args, "--", command.summary].filter((part) => part).join(" ");
}

/** The failure of a command whose words do not fit its usage. */
export function usageError(command: Command, message = `wrong arguments to ${command.name}`, word = 0): CommandError {
  return new CommandError(message, { stream: "stderr", word, text: [usageLine(command)] });
}
