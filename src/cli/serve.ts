/**
 * `vblk serve`: the device for somebody else's guest, over a vhost-user socket.
 *
 * @module
 */

import { libcProblem } from "../host/libc.ts";
import { ioUringProblem } from "../host/io_uring.ts";
import { BLK_DEFAULTS, type BlkOptions, blkOptions } from "../blk/options.ts";
import type { Output } from "../script/session.ts";
import { Control, WISH } from "../serve/control.ts";
import { Figures } from "../serve/figures.ts";
import { threadsReport } from "../serve/statistics.ts";
import type { ThreadNews, ThreadStart } from "../serve/thread_start.ts";
import { sharedTrace } from "../serve/trace_output.ts";
import { VRING_INDEX_MASK } from "../transport/vhost_user/vhost_user_layout.ts";
import { CommandFailure, UsageError } from "./failure.ts";
import type { Subcommand } from "./main.ts";
import { SERVE_HELP } from "./serve_help.ts";
import { parseServe, type ServeOptions } from "./serve_options.ts";
import type { EarlierReport } from "./serve_statistics.ts";
import { ServeThreads } from "./serve_threads.ts";

/** The subcommand. */
export const subcommand: Subcommand = { help: SERVE_HELP, run };

/** "Bits (0-7) of the payload contain the vring index": SET_VRING_KICK and its like name no more. */
const MOST_QUEUES = VRING_INDEX_MASK + 1;

/** What the thread does not answer in this time is shown as it was. */
const FRESH_WITHIN_MS = 500;

async function run(args: readonly string[], output: Output): Promise<number> {
  const options = parseServe(args);
  if (options === "help") {
    output.out(SERVE_HELP);
    return 0;
  }
  if (options === "device help") {
    output.out((await import("./device_options.ts")).deviceHelp());
    return 0;
  }
  const problem = libcProblem() ?? ioUringProblem();
  if (problem !== null) throw new CommandFailure(`serve: ${problem.message}`, problem.hint);
  const service = new Service(options, output);
  const metrics = options.metrics === null ? null : await service.openMetrics(options.metrics);
  try {
    return await service.run(await threadStart(options, service));
  } finally {
    metrics?.stop();
  }
}

async function threadStart(options: ServeOptions, service: Service): Promise<ThreadStart> {
  const { control, figures, otherFigures } = service;
  const { cache, discard, readOnly, snapshot, share, format } = options.settings;
  const device = { writeback: cache.writeback, ...await deviceOptions(options.devices), readOnly };
  const queues = device.queues ?? BLK_DEFAULTS.queues;
  if (options.ioThreads > queues) {
    throw new UsageError(
      `--iothreads ${options.ioThreads}: the device has ${queues} queue${
        queues === 1 ? "" : "s"
      }, and each queue one thread`,
      `give --device num-queues=${options.ioThreads}, or more`,
    );
  }
  return {
    part: "first",
    image: options.image,
    open: { format, readOnly, snapshot, share },
    direct: cache.direct,
    ignoreFlush: cache.noFlush,
    ignoreDiscard: !discard,
    device,
    socketPath: options.socketPath,
    passed: passedSockets(options.socketPath),
    once: options.once,
    pollNanoseconds: options.pollNanoseconds,
    control: control.end,
    controlPath: options.controlPath,
    observe: {
      figures: figures.memory,
      requests: options.statsSeconds !== null || options.metrics !== null,
      trace: options.trace,
      sharedTrace: otherFigures.length > 0 ? sharedTrace() : null,
    },
    otherFigures: otherFigures.map(({ memory }) => memory),
  };
}

async function deviceOptions(devices: readonly string[]): Promise<Partial<BlkOptions>> {
  if (devices.length === 0) return {};
  const { inPropertyNames, parseDevice } = await import("./device_options.ts");
  const options: Partial<BlkOptions> = Object.assign({}, ...devices.map(parseDevice));
  try {
    // Before anything is opened.
    blkOptions(options);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UsageError(inPropertyNames(error.message), "'--device help' lists the properties");
  }
  const { queues } = options;
  if (queues !== undefined && queues > MOST_QUEUES) {
    throw new UsageError(
      `--device: num-queues=${queues}: vhost-user has 8 bits for the number of a queue`,
      `${MOST_QUEUES} queues are the most that can be served`,
    );
  }
  return options;
}

/** Asks the environment only when it is needed: it takes a permission. */
function passedSockets(socketPath: string | null): ThreadStart["passed"] {
  if (socketPath !== null) return { pid: undefined, count: undefined };
  const unnamed = "serve: no socket was named";
  try {
    const count = Deno.env.get("LISTEN_FDS");
    if (count === undefined) throw new UsageError(unnamed, "give --vhost-user SOCKET");
    return { pid: Deno.env.get("LISTEN_PID"), count };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    throw new UsageError(unnamed, "give --vhost-user SOCKET, or --allow-env for one that systemd passes");
  }
}

/** The main thread's part: signals, statistics, readiness. The disk itself is another thread's. */
class Service {
  readonly control = new Control();
  readonly figures = new Figures();
  readonly otherFigures: readonly Figures[];
  readonly #options: ServeOptions;
  readonly #output: Output;
  readonly #startedMs = performance.now();
  readonly #disk: { image: string; format: string };
  /** Who waits for the numbers to be up to date. */
  #waiting: (() => void)[] = [];
  #earlier: EarlierReport | undefined;
  /** Only what was written here is removed in the end. */
  #hasPidFile = false;
  /** Why it ends, when that is not the thread's doing. */
  #failure: CommandFailure | null = null;

  constructor(options: ServeOptions, output: Output) {
    this.#options = options;
    this.#output = output;
    this.otherFigures = Array.from({ length: options.ioThreads - 1 }, () => new Figures());
    this.#disk = { image: options.image, format: options.settings.format ?? "unknown" };
  }

  /** Serves metrics. */
  async openMetrics(address: NonNullable<ServeOptions["metrics"]>): Promise<{ stop(): void }> {
    const [{ serveMetrics }, { metricsText }] = await Promise.all([
      import("./serve_metrics.ts"),
      import("../serve/metrics.ts"),
    ]);
    const server = serveMetrics(address, async () => {
      await this.#refreshed();
      return metricsText(Figures.total(this.figures, this.otherFigures), this.#disk);
    });
    this.#output.out([`metrics at ${server.url}`]);
    return server;
  }

  /** Runs the thread until it ends. */
  async run(start: ThreadStart): Promise<number> {
    const stop = () => this.control.ask(WISH.stop);
    const print = () => void this.#refreshed().then(() => this.#print());
    // Not SIGUSR1: to that Deno opens its inspector.
    const signals = [["SIGTERM", stop], ["SIGINT", stop], ["SIGUSR2", print]] as const;
    for (const [signal, handler] of signals) Deno.addSignalListener(signal, handler);
    const { statsSeconds } = this.#options;
    const timer = statsSeconds ? setInterval(print, statsSeconds * 1000) : undefined;
    try {
      await this.#threads(start).run();
      if (this.#failure !== null) throw this.#failure;
      if (statsSeconds !== null) await this.#print();
      return 0;
    } finally {
      clearInterval(timer);
      for (const [signal, handler] of signals) Deno.removeSignalListener(signal, handler);
      if (this.#hasPidFile) removeQuietly(this.#options.pidFile!);
    }
  }

  #threads(start: ThreadStart): ServeThreads {
    return new ServeThreads(start, {
      ready: (news) => this.#ready(start, news),
      statistics: () => this.#waiting.splice(0).forEach((resume) => resume()),
      message: ({ text, hint }) => this.#output.err([`vblk: ${text}`, ...hint === undefined ? [] : [`hint: ${hint}`]]),
      stop: () => this.control.ask(WISH.stop),
    });
  }

  async #ready(start: ThreadStart, news: ThreadNews & { news: "ready" }): Promise<void> {
    this.#disk.format = news.format;
    const { pidFile } = this.#options;
    if (pidFile !== undefined) {
      try {
        Deno.writeTextFileSync(pidFile, `${Deno.pid}\n`);
        this.#hasPidFile = true;
      } catch (error) {
        // The thread gives back what it has, the socket among it.
        this.#failure = new CommandFailure(`can't write the pid file '${pidFile}': ${(error as Error).message}`);
        return this.control.ask(WISH.stop);
      }
    }
    this.#output.out(readyLines(start, news));
    const address = notifyAddress();
    if (address === undefined) return;
    const { notify } = await import("../host/notify_socket.ts");
    try {
      notify(address, "READY=1");
    } catch (error) {
      this.#output.err([`vblk: can't tell systemd that it serves: ${(error as Error).message}`]);
    }
  }

  /** Ends when the numbers are up to date, or when the thread has no time for that. */
  #refreshed(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, FRESH_WITHIN_MS);
      this.#waiting.push(() => {
        clearTimeout(timer);
        resolve();
      });
      this.control.ask(WISH.statistics);
    });
  }

  async #print(): Promise<void> {
    const { servedLines } = await import("./serve_statistics.ts");
    const report = threadsReport(this.figures, this.otherFigures);
    const seconds = (performance.now() - this.#startedMs) / 1000;
    const lines = servedLines(report, seconds, this.#earlier);
    this.#earlier = { report, seconds };
    const isBrief = this.#options.statsSeconds === null && this.#options.metrics === null;
    this.#output.err(isBrief ? [...lines, "hint: --stats counts requests by kind, and times them"] : lines);
  }
}

/** Nobody is asked for the permission: most are not started by systemd. */
function notifyAddress(): string | undefined {
  const variable = "NOTIFY_SOCKET";
  if (Deno.permissions.querySync({ name: "env", variable }).state !== "granted") return undefined;
  return Deno.env.get(variable);
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // It was never written, or somebody was faster.
  }
}

function readyLines(
  { socketPath, controlPath, image, device }: ThreadStart,
  { sizeBytes, format }: ThreadNews & { news: "ready" },
): string[] {
  const lines = [
    `serving ${image} (${format}, ${sizeBytes} bytes) at ${socketPath ?? "the socket that was passed"}`,
  ];
  if (socketPath !== null) {
    lines.push(
      "  QEMU:              -chardev socket,id=vblk,path=" + socketPath + ",reconnect=1",
      `                     -device vhost-user-blk-pci,chardev=vblk,num-queues=${device.queues ?? 1}`,
      "                     -object memory-backend-memfd,id=mem,share=on,size=512M -machine memory-backend=mem -m 512M",
      `  Cloud Hypervisor:  --memory size=512M,shared=on --disk vhost_user=true,socket=${socketPath}`,
      `  libblkio:          --image-opts driver=virtio-blk-vhost-user,path=${socketPath},cache.direct=on`,
    );
  }
  if (controlPath !== null) lines.push(`  resize:            vblk resize --control ${controlPath} SIZE`);
  return lines;
}
