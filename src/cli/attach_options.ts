/**
 * The arguments of `vblk attach`.
 *
 * @module
 */

import { getopt, type LongOption, OptionError } from "../script/getopt.ts";
import { nearest } from "../script/suggest.ts";
import { applyFlag, DEFAULT_SETTINGS, type OpenSettings, SettingError } from "../script/open_settings.ts";
import { UsageError } from "./failure.ts";

/** What was asked for. */
export interface AttachOptions {
  readonly image: string | undefined;
  /** Whether the image is given by options instead of a name. */
  readonly imageOpts: boolean;
  readonly settings: OpenSettings;
  readonly commands: readonly string[];
  readonly script: string | undefined;
  readonly trace: "text" | "json" | undefined;
  readonly explain: boolean;
  readonly stats: boolean;
  readonly json: boolean;
  /** Values of `--device` and `--decline`, in order. */
  readonly devices: readonly string[];
  readonly declined: readonly string[];
  readonly ram: string | undefined;
  /** What moves the bytes between files and the guest's memory. */
  readonly engine: "portable" | "uring";
  readonly wants: "help" | "version" | undefined;
}

/** Short options: those of qemu-io, with the same meaning. `T` is there so that nothing else ever takes it. */
const LETTERS = "hVc:d:f:rsnCmki:t:T:U";

const LONGS: readonly LongOption[] = [
  { name: "cmd", value: "required", letter: "c" },
  { name: "format", value: "required", letter: "f" },
  { name: "read-only", value: "none", letter: "r" },
  { name: "snapshot", value: "none", letter: "s" },
  { name: "nocache", value: "none", letter: "n" },
  { name: "copy-on-read", value: "none", letter: "C" },
  { name: "misalign", value: "none", letter: "m" },
  { name: "native-aio", value: "none", letter: "k" },
  { name: "aio", value: "required", letter: "i" },
  { name: "cache", value: "required", letter: "t" },
  { name: "discard", value: "required", letter: "d" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "help", value: "none", letter: "h" },
  { name: "version", value: "none", letter: "V" },
  { name: "script", value: "required" },
  { name: "trace", value: "optional" },
  { name: "explain", value: "none" },
  { name: "stats", value: "none" },
  { name: "json", value: "none" },
  { name: "device", value: "required" },
  { name: "decline", value: "required" },
  { name: "ram", value: "required" },
  { name: "engine", value: "required" },
  { name: "object", value: "required" },
  { name: "image-opts", value: "none" },
];

/** Options of qemu-io that have no counterpart, and why. */
const UNSUPPORTED: Readonly<Record<string, string>> = {
  T: "-T is not supported: QEMU's trace events are its own; --trace shows what happens here",
  object: "--object is not supported: there are no encrypted images here",
};

/**
 * Reads the arguments.
 *
 * @throws UsageError
 */
export function parseAttach(args: readonly string[]): AttachOptions {
  const { options, operands } = readOptions(args);
  let settings: OpenSettings = DEFAULT_SETTINGS;
  const values = new Map<string, (string | null)[]>();
  for (const { name, value } of options) {
    if (Object.hasOwn(UNSUPPORTED, name)) throw new UsageError(UNSUPPORTED[name]);
    const applied = flag(settings, name, value);
    if (applied !== null) settings = applied;
    else values.set(name, [...values.get(name) ?? [], value]);
  }
  if (operands.length > 1) {
    const form = values.get("trace")?.includes(null) && operands.find((word) => word === "json" || word === "text");
    const hint = form ? `the form of the trace goes behind a '=': --trace=${form}` : undefined;
    throw new UsageError(`attach takes one image, and there are ${operands.length}: ${operands.join(" ")}`, hint);
  }
  const imageOpts = values.has("image-opts");
  if (imageOpts && settings.format !== undefined) {
    throw new UsageError("--image-opts and -f are mutually exclusive", "write driver=FORMAT among the options");
  }
  const all = (name: string) => (values.get(name) ?? []).map((value) => value ?? "");
  const last = (name: string) => all(name).at(-1);
  return {
    image: operands[0],
    imageOpts,
    settings,
    commands: all("c"),
    script: last("script"),
    trace: traceForm(values.get("trace")?.at(-1)),
    explain: values.has("explain"),
    stats: values.has("stats"),
    json: values.has("json"),
    devices: all("device"),
    declined: all("decline").flatMap((names) => names.split(",")).filter((name) => name !== ""),
    ram: last("ram"),
    engine: engineOf(last("engine") ?? "portable"),
    wants: values.has("h") ? "help" : values.has("V") ? "version" : undefined,
  };
}

function readOptions(args: readonly string[]) {
  try {
    const { options, operands } = getopt(args, LETTERS, LONGS);
    return { options, operands: operands.map((index) => args[index]) };
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    throw new UsageError(error.message, meant(args[error.word]));
  }
}

/** The long option that was meant, if the word is one that does not exist. */
function meant(word: string): string | undefined {
  const [, typed] = /^--([^=]+)/.exec(word) ?? [];
  if (typed === undefined || LONGS.some(({ name }) => name.startsWith(typed))) return undefined;
  const near = nearest(typed, LONGS.map(({ name }) => name));
  return near && `did you mean '--${near}'?`;
}

function flag(settings: OpenSettings, name: string, value: string | null): OpenSettings | null {
  // Long options without a letter are longer than one, and none of them is a flag of qemu-io's.
  if (name.length > 1) return null;
  try {
    return applyFlag(settings, name, value);
  } catch (error) {
    if (!(error instanceof SettingError)) throw error;
    throw new UsageError(error.message);
  }
}

function engineOf(name: string): AttachOptions["engine"] {
  if (name === "portable" || name === "uring") return name;
  throw new UsageError(`--engine ${name}: the engines are portable and uring`);
}

function traceForm(value: string | null | undefined): "text" | "json" | undefined {
  if (value === undefined) return undefined;
  if (value === null || value === "text") return "text";
  if (value === "json") return "json";
  throw new UsageError(`--trace=${value}: the forms are text and json`);
}
