/** An image served by `vblk serve`, as a process of its own that a test may kill and start again. */

import { DescriptorList } from "../../../src/host/socket_message.ts";
import { UnixConnection } from "../../../src/host/unix_connection.ts";
import type { ServedReport } from "../../../src/serve/statistics.ts";
import { CLI } from "../../cli/vblk.ts";
import { LineReader, PATIENCE_MS, within } from "./line_reader.ts";

/** The process. */
export class ServedDisk implements AsyncDisposable {
  readonly image: string;
  readonly socket: string;
  readonly #args: readonly string[];
  #child: Deno.ChildProcess | null = null;
  #lines: LineReader | null = null;
  #errors: LineReader | null = null;
  #errorText = "";
  #heard: Promise<void> = Promise.resolve();

  private constructor(image: string, socket: string, args: readonly string[]) {
    this.image = image;
    this.socket = socket;
    this.#args = args;
  }

  /** Serves `image` at `socket`, and returns once a front-end can connect. `args` are further options of `vblk serve`. */
  static async start(image: string, socket: string, ...args: string[]): Promise<ServedDisk> {
    const disk = new ServedDisk(image, socket, args);
    await disk.start();
    return disk;
  }

  /** What the process said on stderr, all lives together. */
  get errors(): string {
    return this.#errorText;
  }

  /** Starts it again after `kill` or `stop`; `more` are options of this life only. */
  async start(...more: string[]): Promise<void> {
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", "-RW", "--allow-ffi", CLI, "serve", ...this.#args, ...more, this.image].concat(
        "--vhost-user",
        this.socket,
      ),
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
    }).spawn();
    this.#lines = new LineReader(this.#child.stdout);
    this.#errors = new LineReader(this.#child.stderr);
    this.#heard = this.#listen(this.#errors);
    const ready = await within(this.#lines.next(), PATIENCE_MS, () => `vblk serve is ready; ${this.#errorText}`);
    if (!ready?.startsWith("serving ")) {
      await this.kill();
      throw new Error(`vblk serve did not start: ${this.#errorText}`);
    }
  }

  /** Ends it as a crash does. */
  async kill(): Promise<void> {
    await this.#end("SIGKILL");
  }

  /** Ends it in good order, and returns its exit code. */
  async stop(): Promise<number> {
    return await this.#end("SIGTERM");
  }

  /** Waits until it ends by itself, and returns its exit code. */
  async ended(): Promise<number> {
    return await this.#end(null);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child !== null) await this.kill();
  }

  async #listen(errors: LineReader): Promise<void> {
    for (let line = await errors.next(); line !== null; line = await errors.next()) this.#errorText += `${line}\n`;
  }

  async #end(signal: Deno.Signal | null): Promise<number> {
    const child = this.#child;
    if (child === null) throw new Error("it does not run");
    try {
      if (signal !== null) child.kill(signal);
    } catch {
      // It has ended by itself.
    }
    const { code } = await within(
      child.status,
      PATIENCE_MS,
      () => `vblk serve ends on ${signal ?? "its own"}; ${this.#errorText}`,
    );
    this.#child = null;
    await this.#heard;
    await this.#lines!.close();
    await this.#errors!.close();
    return code;
  }
}

/** Numbers of a process that takes commands at `control`. */
export async function statistics(control: string): Promise<ServedReport> {
  using connection = UnixConnection.connect(control);
  connection.send(new TextEncoder().encode('{"command":"statistics"}\n'));
  using descriptors = new DescriptorList();
  const byte = new Uint8Array(1);
  const end = Date.now() + PATIENCE_MS;
  for (let line = "";;) {
    const got = connection.receive(byte, descriptors, 1);
    if (got === "all") line += String.fromCharCode(byte[0]);
    if (line.endsWith("\n")) return JSON.parse(line) as ServedReport;
    if (got === "end" || Date.now() > end) throw new Error("it gives no statistics");
    // It may have to wait until somebody reads what it says on stderr.
    if (got === "timeout") await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
