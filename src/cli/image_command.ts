/**
 * A subcommand that qemu-img has too: a table of its options, and what it does with those that were given. The options
 * that mean the same in several of them are here.
 *
 * @module
 */

import { getopt, type GivenOption, type LongOption, OptionError, type ParsedOptions } from "../script/getopt.ts";
import type { Output } from "../script/session.ts";
import type { Subcommand } from "./main.ts";
import { ending, ImageCommandError, numberOption, usage } from "./qemu_img.ts";

/** A row of a command's table. */
export interface ImageOption extends LongOption {
  /** The value is a number with an optional suffix: what it is, as messages name it. */
  readonly number?: string;
  /** Looks at a value, empty where the option takes none. Throws what is wrong with it. */
  readonly check?: (value: string, command: string) => void;
}

/** Format of the image; found out when not given. */
export const FORMAT: ImageOption = { name: "format", value: "required", letter: "f" };
/** The image's name is a list of options. */
export const IMAGE_OPTS: ImageOption = { name: "image-opts", value: "none" };
/** Take no lock. */
export const FORCE_SHARE: ImageOption = { name: "force-share", value: "none", letter: "U" };
/** Print how far it is. */
export const PROGRESS: ImageOption = { name: "progress", value: "none", letter: "p" };
/** Print nothing but errors. */
export const QUIET: ImageOption = { name: "quiet", value: "none", letter: "q" };
/** Text or JSON. */
export const OUTPUT: ImageOption = { name: "output", value: "required", check: checkOutput };
/** Secrets, which no command here has a use for: those that take the option refuse it when they come to it. */
export const OBJECT: ImageOption = { name: "object", value: "required" };

/** Refuses whatever `--output` does not know. */
export function checkOutput(value: string, command?: string): void {
  if (value === "human" || value === "json") return;
  const message = "--output must be used with human or json as argument.";
  throw command === undefined ? new ImageCommandError(message) : usage(command, message);
}

/** Refuses `--object`. */
export function refuseObject(hint?: string): never {
  throw new ImageCommandError("--object: vblk has no objects: no secrets, and no encrypted images", { hint });
}

/** What whoever gave `--object` can do. */
export const NO_OBJECTS_HINT = "leave it out where the image is not encrypted; otherwise use qemu-img";

/** A subcommand. */
export interface ImageCommand {
  readonly name: string;
  /** What `--help` prints: lines. */
  readonly help: readonly string[];
  readonly options: readonly ImageOption[];
  /** Letters that stand for no long option, as getopt(3) has them: one that is followed by `:` takes a value. */
  readonly letters?: string;
  /** Runs it; returns the exit code. */
  run(given: ImageArguments, output: Output): Promise<number>;
}

/** The subcommand as `main` runs it. */
export function imageCommand(command: ImageCommand): Subcommand {
  const { help } = command;
  const run = (args: readonly string[], output: Output) =>
    ending(output, async () => {
      const given = imageArguments(command, args);
      if (given !== null) return await command.run(given, output);
      output.out(help);
      return 0;
    });
  return { help, run };
}

/** Options and operands of a command line. An option's name is its letter, or its long name where it has no letter. */
export class ImageArguments {
  /** In the order in which they were given. */
  readonly options: readonly GivenOption[];
  readonly operands: readonly string[];
  readonly #rows: readonly ImageOption[];

  constructor(options: readonly GivenOption[], operands: readonly string[], rows: readonly ImageOption[]) {
    this.options = options;
    this.operands = operands;
    this.#rows = rows;
  }

  /** Whether one of these was given. */
  has(...names: string[]): boolean {
    return this.options.some(({ name }) => names.includes(name));
  }

  /** The value of the last of these. */
  last(...names: string[]): string | undefined {
    return this.options.findLast(({ name }) => names.includes(name))?.value ?? undefined;
  }

  /** All values of an option. */
  all(name: string): string[] {
    return this.options.filter((option) => option.name === name).map(({ value }) => value ?? "");
  }

  /** How to open the image, by the options that say it. */
  get opening(): { format: string | undefined; imageOpts: boolean; share: boolean } {
    return { format: this.last("f"), imageOpts: this.has("image-opts"), share: this.has("U") };
  }

  /** The number that was given last with an option that takes one. */
  number(name: string): number | undefined {
    const text = this.last(name);
    return text === undefined ? undefined : numberOption(rowOf(this.#rows, name)!.number!, text);
  }
}

function rowOf(rows: readonly ImageOption[], given: string): ImageOption | undefined {
  return rows.find(({ name, letter }) => (letter ?? name) === given);
}

/**
 * Reads a command line with qemu-img's words for what is wrong with it. Values are looked at in the order in which they
 * are given: a mistake in one that another one overrules is a mistake all the same.
 *
 * @returns `null` when the help was asked for
 * @throws ImageCommandError
 */
export function imageArguments(
  { name: command, options: rows, letters = "" }: Pick<ImageCommand, "name" | "options" | "letters">,
  args: readonly string[],
): ImageArguments | null {
  const longs: LongOption[] = [{ name: "help", value: "none", letter: "h" }, ...rows];
  const short = longs.map(({ letter, value }) => letter === undefined ? "" : value === "none" ? letter : `${letter}:`);
  const given = read(command, args, short.join("") + letters, longs);
  if (given === null) return null;
  const { options, operands } = given;
  for (const { name, value } of options) {
    const { number, check } = rowOf(rows, name) ?? {};
    if (number !== undefined) numberOption(number, value ?? "");
    check?.(value ?? "", command);
  }
  return new ImageArguments(options, operands.map((index) => args[index]), rows);
}

function read(
  command: string,
  args: readonly string[],
  letters: string,
  longs: readonly LongOption[],
): ParsedOptions | null {
  try {
    const given = getopt(args, letters, longs);
    return given.options.some(({ name }) => name === "h") ? null : given;
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    if (error.before.some(({ name }) => name === "h")) return null;
    const word = args[error.word];
    const missing = error.message.includes("requires an argument");
    throw usage(command, missing ? `missing argument for option '${word}'` : `unrecognized option '${word}'`);
  }
}
