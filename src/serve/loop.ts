/**
 * What a served image's thread does all its life: looks for requests, waits for the ring, lets promises go on. Deno's
 * event loop gets no turn meanwhile.
 *
 * @module
 */

import type { UringEngine } from "../storage/uring_engine.ts";
import { Patience } from "./patience.ts";

/** Turns of microtasks between two looks at the ring, while something is in flight: a chain of promises goes on in them. */
const TURNS = 32;

/** Between two looks that find nothing: less than a microsecond. */
const PAUSES = 16;

/** What the loop asks. */
export interface Work {
  isOver(): boolean;
  /** Whether promises are on their way that no result of the ring need wake. */
  isBusy(): boolean;
  /** Requests that have not ended. */
  inFlight(): number;
  /** Looks for requests without being notified; returns whether there were any. */
  look(): boolean;
  /** Leaves it to the drivers to notify from here on, and returns whether all that is there was started. */
  endLooking(): boolean;
  /** Hears of each turn that found something, and of each that is the last before a sleep. */
  turned(): void;
  /** Rings that nobody gives notice of. */
  mustPoll(): boolean;
  poll(): void;
}

/** Waits for the ring, and lets promises go on, without Deno's event loop. */
export class Loop {
  readonly #engine: Pick<UringEngine, "active" | "pollOnce">;
  readonly #patience: Patience;

  constructor(engine: Pick<UringEngine, "active" | "pollOnce">, pollNanoseconds: number) {
    this.#engine = engine;
    this.#patience = new Patience(pollNanoseconds / 1e6);
  }

  /** Runs until a promise ends, as it does. */
  async until<T>(promise: Promise<T>): Promise<T> {
    let ended = false;
    const watched = promise.finally(() => ended = true);
    watched.catch(() => {});
    while (!ended) {
      await this.#turns();
      if (ended) break;
      // Not everything that a promise waits for is the ring's: modules are loaded by Deno.
      if (this.#engine.active > 0) this.#engine.pollOnce(-1);
      else {
        this.#engine.pollOnce(0);
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
    }
    return await watched;
  }

  async run(work: Work): Promise<void> {
    const engine = this.#engine;
    const patience = this.#patience;
    while (!work.isOver()) {
      await this.#settle(work);
      if (work.mustPoll()) {
        work.poll();
        // The others' drivers may not have been asked to notify, and one notification may stand for more than a turn.
        work.look();
        engine.pollOnce(0);
      } else if (patience.isLeft) {
        const found = work.look();
        if (found) work.turned();
        if (engine.pollOnce(0) > 0 || found) patience.found();
        else pause();
      } else if (work.endLooking()) {
        // What was found then is carried out, and its calls are submitted with the wait.
        await this.#settle(work);
        // Meanwhile a queue may have gone on that was held, and found more than fits into a turn; or all may be over.
        work.turned();
        const canSleep = !work.isOver() && work.endLooking() && (!work.isBusy() || engine.active > 0);
        if (canSleep) patience.sleep(() => engine.pollOnce(-1));
        else engine.pollOnce(0);
      } else engine.pollOnce(0);
      // What ended without being waited for, such as a connection.
      await undefined;
    }
  }

  /** Lets promises go on as long as something is under way that waits for no result of the ring. */
  async #settle(work: Work): Promise<void> {
    for (let i = 0; i < TURNS && work.isBusy(); i++) {
      const inFlight = work.inFlight();
      if (inFlight > 0 && inFlight <= this.#engine.active) return;
      await undefined;
    }
  }

  async #turns(): Promise<void> {
    for (let i = 0; i < TURNS; i++) await undefined;
  }
}

/**
 * Lets the other half of the processor core, and the driver that writes what we look at, get on. Looking without a
 * pause costs them a third of their speed.
 */
function pause(): void {
  for (let i = 0; i < PAUSES; i++) Atomics.pause();
}
