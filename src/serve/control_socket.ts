/**
 * The control socket of a served image: whoever may connect (its owner) sends commands, one JSON object a line, and gets
 * one line back for each.
 *
 *     {"command":"resize","size":N}            the disk gets N bytes; "by":N instead changes its size by so many
 *     {"command":"resize","size":N,"shrink":true}   needed to make it smaller
 *     {"command":"statistics"}                 what was done so far, in numbers
 *     {"command":"stop"}                       as SIGTERM
 *
 * An answer is `{"ok":true,...}`, or `{"ok":false,"error":"...","hint":"..."}`.
 *
 * @module
 */

import { DescriptorList } from "../host/socket_message.ts";
import type { UnixConnection } from "../host/unix_connection.ts";
import type { Listener } from "./handed_over.ts";
import type { Watch, Watches } from "./watches.ts";

/** Longest line of a command, in bytes. */
const MOST_LINE_BYTES = 4096;
const MOST_CLIENTS = 16;
/** A client that does not take its answer for so long is given up: the guest waits meanwhile. */
const SEND_TIMEOUT_MS = 100;

/** A command can't be carried out; the message goes to the client. */
export class ControlRefusal extends Error {
  override readonly name = "ControlRefusal";
  readonly hint: string | undefined;

  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }
}

/** What a command gives back, besides `ok`. */
export type ControlAnswer = Readonly<Record<string, unknown>>;

/** A command, by name. Errors of any kind are told to the client. */
export type ControlCommands = Readonly<
  Record<string, (request: Readonly<Record<string, unknown>>) => ControlAnswer | Promise<ControlAnswer>>
>;

interface Client {
  readonly socket: UnixConnection;
  readonly watch: Watch;
  /** What came of a line that is not at its end. */
  pending: Uint8Array;
  /** A command is being carried out: the next ones wait in the socket. */
  busy: boolean;
}

/** The socket, and those who are connected. */
export class ControlSocket {
  readonly #listener: Listener;
  readonly #watches: Watches;
  readonly #commands: ControlCommands;
  readonly #watch: Watch;
  readonly #clients = new Set<Client>();
  #running = 0;
  /** Commands are carried out one after the other, whoever sends them. */
  #last: Promise<unknown> = Promise.resolve();

  /** Takes the listener over. */
  constructor(listener: Listener, watches: Watches, commands: ControlCommands) {
    this.#listener = listener;
    this.#watches = watches;
    this.#commands = commands;
    this.#watch = watches.add(listener.descriptor, () => this.#accept());
  }

  /** Whether a command is being carried out. */
  get busy(): boolean {
    return this.#running > 0;
  }

  /** Lets everybody go. */
  close(): void {
    for (const client of this.#clients) this.#drop(client);
    this.#watch.close();
    this.#listener.close();
  }

  #accept(): void {
    for (let socket = this.#listener.accept(0); socket !== null; socket = this.#listener.accept(0)) {
      if (this.#clients.size >= MOST_CLIENTS) {
        socket.close();
        continue;
      }
      const client: Client = {
        socket,
        watch: this.#watches.add(socket.descriptor, () => this.#read(client)),
        pending: new Uint8Array(0),
        busy: false,
      };
      this.#clients.add(client);
      this.#read(client);
    }
  }

  #read(client: Client): void {
    using descriptors = new DescriptorList();
    while (!client.busy && this.#clients.has(client)) {
      const end = client.pending.indexOf(10);
      if (end >= 0) {
        const line = client.pending.subarray(0, end);
        client.pending = client.pending.slice(end + 1);
        this.#start(client, line);
        continue;
      }
      const room = MOST_LINE_BYTES - client.pending.byteLength;
      if (room <= 0) return this.#drop(client);
      const bytes = new Uint8Array(room);
      let count: number;
      try {
        count = client.socket.receiveSome(bytes, descriptors);
      } catch {
        count = 0;
      }
      if (count < 0) return;
      if (count === 0) return this.#drop(client);
      client.pending = Uint8Array.of(...client.pending, ...bytes.subarray(0, count));
    }
  }

  #start(client: Client, line: Uint8Array): void {
    client.busy = true;
    this.#running++;
    const answered = this.#last.then(() => this.#answer(line));
    this.#last = answered;
    answered.then((answer) => {
      this.#running--;
      client.busy = false;
      this.#send(client, answer);
      this.#read(client);
    });
  }

  async #answer(line: Uint8Array): Promise<ControlAnswer> {
    try {
      const request = parse(line);
      const name = request.command;
      if (typeof name !== "string" || !Object.hasOwn(this.#commands, name)) {
        throw new ControlRefusal("there is no such command", `commands: ${Object.keys(this.#commands).join(", ")}`);
      }
      return { ok: true, ...await this.#commands[name](request) };
    } catch (error) {
      const { message, hint } = error as Error & { hint?: string };
      return { ok: false, error: message, hint };
    }
  }

  #send(client: Client, answer: ControlAnswer): void {
    if (!this.#clients.has(client)) return;
    try {
      client.socket.send(new TextEncoder().encode(`${JSON.stringify(answer)}\n`), [], SEND_TIMEOUT_MS);
    } catch {
      this.#drop(client);
    }
  }

  #drop(client: Client): void {
    if (!this.#clients.delete(client)) return;
    client.watch.close();
    client.socket.close();
  }
}

function parse(line: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(line));
  } catch {
    throw new ControlRefusal("a command is a line with a JSON object");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ControlRefusal("a command is a line with a JSON object");
  }
  return value as Record<string, unknown>;
}
