/**
 * Options as getopt(3) reads them: `-v -q`, `-vq`, `-P 0xaa`, `-P0xaa`, and `--` to end them. Options may follow the
 * operands. Long options (`--cache none`, `--cache=none`) as getopt_long(3) reads them.
 *
 * @module
 */

/** How an option takes a value: never, always, or only behind a `=`. */
export type OptionValue = "none" | "required" | "optional";

/** A long option: its name, how it takes a value, and the short option that it stands for, if any. */
export interface LongOption {
  readonly name: string;
  readonly value: OptionValue;
  readonly letter?: string;
}

/** An option that was given. */
export interface GivenOption {
  /** The letter, or the name of a long option without one. */
  readonly name: string;
  readonly value: string | null;
  /** Index of the word that holds the value, or else the option. */
  readonly word: number;
}

/** What was given: options in order, and the indexes of the words that are operands. */
export interface ParsedOptions {
  readonly options: readonly GivenOption[];
  readonly operands: readonly number[];
}

/** An option that does not exist, or lacks its value. */
export class OptionError extends Error {
  override readonly name = "OptionError";
  /** Index of the word that is at fault. */
  readonly word: number;
  /** What was read before: options are judged in order, so an error in one of them comes first. */
  readonly before: readonly GivenOption[];

  constructor(message: string, word: number, before: readonly GivenOption[]) {
    super(message);
    this.word = word;
    this.before = before;
  }
}

/**
 * Takes words apart.
 *
 * @param words without the name of the command
 * @param letters the short options; one that is followed by `:` takes a value
 * @throws OptionError
 */
export function getopt(words: readonly string[], letters: string, longs: readonly LongOption[] = []): ParsedOptions {
  const options: GivenOption[] = [];
  const operands: number[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    if (word === "--") {
      for (let rest = i + 1; rest < words.length; rest++) operands.push(rest);
      break;
    }
    if (word.startsWith("--") && longs.length > 0) i += longOption(words, i, longs, options);
    else if (word.startsWith("-") && word !== "-") i += shortOptions(words, i, letters, options);
    else operands.push(i);
  }
  return { options, operands };
}

/** Reads a word of short options; returns how many more words it took. */
function shortOptions(words: readonly string[], at: number, letters: string, options: GivenOption[]): number {
  const word = words[at];
  for (let i = 1; i < word.length; i++) {
    const letter = word[i];
    const known = letter === ":" ? -1 : letters.indexOf(letter);
    if (known < 0) throw new OptionError(`invalid option -- '${letter}'`, at, options);
    if (letters[known + 1] !== ":") {
      options.push({ name: letter, value: null, word: at });
      continue;
    }
    if (i + 1 < word.length) {
      options.push({ name: letter, value: word.slice(i + 1), word: at });
      return 0;
    }
    if (at + 1 === words.length) throw new OptionError(`option requires an argument -- '${letter}'`, at, options);
    options.push({ name: letter, value: words[at + 1], word: at + 1 });
    return 1;
  }
  return 0;
}

function longOption(
  words: readonly string[],
  at: number,
  longs: readonly LongOption[],
  options: GivenOption[],
): number {
  const [, given, inline] = /^--([^=]*)(?:=(.*))?$/s.exec(words[at])!;
  const exact = longs.filter(({ name }) => name === given);
  const matching = exact.length > 0 ? exact : longs.filter(({ name }) => name.startsWith(given));
  if (matching.length === 0) throw new OptionError(`unrecognized option '--${given}'`, at, options);
  if (matching.length > 1) {
    const names = matching.map(({ name }) => `'--${name}'`).join(" ");
    throw new OptionError(`option '--${given}' is ambiguous; possibilities: ${names}`, at, options);
  }
  const [{ name, value, letter }] = matching;
  const key = letter ?? name;
  if (value === "none" && inline !== undefined) {
    throw new OptionError(`option '--${name}' doesn't allow an argument`, at, options);
  }
  if (value !== "required" || inline !== undefined) {
    options.push({ name: key, value: inline ?? null, word: at });
    return 0;
  }
  if (at + 1 === words.length) throw new OptionError(`option '--${name}' requires an argument`, at, options);
  options.push({ name: key, value: words[at + 1], word: at + 1 });
  return 1;
}
