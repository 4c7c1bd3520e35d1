/**
 * `vblk serve`: the device for somebody else's guest, over a vhost-user socket.
 *
 * @module
 */

import { libcProblem } from "../host/libc.ts";
import { ioUringProblem } from "../host/io_uring.ts";
import { addressBytes } from "../host/unix_address.ts";
import type { BlkOptions } from "../blk/options.ts";
import type { Output } from "../script/session.ts";
import { getopt, type LongOption, OptionError } from "../script/getopt.ts";
import { applyFlag, DEFAULT_SETTINGS, type OpenSettings, SettingError } from "../script/open_settings.ts";
import { Control, WISH } from "../serve/control.ts";
import type { ThreadNews, ThreadStart } from "../serve/io_thread.ts";
import { CommandFailure, UsageError } from "./failure.ts";
import type { Subcommand } from "./main.ts";

const HELP: readonly string[] = [
  "Usage: vblk serve [OPTIONS]... IMAGE --vhost-user SOCKET",
  "",
  "Gives a virtual machine its disk, through a vhost-user-blk socket. Linux only; needs --allow-ffi.",
  "",
  "  --vhost-user SOCKET   where front-ends connect; a socket that nobody listens at is replaced. Without it the socket",
  "                        that systemd passes is used",
  "  --once                end after the first front-end",
  "  -f, --format FORMAT   raw or qcow2; found out when not given",
  "  -r, --read-only       the guest must not write",
  "  -s, --snapshot        keep writes in memory, and forget them at the end",
  "  -U, --force-share     take no lock",
  "  -t, --cache MODE      writeback (default), none, writethrough, directsync, unsafe",
  "  -d, --discard MODE    unmap (default) or ignore",
  "  --direct              the same as -t none: go past the host's page cache",
  "  --device PROPERTIES   what the device offers, as for 'vblk attach'; '--device help' lists them",
  "  --poll-max-ns N       look for requests so long before sleeping (default: 0)",
  "  --pid-file FILE       write the process's number there while it serves",
  "",
  "SIGTERM and SIGINT let what is in flight end, flush, and close the image; SIGUSR1 prints statistics.",
  "",
  "Example: vblk serve disk.qcow2 --vhost-user /run/vm.sock",
];

const LONGS: readonly LongOption[] = [
  { name: "vhost-user", value: "required" },
  { name: "once", value: "none" },
  { name: "direct", value: "none" },
  { name: "device", value: "required" },
  { name: "poll-max-ns", value: "required" },
  { name: "pid-file", value: "required" },
  { name: "format", value: "required", letter: "f" },
  { name: "read-only", value: "none", letter: "r" },
  { name: "snapshot", value: "none", letter: "s" },
  { name: "force-share", value: "none", letter: "U" },
  { name: "cache", value: "required", letter: "t" },
  { name: "discard", value: "required", letter: "d" },
  { name: "help", value: "none", letter: "h" },
];

/** The subcommand. */
export const subcommand: Subcommand = { help: HELP, run };

interface Wishes {
  readonly image: string;
  readonly settings: OpenSettings;
  readonly socketPath: string | null;
  readonly once: boolean;
  readonly devices: readonly string[];
  readonly pollNanoseconds: number;
  readonly pidFile: string | undefined;
}

async function run(args: readonly string[], output: Output): Promise<number> {
  const wishes = parse(args);
  if (wishes === "help") {
    output.out(HELP);
    return 0;
  }
  if (wishes.devices.includes("help")) {
    output.out((await import("./device_options.ts")).deviceHelp());
    return 0;
  }
  const problem = libcProblem() ?? ioUringProblem();
  if (problem !== null) throw new CommandFailure(`serve: ${problem.message}`, problem.hint);
  if (wishes.socketPath !== null) addressBytes(wishes.socketPath);
  const { cache, discard, readOnly, snapshot, share, format } = wishes.settings;
  const control = new Control();
  const start: ThreadStart = {
    image: wishes.image,
    open: { format, readOnly, snapshot, share },
    direct: cache.direct,
    ignoreFlush: cache.noFlush,
    ignoreDiscard: !discard,
    device: { writeback: cache.writeback, ...await deviceOptions(wishes.devices), readOnly },
    socketPath: wishes.socketPath,
    passed: passedSockets(wishes.socketPath),
    once: wishes.once,
    pollNanoseconds: wishes.pollNanoseconds,
    control: control.end,
  };
  return await serve(start, control, wishes, output);
}

/** Asks the environment only when it is needed: it takes a permission. */
function passedSockets(socketPath: string | null): ThreadStart["passed"] {
  if (socketPath !== null) return { pid: undefined, count: undefined };
  try {
    return { pid: Deno.env.get("LISTEN_PID"), count: Deno.env.get("LISTEN_FDS") };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    throw new UsageError(
      "serve: no socket was named",
      "give --vhost-user SOCKET, or --allow-env for one that systemd passes",
    );
  }
}

function serve(start: ThreadStart, control: Control, wishes: Wishes, output: Output): Promise<number> {
  const worker = new Worker(new URL("../serve/io_thread.ts", import.meta.url), { type: "module" });
  const stop = () => control.ask(WISH.stop);
  const statistics = () => control.ask(WISH.statistics);
  const signals = [["SIGTERM", stop], ["SIGINT", stop], ["SIGUSR1", statistics]] as const;
  for (const [signal, handler] of signals) Deno.addSignalListener(signal, handler);
  return new Promise<number>((resolve, reject) => {
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(`the I/O thread ended: ${event.message}`));
    };
    worker.onmessage = ({ data }: MessageEvent<ThreadNews>) => {
      switch (data.news) {
        case "ready":
          if (wishes.pidFile !== undefined) Deno.writeTextFileSync(wishes.pidFile, `${Deno.pid}\n`);
          return output.out(readyLines(start, data));
        case "statistics":
          return output.err([`vblk: note: ${data.text}`]);
        case "message":
          return output.err([`vblk: ${data.text}`, ...data.hint === undefined ? [] : [`hint: ${data.hint}`]]);
        case "ended":
          worker.terminate();
          if (data.error === undefined) resolve(0);
          else reject(new CommandFailure(data.error.message, data.error.hint));
      }
    };
    worker.postMessage(start);
  }).finally(() => {
    for (const [signal, handler] of signals) Deno.removeSignalListener(signal, handler);
    if (wishes.pidFile !== undefined) removeQuietly(wishes.pidFile);
  });
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // It was never written, or somebody was faster.
  }
}

function readyLines(
  { socketPath, image }: ThreadStart,
  { sizeBytes, format }: ThreadNews & { news: "ready" },
): string[] {
  const ready = `serving ${image} (${format}, ${sizeBytes} bytes) at ${socketPath ?? "the socket that was passed"}`;
  if (socketPath === null) return [ready];
  return [
    ready,
    "  QEMU:              -chardev socket,id=vblk,path=" + socketPath + ",reconnect=1",
    "                     -device vhost-user-blk-pci,chardev=vblk",
    "                     -object memory-backend-memfd,id=mem,share=on,size=512M -machine memory-backend=mem -m 512M",
    `  Cloud Hypervisor:  --memory size=512M,shared=on --disk vhost_user=true,socket=${socketPath}`,
    `  libblkio:          --image-opts driver=virtio-blk-vhost-user,path=${socketPath},cache.direct=on`,
  ];
}

async function deviceOptions(devices: readonly string[]): Promise<Partial<BlkOptions>> {
  if (devices.length === 0) return {};
  const { parseDevice } = await import("./device_options.ts");
  return Object.assign({}, ...devices.map(parseDevice));
}

function parse(args: readonly string[]): Wishes | "help" {
  const { options, operands } = readOptions(args);
  if (options.some(({ name }) => name === "h")) return "help";
  const last = (wanted: string) => options.findLast(({ name }) => name === wanted)?.value ?? undefined;
  const has = (wanted: string) => options.some(({ name }) => name === wanted);
  let settings = DEFAULT_SETTINGS;
  for (const { name, value } of options) {
    if (name.length > 1) continue;
    try {
      settings = applyFlag(settings, name, value) ?? settings;
    } catch (error) {
      if (!(error instanceof SettingError)) throw error;
      throw new UsageError(error.message);
    }
  }
  if (has("direct")) settings = { ...settings, cache: { ...settings.cache, direct: true } };
  const devices = options.filter(({ name }) => name === "device").map(({ value }) => value ?? "");
  if (operands.length !== 1 && !devices.includes("help")) {
    throw new UsageError(`serve takes one image, and there are ${operands.length}`);
  }
  const poll = last("poll-max-ns") ?? "0";
  if (!/^\d{1,9}$/.test(poll)) throw new UsageError(`--poll-max-ns ${poll}: not a number of nanoseconds below 1 s`);
  return {
    image: operands[0],
    settings,
    socketPath: last("vhost-user") ?? null,
    once: has("once"),
    devices,
    pollNanoseconds: Number(poll),
    pidFile: last("pid-file"),
  };
}

function readOptions(args: readonly string[]) {
  try {
    const { options, operands } = getopt(args, "hf:rsUt:d:", LONGS);
    return { options, operands: operands.map((index) => args[index]) };
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    throw new UsageError(error.message);
  }
}
