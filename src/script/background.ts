/**
 * Requests that go on while other commands run.
 *
 * @module
 */

import type { Session } from "./session.ts";

/** What goes on in the background of a session. */
export class Background {
  readonly #session: Session;
  readonly #tasks = new Set<Promise<void>>();
  /** What goes on moves so many bytes. */
  #bytes = 0;
  /** Takes the plug out; `undefined` when it is not in. */
  #plugTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(session: Session) {
    this.#session = session;
  }

  /** Whether requests are in flight that no command waits for. */
  get isBusy(): boolean {
    return this.#tasks.size > 0;
  }

  /**
   * Lets `send` send requests; it reports its own failures. Requests of commands that follow each other are made
   * available together: one notification may do for all.
   */
  async add(lengthBytes: number, send: () => Promise<void>): Promise<void> {
    // Their buffers are in the guest's memory, which has an end.
    const limit = this.#session.machine.guest.driver.allocator.ram.bytes.byteLength / 8;
    if (this.#tasks.size > 0 && this.#bytes + lengthBytes > limit) await this.drain();
    this.#plug();
    this.#bytes += lengthBytes;
    const task = send().finally(() => {
      this.#tasks.delete(task);
      this.#bytes -= lengthBytes;
    });
    this.#tasks.add(task);
  }

  /** Ends when nothing goes on any more. */
  async drain(): Promise<void> {
    this.unplug();
    while (this.#tasks.size > 0) await this.#session.wait(Promise.all(this.#tasks));
  }

  /** Lets go what was held back. */
  unplug(): void {
    if (this.#plugTimer === undefined) return;
    clearTimeout(this.#plugTimer);
    this.#plugTimer = undefined;
    if (this.#session.isOpen) this.#session.machine.guest.unplug();
  }

  /** Holds notifications back while commands come without a pause. */
  #plug(): void {
    if (this.#plugTimer !== undefined) return;
    this.#session.machine.guest.plug();
    // Whoever sends one command and waits for its report before the next must not wait for ever.
    this.#plugTimer = setTimeout(() => this.unplug(), 0);
  }
}
