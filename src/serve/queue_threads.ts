/**
 * The threads that have some of the queues (`--iothreads`), as the first thread sees them: sessions with their back-ends,
 * and commands about what is not the front-end's business.
 *
 * @module
 */

import type { OtherBackEnds } from "../transport/vhost_user/back_end.ts";
import type { Peer } from "../transport/vhost_user/peer.ts";
import { CommandClient } from "./command_client.ts";
import { HandOver } from "./handed_over.ts";
import { PeerLink } from "./peer_link.ts";
import type { QueueThreadEnds } from "./thread_start.ts";
import type { Watches } from "./watches.ts";

interface QueueThread {
  readonly sessions: HandOver;
  readonly commands: HandOver;
  readonly client: CommandClient;
}

/** All of them. */
export class QueueThreads implements OtherBackEnds {
  readonly #threads: readonly QueueThread[];
  readonly #watches: Watches;
  #links: readonly PeerLink[] = [];
  #running = 0;

  /** Whom they will talk to; they are started by the main thread. */
  constructor(count: number, watches: Watches) {
    this.#watches = watches;
    this.#threads = Array.from({ length: count }, () => {
      const commands = new HandOver();
      return { sessions: new HandOver(), commands, client: new CommandClient(commands.connect(), watches) };
    });
  }

  /** What each of them needs to be started. */
  get ends(): readonly QueueThreadEnds[] {
    return this.#threads.map(({ sessions, commands }) => ({
      sessions: sessions.otherEnd,
      commands: commands.otherEnd,
    }));
  }

  /** Whether an answer has not come: there is nothing to do until it does, as far as they are concerned. */
  get waiting(): boolean {
    return this.#links.some((link) => link.waiting) || this.#threads.some(({ client }) => client.waiting);
  }

  /** Whether something goes on that answers were waited for, and its end has not come. */
  get busy(): boolean {
    return this.#running > 0;
  }

  connect(): readonly Peer[] {
    this.#links = this.#threads.map(({ sessions }) => new PeerLink(sessions.connect(), this.#watches));
    return this.#links;
  }

  async drain(): Promise<void> {
    await this.#tell({ command: "drain" });
  }

  /** Brings the numbers of all up to date. */
  async refresh(): Promise<void> {
    await this.#tell({ command: "refresh" });
  }

  /**
   * Gives the disk a new size, in bytes, in each thread: one after the other, so that what fails fails before anything
   * has changed.
   *
   * @throws ControlRefusal
   */
  async resize(sizeBytes: number): Promise<void> {
    for (const { client } of this.#threads) await client.ask({ command: "resize", size: sizeBytes });
  }

  /** Runs what asks them something: it must come to its end without anybody else's doing. */
  async during<T>(action: () => Promise<T>): Promise<T> {
    this.#running++;
    try {
      return await action();
    } finally {
      this.#running--;
    }
  }

  /** Ends them; ends when nothing of theirs is under way. */
  async close(): Promise<void> {
    this.#letGo();
    await Promise.all(this.#threads.map(({ client }) => client.ended));
  }

  /** Leaves it to them to end, after a bug of ours here. */
  abandon(): void {
    for (const link of this.#links) void link.close();
    this.#letGo();
  }

  #letGo(): void {
    for (const { sessions, commands } of this.#threads) {
      sessions.close();
      commands.close();
    }
  }

  async #tell(command: Readonly<Record<string, unknown>>): Promise<void> {
    // A thread that has ended takes the process with it; nobody needs to hear of it here too.
    await Promise.allSettled(this.#threads.map(({ client }) => client.ask(command)));
  }
}
