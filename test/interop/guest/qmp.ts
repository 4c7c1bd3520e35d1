/** QEMU's monitor: one command, one answer, and the events in between. */

import { LineReader, PATIENCE_MS, within } from "./line_reader.ts";

/** What comes from the monitor. */
interface Message {
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
  readonly event?: string;
  readonly data?: Record<string, unknown>;
}

/** A monitor. */
export class Monitor {
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #lines: LineReader;
  readonly #events: Message[] = [];

  private constructor(qemu: Deno.ChildProcess) {
    this.#input = qemu.stdin.getWriter();
    this.#lines = new LineReader(qemu.stdout);
  }

  /** Takes the monitor that a QEMU has on its standard input and output. */
  static async open(qemu: Deno.ChildProcess): Promise<Monitor> {
    const monitor = new Monitor(qemu);
    await monitor.#message("its greeting");
    await monitor.run("qmp_capabilities");
    return monitor;
  }

  /** Runs a command. @throws {Error} if QEMU refuses it. */
  async run(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const text = JSON.stringify({ execute: command, arguments: args });
    await this.#input.write(new TextEncoder().encode(`${text}\n`));
    for (;;) {
      const message = await this.#message(`an answer to ${text}`);
      if (message.event !== undefined) this.#events.push(message);
      else if (message.error !== undefined) throw new Error(`${text}: ${message.error.desc}`);
      else return message.return;
    }
  }

  /** Waits for an event that has come or comes, and forgets it and all before it. */
  async event(name: string, matches: (data: Record<string, unknown>) => boolean = () => true): Promise<void> {
    for (;;) {
      const message = this.#events.shift() ?? await this.#message(`the event ${name}`);
      if (message.event === name && matches(message.data ?? {})) return;
    }
  }

  /** Ends the connection. */
  async close(): Promise<void> {
    await this.#input.close().catch(() => {});
    await this.#lines.close();
  }

  async #message(what: string): Promise<Message> {
    const line = await within(this.#lines.next(), PATIENCE_MS, () => `QEMU's monitor says ${what}`);
    if (line === null) throw new Error(`QEMU ended before it said ${what}`);
    return JSON.parse(line);
  }
}
