/**
 * The words of a command as values: options, sizes, patterns and numbers, with qemu-io's messages for what is wrong
 * with them.
 *
 * @module
 */

import { parseSize } from "../image/size.ts";
import { CommandError, type Invocation, usageError } from "./command.ts";
import { getopt, OptionError, type ParsedOptions } from "./getopt.ts";

/** The most bytes that one command moves: the largest multiple of 512 below 2^31. */
export const MAX_BYTES = 2147483136;

/** How the value of an option is read; `word` is where it stood. */
export type ValueReader<T> = (text: string, word: number) => T;

/** The options and operands of a command. */
export interface Arguments<Values> {
  /** Whether a letter was given. */
  has(letter: string): boolean;
  /** Values by letter. */
  readonly values: Partial<Values>;
  /** Indexes of the operands among the words of the command. */
  readonly operands: readonly number[];
  /** Index of the word that gave a letter, for messages. */
  wordOf(letter: string): number;
}

/**
 * Takes the words of a command apart.
 *
 * @param readers by letter, called in the order in which the letters stand; one without a value is given ""
 * @throws CommandError for the first thing that is wrong, in the order in which the words stand
 */
export function readArguments<Values extends object = Record<never, never>>(
  { command, words }: Invocation,
  readers: { [K in keyof Values]: ValueReader<Values[K]> } = {} as { [K in keyof Values]: ValueReader<Values[K]> },
): Arguments<Values> {
  const values: Partial<Values> = {};
  const given = new Map<string, number>();
  const take = (options: ParsedOptions["options"]) => {
    for (const { name, value, word } of options) {
      given.set(name, word + 1);
      const reader = (readers as Record<string, ValueReader<Values[keyof Values]>>)[name];
      if (reader !== undefined) values[name as keyof Values] = reader(value ?? "", word + 1);
    }
  };
  try {
    const parsed = getopt(words.slice(1).map(({ text }) => text), command.letters ?? "");
    take(parsed.options);
    const operands = parsed.operands.map((index) => index + 1);
    return { has: (letter) => given.has(letter), values, operands, wordOf: (letter) => given.get(letter) ?? 0 };
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    take(error.before);
    throw usageError(command, `${words[0].text}: ${error.message}`, error.word + 1);
  }
}

/** Reads a size: `4096`, `4k`, `1M`, `0x1000`. */
export function readSize(text: string, word: number): number {
  const size = parseSize(text);
  if (typeof size === "number") return size;
  const why = size === "too-large" ? "argument too large" : "non-numeric argument, or extraneous/unrecognized suffix";
  throw new CommandError(`Parsing error: ${why} -- ${text}`, { word });
}

/** Reads a byte, written as C does: `170`, `0xaa`, `0252`. */
export function readPattern(text: string, word: number): number {
  const value = readInteger(text);
  if (value === null || value < 0 || value > 255) {
    throw new CommandError(`${text} is not a valid pattern byte`, { word });
  }
  return value;
}

/** Reads a number that a command takes as such. */
export function readNumber(text: string, word: number): number {
  const value = readInteger(text);
  if (value === null || value < 0) throw new CommandError(`${text} is not a valid number`, { word });
  return value;
}

/** Leaves text as it is. */
export function readText(text: string): string {
  return text;
}

/** As strtol(3) with base 0: decimal, 0x hexadecimal, 0 octal; `null` when something else follows. */
export function readInteger(text: string): number | null {
  const match = /^\s*([+-]?)(?:0x([0-9a-f]+)|(0[0-7]*)|([1-9]\d*))$/i.exec(text);
  if (match === null) return null;
  const [, sign, hex, octal, decimal] = match;
  const value = hex !== undefined ? parseInt(hex, 16) : octal !== undefined ? parseInt(octal, 8) : Number(decimal);
  return sign === "-" ? -value : value;
}

/** Reads the operand at `index`, which must exist, as a size. */
export function sizeAt({ words }: Invocation, index: number): number {
  return readSize(words[index].text, index);
}

/** Reads the operands from `indexes` as the lengths of a vector. */
export function lengthsAt(invocation: Invocation, indexes: readonly number[]): number[] {
  let total = 0;
  return indexes.map((word) => {
    const { text } = invocation.words[word];
    const length = sizeAt(invocation, word);
    if (length > MAX_BYTES) {
      throw new CommandError(`Argument '${text}' exceeds maximum size ${MAX_BYTES}`, { word });
    }
    total += length;
    if (total > MAX_BYTES) {
      throw new CommandError(`The total number of bytes exceed the maximum size ${MAX_BYTES}`, { word });
    }
    return length;
  });
}
