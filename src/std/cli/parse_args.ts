/**
 * `parseArgs`, as in `jsr:@std/cli/parse-args`, for option names without a dot.
 *
 * Not built over `node:util`'s function of that name: that one gives `--name -x` the value `-x`, where the
 * original sees two options, and it cannot collect, negate or alias.
 *
 * @module
 */

/** The type of the value of option `K`. */
type Value<K, B, S, C, N> =
  | (K extends C ? OneValue<K, B, S>[] : OneValue<K, B, S>)
  | (K extends N ? false : never);
type OneValue<K, B, S> = K extends B ? boolean : K extends S ? string : unknown;

/** The values of all options; a string that has no default and was not given is absent. */
type Values<B extends string, S extends string, C extends string, N extends string, D> =
  & { [K in B | C | keyof D]: Value<K, B, S, C, N> | (K extends keyof D ? D[K] : never) }
  & { [K in Exclude<S, B | C | keyof D>]?: Value<K, B, S, C, N> };

/** What {@linkcode parseArgs} returns: the options by name, and in `_` the arguments that belong to none. */
export type Args<
  // deno-lint-ignore no-explicit-any
  TArgs = Record<string, any>,
  DD extends boolean | undefined = undefined,
> =
  & TArgs
  & { [name: string]: unknown; _: Array<string | number> }
  & (DD extends true ? { "--": string[] } : unknown);

/** Options for {@linkcode parseArgs}. */
export interface ParseOptions<
  B extends string = string,
  S extends string = string,
  C extends string = string,
  N extends string = string,
  D = Record<string, unknown>,
  DD extends boolean | undefined = boolean | undefined,
> {
  /** Put the arguments after `--` into `"--"` instead of `_`. */
  "--"?: DD;
  /** Other names of an option. */
  alias?: Record<string, string | readonly string[]>;
  /** Options without a value; `true` makes every `--NAME` one of them. */
  boolean?: boolean | B | readonly B[];
  /** Values of options that were not given. */
  default?: D;
  /** Put everything from the first argument that is not an option into `_`. */
  stopEarly?: boolean;
  /** Options whose value is never turned into a number; `"_"` says so of the arguments in `_`. */
  string?: S | readonly S[];
  /** Options that can be given more than once and whose value is an array. */
  collect?: C | readonly C[];
  /** Options that `--no-NAME` sets to `false`. */
  negatable?: N | readonly N[];
  /** Called with each argument that was not declared, which is dropped if this returns `false`. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

const LONG_OPTION = /^--(?<no>no-)?(?<name>.+?)(?:=(?<value>.*))?$/s;
const NUMBER_AT_END = /-?\d+(\.\d*)?(e-?\d+)?$/;

/**
 * Takes the command line apart.
 *
 * @example
 * ```ts
 * import { parseArgs } from "@std/cli/parse-args";
 * import { assertEquals } from "@std/assert";
 *
 * const args = parseArgs(["attach", "--json", "-c", "flush"], { boolean: ["json"], string: ["c"] });
 * assertEquals(args._, ["attach"]);
 * assertEquals(args.json, true);
 * assertEquals(args.c, "flush");
 * ```
 */
export function parseArgs<
  const B extends string = never,
  const S extends string = never,
  const C extends string = never,
  const N extends string = never,
  // deno-lint-ignore ban-types
  D = {},
  DD extends boolean | undefined = undefined,
>(args: readonly string[], options: ParseOptions<B, S, C, N, D, DD> = {}): Args<Values<B, S, C, N, D>, DD> {
  const { alias = {}, stopEarly = false, unknown = () => true } = options;
  /** Every option that has more than one name, by each of them. */
  const names = new Map<string, string[]>();
  for (const [name, others] of Object.entries(alias)) {
    const all = [name, ...listOf(others)];
    for (const each of all) names.set(each, all);
  }
  const namesOf = (name: string) => names.get(name) ?? [name];
  const setOf = (list?: string | readonly string[]) => new Set(listOf(list).flatMap(namesOf));

  const allBooleans = options.boolean === true;
  const booleans = setOf(typeof options.boolean === "boolean" ? [] : options.boolean);
  const strings = setOf(options.string);
  const collected = setOf(options.collect);
  const negatable = setOf(options.negatable);

  const result: Record<string, unknown> = {};
  const rest: Array<string | number> = [];

  function set(name: string, value: string | boolean, arg: string, collect = collected.has(name)): void {
    const declared = booleans.has(name) || strings.has(name) || collected.has(name) || names.has(name) ||
      (allBooleans && arg.startsWith("--") && !arg.includes("="));
    if (!declared && unknown(arg, name, value) === false) return;
    const typed = strings.has(name) ? value : numberIfPossible(value);
    for (const each of namesOf(name)) {
      const before = result[each];
      if (!collect) result[each] = typed;
      else result[each] = Array.isArray(before) ? [...before, typed] : [typed];
    }
  }

  /** Sets an option to the argument that follows it, if that can be its value; returns how many were taken. */
  function setFromNext(name: string, next: string | undefined, arg: string, isValue: boolean): number {
    if (next && isValue && !booleans.has(name)) {
      set(name, next, arg);
      return 1;
    }
    if (next === "true" || next === "false") {
      set(name, next === "true", arg);
      return 1;
    }
    set(name, strings.has(name) ? "" : true, arg);
    return 0;
  }

  function longOption(arg: string, next: string | undefined): number {
    const { no, name, value } = LONG_OPTION.exec(arg)!.groups!;
    if (value !== undefined) {
      set(name, booleans.has(name) ? value !== "false" : value, arg);
      return 0;
    }
    if (no !== undefined && negatable.has(name)) {
      set(name, false, arg, false);
      return 0;
    }
    return setFromNext((no ?? "") + name, next, arg, !allBooleans && !next?.startsWith("-"));
  }

  /** `-abc`, `-n5`, `-n=5`, `-n 5`: only a number or a value that starts with a sign can follow without a space. */
  function shortOptions(arg: string, next: string | undefined): number {
    for (let i = 1; i < arg.length - 1; i++) {
      const letter = arg[i];
      const tail = arg.slice(i + 1);
      if (tail.startsWith("=")) {
        set(letter, tail.slice(1), arg);
        return 0;
      }
      if (/[A-Za-z]/.test(letter) && NUMBER_AT_END.test(tail) || /^\W/.test(tail)) {
        set(letter, tail, arg);
        return 0;
      }
      set(letter, strings.has(letter) ? "" : true, arg);
    }
    return setFromNext(arg.at(-1)!, next, arg, !/^--?[^-]/.test(next ?? ""));
  }

  const end = args.indexOf("--");
  const parsed = end < 0 ? args : args.slice(0, end);
  const afterEnd = end < 0 ? [] : args.slice(end + 1);
  for (let i = 0; i < parsed.length; i++) {
    const arg = parsed[i];
    if (arg.startsWith("--")) {
      i += longOption(arg, parsed[i + 1]);
    } else if (arg.startsWith("-") && arg !== "-") {
      i += shortOptions(arg, parsed[i + 1]);
    } else {
      if (unknown(arg) !== false) {
        rest.push(strings.has("_") ? arg : numberIfPossible(arg) as string | number);
      }
      if (!stopEarly) continue;
      rest.push(...parsed.slice(i + 1));
      break;
    }
  }

  const setIfAbsent = (names: Iterable<string>, value: (name: string) => unknown) => {
    for (const name of names) if (!Object.hasOwn(result, name)) result[name] = value(name);
  };
  for (const [name, value] of Object.entries(options.default ?? {})) setIfAbsent(namesOf(name), () => value);
  setIfAbsent(booleans, (name) => collected.has(name) ? [] : false);
  setIfAbsent([...strings].filter((name) => collected.has(name)), () => []);
  if (options["--"]) result["--"] = afterEnd;
  else rest.push(...afterEnd);
  return Object.assign(result, { _: rest }) as Args<Values<B, S, C, N, D>, DD>;
}

function listOf(list: string | readonly string[] = []): readonly string[] {
  return typeof list === "string" ? [list] : list;
}

function numberIfPossible(value: string | boolean): string | boolean | number {
  if (typeof value !== "string" || value.trim() === "") return value;
  return Number.isFinite(Number(value)) ? Number(value) : value;
}
