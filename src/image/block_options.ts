/**
 * QEMU's block options: what the user says about an image in `json:{...}`, `--image-opts` and `open -o`. However they
 * are written they become one flat list, in which `file.filename` is the option `filename` of the child `file`.
 *
 * Options come from the command line and from scripts only. A name in an image is never read as one.
 *
 * @module
 */

import { BlockOptionError } from "../storage/block_error.ts";
import { parseSize } from "./size.ts";

/** A value: text from a command line, anything else from JSON. */
export type OptionValue = string | number | boolean | null;

/** Options by their dotted names. */
export type BlockOptions = ReadonlyMap<string, OptionValue>;

/** What starts a name that is a set of options. */
export const JSON_PREFIX = "json:";

/** Deepest nesting that is taken apart. */
const DEPTH_MAX = 64;

/**
 * Reads `key=value,key=value`; `,,` stands for a comma in a value. `key` alone is `key=on`, and `nokey` is `key=off`.
 * When a key is given twice the last one counts.
 */
export function parseOptionText(text: string): Map<string, OptionValue> {
  const options = new Map<string, OptionValue>();
  for (let at = 0; at < text.length;) {
    const [, key, assigned] = /^([^=,]*)(=?)/.exec(text.slice(at))!;
    at += key.length;
    if (assigned === "") {
      const off = key.startsWith("no");
      if (key !== "") options.set(off ? key.slice(2) : key, off ? "off" : "on");
      at++;
      continue;
    }
    const [value] = /^(?:[^,]|,,)*/.exec(text.slice(at + 1))!;
    if (key !== "") options.set(key, value.replaceAll(",,", ","));
    at += value.length + 2;
  }
  // A name for the set itself.
  options.delete("id");
  return options;
}

/**
 * Reads the name `json:{...}`. As in QEMU, strings may be in single quotes.
 *
 * @throws BlockOptionError
 */
export function parseJsonName(name: string): Map<string, OptionValue> {
  const text = name.slice(JSON_PREFIX.length);
  if (text.trim() === "") {
    throw new BlockOptionError(name, "Could not parse the JSON options: Expecting a JSON value");
  }
  let value: unknown;
  try {
    value = JSON.parse(doubleQuoted(text));
  } catch (error) {
    throw new BlockOptionError(name, `Could not parse the JSON options: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new BlockOptionError(name, "Invalid JSON object given");
  }
  const options = new Map<string, OptionValue>();
  flatten(options, "", value, name, 0);
  return options;
}

function doubleQuoted(text: string): string {
  return text.replace(/"(?:[^"\\]|\\.)*"|'((?:[^'\\]|\\.)*)'/gs, (all, inner?: string) => {
    if (inner === undefined) return all;
    return `"${inner.replace(/\\.|"/gs, (part) => part === "\\'" ? "'" : part === '"' ? '\\"' : part)}"`;
  });
}

function flatten(options: Map<string, OptionValue>, prefix: string, value: object, name: string, depth: number): void {
  if (depth > DEPTH_MAX) throw new BlockOptionError(name, `Objects more than ${DEPTH_MAX} deep in each other`);
  for (const [key, inner] of Object.entries(value)) {
    if (typeof inner === "object" && inner !== null) flatten(options, `${prefix}${key}.`, inner, name, depth + 1);
    else options.set(prefix + key, inner as OptionValue);
  }
}

/** How a value is read: text, bytes with a suffix, a number, on or off, or one of some words. */
export type OptionType = "text" | "size" | "number" | "switch" | readonly string[];

const ON = ["on", "yes", "true", "y"];
const OFF = ["off", "no", "false", "n"];

/** The options of one node of the tree, and of its children. */
export class NodeOptions {
  /** What the user called the image, for messages. */
  readonly path: string;
  /** All of them. */
  readonly options: BlockOptions;

  constructor(path: string, options: BlockOptions) {
    this.path = path;
    this.options = options;
  }

  /** Names, in the order in which they were given. */
  get keys(): string[] {
    return [...this.options.keys()];
  }

  /** The value as it was given. */
  raw(key: string): OptionValue | undefined {
    return this.options.get(key);
  }

  text(key: string): string | undefined {
    const value = this.raw(key);
    return value === undefined || value === null ? undefined : String(value);
  }

  /** A number of bytes, as in `64k`. */
  size(key: string): number | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    const size = typeof value === "boolean" || value === null ? "not-a-number" : parseSize(String(value));
    if (typeof size === "number") return size;
    throw this.error(
      `Parameter '${key}' expects a non-negative number below 2^64`,
      "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively.",
    );
  }

  number(key: string): number | undefined {
    const text = this.text(key);
    if (text === undefined) return undefined;
    // As strtoull(3) has it; what is too large for a number here is as good as the largest.
    const match = /^\s*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)$/i.exec(text);
    if (match === null) throw this.error(`Parameter '${key}' expects a number`);
    const [, sign, digits] = match;
    const value = Number(/^0[0-7]+$/.test(digits) ? `0o${digits.slice(1)}` : digits);
    return sign === "-" ? -value : value;
  }

  switch(key: string): boolean | undefined {
    const text = this.text(key);
    if (text === undefined) return undefined;
    if (ON.includes(text)) return true;
    if (OFF.includes(text)) return false;
    throw this.error(`Parameter '${key}' expects 'on' or 'off'`);
  }

  oneOf<T extends string>(key: string, words: readonly T[]): T | undefined {
    const text = this.text(key);
    if (text === undefined) return undefined;
    const word = words.find((word) => word === text);
    if (word === undefined) throw this.error(`invalid parameter value: ${text}`);
    return word;
  }

  /** Checks a value that changes nothing here. */
  check(key: string, type: OptionType): void {
    if (typeof type !== "string") this.oneOf(key, type);
    else this[type](key);
  }

  /** The options of a child: those that start with its name and a dot. */
  child(name: string): NodeOptions {
    const found = new Map<string, OptionValue>();
    for (const [key, value] of this.options) {
      if (key.startsWith(`${name}.`)) found.set(key.slice(name.length + 1), value);
    }
    return new NodeOptions(this.path, found);
  }

  /** The same options with one more, or another value of one. */
  with(key: string, value: OptionValue): NodeOptions {
    return new NodeOptions(this.path, new Map([...this.options, [key, value]]));
  }

  error(reason: string, hint?: string): BlockOptionError {
    return new BlockOptionError(this.path, reason, hint);
  }
}
