/**
 * Gives commands to another thread, in the form that the control socket takes them in.
 *
 * @module
 */

import { DescriptorList } from "../host/socket_message.ts";
import type { UnixConnection } from "../host/unix_connection.ts";
import { type ControlAnswer, ControlRefusal } from "./control_socket.ts";
import type { Watch, Watches } from "./watches.ts";

const SEND_TIMEOUT_MS = 1000;
const CHUNK_BYTES = 4096;

/** Whoever gave a command. */
interface Asker {
  resolve(answer: ControlAnswer): void;
  reject(error: Error): void;
}

/** The end that asks. */
export class CommandClient {
  /** Ends when the other thread has closed its end. */
  readonly ended: Promise<void>;
  readonly #socket: UnixConnection;
  readonly #watch: Watch;
  readonly #askers: Asker[] = [];
  #onEnd!: () => void;
  #text = "";
  #gone = false;

  /** Takes a connection over. */
  constructor(socket: UnixConnection, watches: Watches) {
    this.#socket = socket;
    this.ended = new Promise((resolve) => this.#onEnd = resolve);
    this.#watch = watches.add(socket.descriptor, () => this.#read());
  }

  /** Whether an answer has not come. */
  get waiting(): boolean {
    return this.#askers.length > 0;
  }

  /**
   * Has a command carried out.
   *
   * @throws ControlRefusal with what the other thread said
   */
  ask(request: Readonly<Record<string, unknown>>): Promise<ControlAnswer> {
    if (this.#gone) return Promise.reject(gone());
    return new Promise((resolve, reject) => {
      this.#askers.push({ resolve, reject });
      try {
        this.#socket.send(new TextEncoder().encode(`${JSON.stringify(request)}\n`), [], SEND_TIMEOUT_MS);
      } catch {
        this.#end();
      }
    });
  }

  #read(): void {
    using descriptors = new DescriptorList();
    while (!this.#gone) {
      const bytes = new Uint8Array(CHUNK_BYTES);
      let count: number;
      try {
        count = this.#socket.receiveSome(bytes, descriptors);
      } catch {
        count = 0;
      }
      if (count < 0) return;
      if (count === 0) return this.#end();
      const lines = (this.#text + new TextDecoder().decode(bytes.subarray(0, count))).split("\n");
      this.#text = lines.pop()!;
      for (const line of lines) this.#take(line);
    }
  }

  #take(line: string): void {
    const { ok, ...answer } = JSON.parse(line) as { ok: boolean; error?: string; hint?: string };
    const asker = this.#askers.shift();
    if (ok) asker?.resolve(answer);
    else asker?.reject(new ControlRefusal(answer.error ?? "", answer.hint));
  }

  #end(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#watch.close();
    this.#socket.close();
    for (const asker of this.#askers.splice(0)) asker.reject(gone());
    this.#onEnd();
  }
}

function gone(): ControlRefusal {
  return new ControlRefusal("an I/O thread has ended");
}
