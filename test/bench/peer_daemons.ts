/**
 * The two daemons that `peers.ts` holds against each other, and the client that drives both.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { frontEnd, trixie, type TrixieCommand } from "../trixie.ts";

/** Formats that are measured. */
export type Format = "raw" | "qcow2";

/** A daemon's image and how it opens it. */
export interface Served {
  readonly path: string;
  readonly format: Format;
  /** Past the host's page cache. */
  readonly direct: boolean;
}

/** What one run of the client came to. */
export interface Figures {
  readonly requestsPerSecond: number;
  /** Seconds of the daemon's CPU time, its kernel threads included, for a million requests. */
  readonly cpuSecondsPerMillion: number;
}

/** What the client is to do. */
export interface Load {
  readonly write: boolean;
  readonly blockBytes: number;
  /** From one request's offset to the next one's; wraps round at the disk's end. */
  readonly stepBytes: number;
  readonly depth: number;
}

const CLI = fileURLToPath(new URL("../../cli.ts", import.meta.url));

/** How long a daemon may take until its socket is there, ms. */
const START_MS = 20_000;

/** Clock ticks of /proc/PID/stat in a second; Linux has told programs 100 for ever. */
const TICKS = 100;

/**
 * Processors to keep the client and the daemon on, or anywhere. Where both may run anywhere the scheduler may put them on
 * one, which makes a run with few requests in flight several times as fast as the next one.
 */
export const processors: { client: number | null; daemon: number | null } = { client: null, daemon: null };

/** Keeps a program on one processor. */
function pinned(program: TrixieCommand, processor: number | null): TrixieCommand {
  if (processor === null) return program;
  return { ...program, command: "taskset", args: ["-c", `${processor}`, program.command, ...program.args] };
}

/** A daemon that serves an image until the end of the scope (`await using`). */
export class Daemon implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #socket: string;

  private constructor(child: Deno.ChildProcess, socket: string) {
    this.#child = child;
    this.#socket = socket;
  }

  /** `vblk serve`, as the README says; `flags` go in front of the image. */
  static vblk(served: Served, socket: string, flags: readonly string[] = []): Promise<Daemon> {
    // No lock: the other daemon has the same file open.
    const options = ["-U", "-f", served.format, ...served.direct ? ["--direct"] : [], ...flags];
    const args = ["run", "--no-check", "-A", CLI, "serve", ...options, served.path, "--vhost-user", socket];
    return Daemon.#start({ command: Deno.execPath(), args, env: { DENO_NO_UPDATE_CHECK: "1" } }, socket);
  }

  /** `qemu-storage-daemon` with an I/O thread and io_uring. */
  static qemu(served: Served, socket: string): Promise<Daemon> {
    const cache = `cache.direct=${served.direct ? "on" : "off"}`;
    const file = `driver=file,node-name=file,filename=${served.path},aio=io_uring,locking=off,${cache}`;
    const nodes = served.format === "raw"
      ? ["--blockdev", file]
      : ["--blockdev", file, "--blockdev", `driver=${served.format},node-name=disk,file=file,${cache}`];
    const node = served.format === "raw" ? "file" : "disk";
    const address = `addr.type=unix,addr.path=${socket}`;
    const exported = `type=vhost-user-blk,id=export,node-name=${node},${address},iothread=thread,writable=on`;
    return Daemon.#start(
      trixie("qemu-storage-daemon", "--object", "iothread,id=thread", ...nodes, "--export", exported),
      socket,
    );
  }

  static async #start(program: TrixieCommand, socket: string): Promise<Daemon> {
    const { command, args, env } = pinned(program, processors.daemon);
    const child = new Deno.Command(command, { args: [...args], env, stdin: "null", stdout: "null" }).spawn();
    const daemon = new Daemon(child, socket);
    let ended = false;
    child.status.then(() => ended = true);
    try {
      for (const start = performance.now(); !await listens(socket);) {
        if (ended || performance.now() - start > START_MS) throw new Error(`no socket at ${socket}: ${args.join(" ")}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    } catch (error) {
      await daemon[Symbol.asyncDispose]();
      throw error;
    }
    return daemon;
  }

  /** Runs the client once. */
  async run(load: Load, requests: number): Promise<Figures> {
    const { write, blockBytes, stepBytes, depth } = load;
    const before = this.#cpuSeconds();
    const client = trixie(
      "qemu-img",
      ...["bench", "-c", `${requests}`, "-d", `${depth}`, "-s", `${blockBytes}`, "-S", `${stepBytes}`],
      ...[...write ? ["-w"] : [], "-t", "none", "--image-opts", frontEnd(this.#socket)],
    );
    const { command, args, env } = pinned(client, processors.client);
    const { stdout, stderr } = await new Deno.Command(command, { args: [...args], env }).output();
    const seconds = /completed in ([\d.]+) seconds/.exec(new TextDecoder().decode(stdout))?.[1];
    if (seconds === undefined) throw new Error(`qemu-img bench: ${new TextDecoder().decode(stderr)}`);
    return {
      requestsPerSecond: requests / Number(seconds),
      cpuSecondsPerMillion: (this.#cpuSeconds() - before) / requests * 1e6,
    };
  }

  #cpuSeconds(): number {
    const stat = Deno.readTextFileSync(`/proc/${this.#child.pid}/stat`);
    // The name, which may hold anything, is in parentheses; user and system time are fields 14 and 15.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGTERM");
    } catch {
      // It has ended by itself.
    }
    await this.#child.status;
  }
}

/** Whether a process listens there; asking by connecting would be a front-end's session. */
async function listens(socket: string): Promise<boolean> {
  const lines = (await Deno.readTextFile("/proc/net/unix")).split("\n");
  return lines.some((line) => line.endsWith(` ${socket}`));
}

/** The limit: requests per second of fio with io_uring on the file itself, at random offsets or one after the other. */
export async function fioLimit(path: string, load: Load, direct: boolean, seconds: number): Promise<number> {
  const sequential = load.stepBytes === load.blockBytes;
  const direction = load.write ? "write" : "read";
  const fio = trixie(
    "fio",
    ...["--name=limit", `--filename=${path}`, "--ioengine=io_uring", "--invalidate=0", "--output-format=json"],
    ...[`--rw=${sequential ? "" : "rand"}${direction}`, `--bs=${load.blockBytes}`, `--iodepth=${load.depth}`],
    ...[`--direct=${direct ? 1 : 0}`, "--norandommap", "--time_based", `--runtime=${seconds}`, "--thread"],
  );
  const { command, args, env } = pinned(fio, processors.daemon);
  const { success, stdout, stderr } = await new Deno.Command(command, { args: [...args], env }).output();
  if (!success) throw new Error(`fio: ${new TextDecoder().decode(stderr)}`);
  const text = new TextDecoder().decode(stdout);
  return JSON.parse(text.slice(text.indexOf("{"))).jobs[0][direction].iops;
}
