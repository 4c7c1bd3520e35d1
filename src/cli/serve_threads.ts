/**
 * The threads of `vblk serve`, from the main thread: the first one, and those of `--iothreads` that have queues of their
 * own. They start together and end together.
 *
 * @module
 */

import type { QueueThreadStart, ThreadFailure, ThreadNews, ThreadStart } from "../serve/thread_start.ts";
import { CommandFailure } from "./failure.ts";

/** So long the first thread has to let go and to flush after another one has failed, which may owe it an answer. */
const FAILED_PATIENCE_MS = 10_000;
/** So long the others have to close what they have, when the first one has ended. */
const ENDED_PATIENCE_MS = 2000;

type News<K extends ThreadNews["news"]> = Extract<ThreadNews, { news: K }>;

/** What is to be done when they tell something. */
export interface ThreadEvents {
  /** All are ready. What is thrown ends them. */
  ready(news: News<"ready">): Promise<void>;
  statistics(): void;
  message(news: News<"message">): void;
  /** Must have the first thread come to its end, which takes the others along. */
  stop(): void;
}

/** All threads of one image. */
export class ServeThreads {
  readonly #start: ThreadStart;
  readonly #events: ThreadEvents;
  readonly #workers: readonly Worker[];
  readonly #running: Set<Worker>;
  /** What the first one said when it was ready, and how many of the others are not. */
  #ready: News<"ready"> | null = null;
  #starting: number;
  #failure: Error | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #settle!: () => void;

  /**
   * Loads them; nothing is opened before `run`.
   *
   * @param load loads one
   */
  constructor(start: ThreadStart, events: ThreadEvents, load: () => Worker = loadThread) {
    this.#start = start;
    this.#events = events;
    this.#starting = start.otherFigures.length;
    this.#workers = Array.from({ length: 1 + this.#starting }, load);
    this.#running = new Set(this.#workers);
  }

  /**
   * Runs them until all have ended.
   *
   * @throws CommandFailure with what the first one to fail said; Error with its stack for a bug
   */
  async run(): Promise<void> {
    const ended = new Promise<void>((resolve) => this.#settle = resolve);
    for (const worker of this.#workers) {
      worker.onerror = (event) => {
        event.preventDefault();
        this.#ended(worker, new Error(`the I/O thread ended: ${event.message}`));
      };
      worker.onmessage = ({ data }: MessageEvent<ThreadNews>) => this.#hear(worker, data);
    }
    this.#workers[0].postMessage(this.#start);
    await ended;
    clearTimeout(this.#timer);
    for (const worker of this.#running) worker.terminate();
    if (this.#failure !== null) throw this.#failure;
  }

  #hear(worker: Worker, news: ThreadNews): void {
    switch (news.news) {
      case "ready":
        if (worker === this.#workers[0]) return this.#firstReady(news);
        this.#starting--;
        return this.#tellReady();
      case "statistics":
        return this.#events.statistics();
      case "message":
        return this.#events.message(news);
      case "ended": {
        const { error } = news;
        return this.#ended(worker, error === undefined ? null : failureOf(error));
      }
    }
  }

  /** The file is open and locked: the others open it too. */
  #firstReady(news: News<"ready">): void {
    this.#ready = news;
    const { image, open, direct, ignoreFlush, ignoreDiscard, device, pollNanoseconds, observe } = this.#start;
    news.ends.forEach((ends, i) => {
      const start: QueueThreadStart = {
        part: "queues",
        image,
        // The first thread's lock is the process's.
        open: { ...open, share: true },
        direct,
        ignoreFlush,
        ignoreDiscard,
        device,
        pollNanoseconds,
        observe: { ...observe, figures: this.#start.otherFigures[i] },
        ends,
        identity: news.identity,
      };
      this.#workers[i + 1].postMessage(start);
    });
    this.#tellReady();
  }

  #tellReady(): void {
    if (this.#starting > 0 || this.#ready === null || this.#failure !== null) return;
    this.#events.ready(this.#ready).catch((error) => this.#fail(error));
  }

  #ended(worker: Worker, error: Error | null): void {
    worker.terminate();
    this.#running.delete(worker);
    if (error !== null) this.#fail(error);
    // Those that were never started have nothing to come to an end with.
    if (this.#running.size === 0 || this.#ready === null) this.#settle();
    else if (worker === this.#workers[0]) this.#settleAfter(ENDED_PATIENCE_MS);
    else if (error !== null) this.#settleAfter(FAILED_PATIENCE_MS);
  }

  #settleAfter(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#settle, ms);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#events.stop();
  }
}

function loadThread(): Worker {
  return new Worker(new URL("../serve/io_thread.ts", import.meta.url), { type: "module" });
}

/** What the user is shown: of a bug of ours where it is. */
function failureOf({ message, hint, stack }: ThreadFailure): Error {
  return stack === undefined ? new CommandFailure(message, hint) : Object.assign(new Error(message), { stack });
}
