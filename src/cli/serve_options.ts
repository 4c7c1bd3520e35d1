/**
 * The arguments of `vblk serve`.
 *
 * @module
 */

import { addressBytes, SocketPathError } from "../host/unix_address.ts";
import { protocolOf } from "../image/names.ts";
import { getopt, type GivenOption, type LongOption, OptionError } from "../script/getopt.ts";
import { applyFlag, DEFAULT_SETTINGS, type OpenSettings, SettingError } from "../script/open_settings.ts";
import type { TraceForm } from "../serve/trace_output.ts";
import { CommandFailure, UsageError } from "./failure.ts";

/** What was asked for. */
export interface ServeOptions {
  readonly image: string;
  readonly settings: OpenSettings;
  readonly socketPath: string | null;
  readonly controlPath: string | null;
  readonly once: boolean;
  /** How many threads the queues are spread over. */
  readonly ioThreads: number;
  /** Values of `--device`, in order. */
  readonly devices: readonly string[];
  readonly pollNanoseconds: number;
  readonly pidFile: string | undefined;
  /** `null`: not asked for. Otherwise the seconds between two reports; 0 for none before the end. */
  readonly statsSeconds: number | null;
  readonly metrics: MetricsAddress | null;
  readonly trace: TraceForm | null;
}

/** Where metrics are served. */
export type MetricsAddress =
  | { readonly hostname: string; readonly port: number }
  | { readonly path: string };

const LONGS: readonly LongOption[] = [
  { name: "vhost-user", value: "required" },
  { name: "control", value: "required" },
  { name: "once", value: "none" },
  { name: "iothreads", value: "required" },
  { name: "direct", value: "none" },
  { name: "device", value: "required" },
  { name: "poll-max-ns", value: "required" },
  { name: "pid-file", value: "required" },
  { name: "stats", value: "optional" },
  { name: "metrics", value: "required" },
  { name: "trace", value: "optional" },
  { name: "explain", value: "none" },
  { name: "format", value: "required", letter: "f" },
  { name: "read-only", value: "none", letter: "r" },
  { name: "snapshot", value: "none", letter: "s" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "cache", value: "required", letter: "t" },
  { name: "discard", value: "required", letter: "d" },
  { name: "help", value: "none", letter: "h" },
];

/** More than anybody's disk has use for; each takes an io_uring and some memory. */
const MOST_IO_THREADS = 64;

/** By measurement: to be woken takes 60 us on a virtual machine whose core has nothing else to do. */
const DEFAULT_POLL = "100000";

/**
 * Reads the arguments.
 *
 * @returns `"help"` when that was asked for, `"device help"` for `--device help`
 * @throws UsageError, CommandFailure
 */
export function parseServe(args: readonly string[]): ServeOptions | "help" | "device help" {
  const { options, operands } = readOptions(args);
  const all = (wanted: string) => options.filter(({ name }) => name === wanted).map(({ value }) => value);
  const last = (wanted: string) => all(wanted).at(-1) ?? undefined;
  const has = (wanted: string) => all(wanted).length > 0;
  if (has("h")) return "help";
  const devices = all("device").map((value) => value ?? "");
  if (devices.includes("help")) return "device help";
  if (operands.length !== 1) throw new UsageError(`serve takes one image, and there are ${operands.length}`);
  if (has("control") && last("control") === last("vhost-user")) {
    throw new UsageError("--control and --vhost-user are two sockets, and need two paths");
  }
  const settings = settingsOf(options);
  return {
    image: operands[0],
    settings,
    ioThreads: ioThreads(last("iothreads"), operands[0], settings),
    socketPath: socketPath(last("vhost-user")),
    controlPath: socketPath(last("control")),
    once: has("once"),
    devices,
    pollNanoseconds: wholeNumber("poll-max-ns", last("poll-max-ns") ?? DEFAULT_POLL, "nanoseconds below 1 s"),
    pidFile: last("pid-file"),
    statsSeconds: has("stats") ? wholeNumber("stats", last("stats") ?? "0", "seconds") : null,
    metrics: has("metrics") ? metricsAddress(last("metrics")!) : null,
    trace: has("trace") ? traceForm(last("trace")) : has("explain") ? "explain" : null,
  };
}

function readOptions(args: readonly string[]): { options: readonly GivenOption[]; operands: readonly string[] } {
  try {
    const { options, operands } = getopt(args, "hf:rsUt:d:", LONGS);
    return { options, operands: operands.map((index) => args[index]) };
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    throw new UsageError(error.message);
  }
}

/** Refuses what several threads can't do, whatever the image is like. */
function ioThreads(text: string | undefined, image: string, { format, snapshot }: OpenSettings): number {
  if (text === undefined) return 1;
  const count = wholeNumber("iothreads", text, `threads from 1 to ${MOST_IO_THREADS}`);
  if (count < 1 || count > MOST_IO_THREADS) {
    throw new UsageError(`--iothreads ${text}: not a number of threads from 1 to ${MOST_IO_THREADS}`);
  }
  if (count === 1) return 1;
  if (snapshot) throw new UsageError("--iothreads: what --snapshot keeps in memory belongs to one thread");
  if (protocolOf(image) !== null) {
    throw new UsageError(`--iothreads: several threads serve a file or a block device, and no '${image}'`);
  }
  if (format !== "raw") {
    throw new UsageError(
      format === undefined
        ? "--iothreads: several threads serve raw images only, and what is one must not be guessed"
        : `--iothreads: several threads serve raw images only, and -f says ${format}`,
      // Each thread would guard the first sector for itself, and two writes that are harmless could make a header together.
      format === undefined ? "give -f raw if it is one; the tables of other formats belong to one thread" : undefined,
    );
  }
  return count;
}

function settingsOf(options: readonly GivenOption[]): OpenSettings {
  let settings = DEFAULT_SETTINGS;
  for (const { name, value } of options) {
    if (name === "direct") settings = { ...settings, cache: { ...settings.cache, direct: true } };
    if (name.length > 1) continue;
    try {
      settings = applyFlag(settings, name, value) ?? settings;
    } catch (error) {
      if (!(error instanceof SettingError)) throw error;
      throw new UsageError(error.message);
    }
  }
  return settings;
}

/** Refuses what can't be a socket's path, before anything is opened. */
function socketPath(path: string | undefined): string | null {
  if (path === undefined) return null;
  try {
    addressBytes(path);
    return path;
  } catch (error) {
    if (!(error instanceof SocketPathError)) throw error;
    throw new CommandFailure(error.message, error.hint);
  }
}

function wholeNumber(option: string, text: string, what: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new UsageError(`--${option} ${text}: not a number of ${what}`);
}

function metricsAddress(text: string): MetricsAddress {
  if (text.startsWith("unix:")) return { path: socketPath(text.slice("unix:".length))! };
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]:|([^:]*):)?(\d{1,5})$/.exec(text) ?? [];
  if (digits === undefined || Number(digits) > 65535) {
    throw new UsageError(`--metrics ${text}: not an address`, "addresses are HOST:PORT, PORT, and unix:PATH");
  }
  // Who asks for no host does not ask for the whole world.
  return { hostname: bracketed ?? (plain || "127.0.0.1"), port: Number(digits) };
}

function traceForm(value: string | undefined): TraceForm {
  if (value === undefined || value === "text") return "text";
  if (value === "json") return "json";
  throw new UsageError(`--trace=${value}: the forms are text and json`);
}
