/**
 * `vblk attach`: a device and a guest in this process, driven by commands.
 *
 * @module
 */

import { BLK_FEATURE_NAMES } from "../blk/blk_layout.ts";
import type { BlkOptions } from "../blk/options.ts";
import { ProbeError } from "../guest/mmio_probe.ts";
import { parseSize } from "../image/size.ts";
import type { Machine } from "../machine.ts";
import { CommandError } from "../script/command.ts";
import { openFailure } from "../script/open_commands.ts";
import { applyBlockOptions } from "../script/open_settings.ts";
import { type Output, Session, type SessionOptions } from "../script/session.ts";
import { linesOf, runCommands, runScript } from "../script/sources.ts";
import { nearest } from "../script/suggest.ts";
import { formatStatistics } from "../statistics.ts";
import { BlockError } from "../storage/block_error.ts";
import type { TraceSink } from "../trace/events.ts";
import { featureNames } from "../virtio/features.ts";
import { formatViolation } from "../virtio/violation.ts";
import { type AttachOptions, parseAttach } from "./attach_options.ts";
import { ATTACH_HELP } from "./attach_help.ts";
import { CommandFailure, UsageError } from "./failure.ts";
import type { Subcommand } from "./main.ts";
import { VERSION } from "./version.ts";

/** The subcommand. */
export const subcommand: Subcommand = { help: ATTACH_HELP, run };

async function run(args: readonly string[], output: Output): Promise<number> {
  const options = parseAttach(args);
  if (options.wants !== undefined) {
    output.out(options.wants === "help" ? ATTACH_HELP : [`vblk ${VERSION}`]);
    return 0;
  }
  if (options.devices.includes("help")) {
    const { deviceHelp } = await import("./device_options.ts");
    output.out(deviceHelp());
    return 0;
  }
  if (options.imageOpts && options.image === "help") {
    const { blockOptionsHelp } = await import("../image/block_drivers.ts");
    output.out(blockOptionsHelp());
    return 0;
  }
  const session = new Session({
    output,
    imageOpts: options.imageOpts,
    machine: {
      device: await deviceOptions(options.devices),
      driver: { decline: declinedFeatures(options.declined) },
      ramBytes: ramBytes(options.ram),
    },
    trace: await sinks(options, output),
    openFile: options.engine === "uring" ? await uringFiles() : undefined,
    json: options.json,
    explains: options.explain || options.trace === "text",
    onOpen: (machine) => options.stats && machine.statistics.enable(),
    onClose: (machine) => options.stats && printStatistics(machine, options, output),
  });
  if (options.image !== undefined) await openImage(session, options.image, options);
  let good = false;
  try {
    good = await runAll(session, options);
  } finally {
    await session.close();
  }
  return good ? 0 : 1;
}

async function openImage(session: Session, given: string, { settings, imageOpts }: AttachOptions): Promise<void> {
  const name = imageOpts ? null : given;
  let refused = "";
  const unwatch = session.watch((event) => {
    if (event.event === "violation") refused = `: ${formatViolation(event.violation)}`;
  });
  try {
    const request = await applyBlockOptions(name, settings, imageOpts ? [given] : []);
    await session.open(request.name, request.settings, name);
  } catch (error) {
    if (error instanceof BlockError) throw new CommandFailure(openFailure(name, error), error.hint);
    if (error instanceof ProbeError) {
      throw new CommandFailure(`the driver gave up on the device${refused || `: ${error.message}`}`);
    }
    // A device with these options can't be made.
    if (error instanceof RangeError) {
      const { inPropertyNames } = await import("./device_options.ts");
      throw new UsageError(inPropertyNames(error.message), "'--device help' lists the properties");
    }
    throw error;
  } finally {
    unwatch();
  }
}

async function runAll(session: Session, { commands, script }: AttachOptions): Promise<boolean> {
  let good = await runCommands(session, commands);
  if (script !== undefined && !session.quitting) good = await runFile(session, script) && good;
  if (commands.length === 0 && script === undefined) {
    if (Deno.stdin.isTerminal()) {
      const { runPrompt } = await import("../script/prompt.ts");
      good = await runPrompt(session);
    } else {
      good = await runLines(session, STDIN, () => Deno.stdin);
    }
  }
  await session.drain();
  return good;
}

async function runFile(session: Session, path: string): Promise<boolean> {
  if (/\.[cm]?[jt]s$/.test(path)) {
    const { runModule } = await import("../script/module.ts");
    return await runModule(session, path);
  }
  return await runLines(session, path, () => Deno.openSync(path));
}

const STDIN = "standard input";

async function runLines(
  session: Session,
  name: string,
  open: () => { readonly readable: ReadableStream<Uint8Array> },
): Promise<boolean> {
  async function* lines() {
    try {
      yield* linesOf(open().readable);
    } catch (cause) {
      if (cause instanceof CommandError) throw cause;
      const { kind, reason } = BlockError.from(cause, { path: name, operation: "read" });
      const hint = kind === "not-capable" ? `run again with --allow-read=${name} (right after 'deno run')` : undefined;
      throw new CommandFailure(`can't read ${name === STDIN ? name : `script ${name}`}: ${reason}`, hint);
    }
  }
  return await runScript(session, name, lines());
}

/** Opens files for io_uring. */
async function uringFiles(): Promise<SessionOptions["openFile"]> {
  const { ioUringProblem } = await import("../host/io_uring.ts");
  const problem = ioUringProblem();
  if (problem !== null) {
    const hint = problem.hint ?? "leave --engine out: the portable engine works everywhere";
    throw new CommandFailure(`--engine uring: ${problem.message}`, hint);
  }
  const { UringFileStorage } = await import("../storage/uring_file.ts");
  return (direct) => (path, files) => UringFileStorage.open(path, { ...files, direct });
}

async function deviceOptions(devices: readonly string[]): Promise<Partial<BlkOptions>> {
  if (devices.length === 0) return {};
  const { parseDevice } = await import("./device_options.ts");
  return Object.assign({}, ...devices.map(parseDevice));
}

/** The feature bits that have the given names. */
function declinedFeatures(names: readonly string[]): bigint {
  const bits = Array.from({ length: 64 }, (_, bit) => 1n << BigInt(bit));
  const byName = new Map(bits.map((set) => [featureNames(set, BLK_FEATURE_NAMES)[0], set]));
  return names.reduce((declined, given) => {
    const name = given.toUpperCase().replace(/^VIRTIO_(BLK_)?F_/, "");
    const set = byName.get(name);
    if (set !== undefined) return declined | set;
    const near = nearest(name, [...byName.keys()].filter((known) => !known.startsWith("BIT_")));
    const hint = near === undefined ? "-c features lists what the device offers" : `did you mean '${near}'?`;
    throw new UsageError(`--decline: there is no feature ${given}`, hint);
  }, 0n);
}

/** Less than a machine has by default: twice as much would have the engine collect garbage before it has any. */
const DEFAULT_RAM_BYTES = 32 << 20;

function ramBytes(text: string | undefined): number {
  if (text === undefined) return DEFAULT_RAM_BYTES;
  const size = parseSize(text);
  // Rings and buffers need some; more than an ArrayBuffer can't be had.
  if (typeof size === "number" && size >= 1 << 20 && size <= 2 ** 34 && size % 4096 === 0) return size;
  throw new UsageError(`--ram ${text}: the guest's memory is 1M to 16G, in whole pages of 4k`);
}

async function sinks({ trace, explain }: AttachOptions, output: Output): Promise<TraceSink | undefined> {
  const write = (lines: readonly string[]) => output.err(lines);
  if (trace === "json") return (await import("../trace/json_sink.ts")).jsonSink(write);
  // The text form explains broken rules itself.
  if (trace === "text") return (await import("../trace/text_sink.ts")).textSink(write);
  if (explain) return (await import("../trace/explain.ts")).explainSink(write);
}

function printStatistics(machine: Machine, { json }: AttachOptions, output: Output): void {
  const report = machine.statistics.report();
  output.out(json ? [JSON.stringify({ statistics: report })] : formatStatistics(report));
}
