/** When the thread of a served image sleeps, and when it must not: with a ring that does only what it is told. */

import { assertEquals } from "@std/assert";
import { Loop, type Work } from "../../src/serve/loop.ts";

/** A ring that notes how it was waited for: 0 not at all, -1 until something happens. */
class FakeEngine {
  active = 0;
  readonly waits: number[] = [];
  onWait: (nanoseconds: number) => void = () => {};

  pollOnce(nanoseconds: number): number {
    this.waits.push(nanoseconds);
    this.onWait(nanoseconds);
    return 0;
  }
}

/** Work of which a test changes what it needs. */
class FakeWork implements Work {
  over = false;
  busy = false;
  polled = false;
  readonly asked: string[] = [];
  isOver = () => this.over;
  isBusy = () => this.busy;
  inFlight = () => 0;
  look = (): boolean => this.#note("look", false);
  endLooking = (): boolean => this.#note("endLooking", true);
  turned = (): void => {};
  mustPoll = () => this.polled;
  poll = (): void => void this.#note("poll", true);

  #note(what: string, answer: boolean): boolean {
    this.asked.push(what);
    return answer;
  }
}

Deno.test("the thread does not sleep when a queue that was held found more than fits into a turn, just before", async () => {
  const [engine, work] = [new FakeEngine(), new FakeWork()];
  let [looks, left] = [0, 0];
  work.endLooking = () => {
    if (looks++ === 0) {
      // A command holds the queues, and lets them go on when the loop has seen them empty.
      work.busy = true;
      Promise.resolve().then(() => {}).then(() => {
        left = 2;
        work.busy = false;
      });
      return true;
    }
    return left === 0 || --left === 0;
  };
  engine.onWait = (nanoseconds) => {
    assertEquals(nanoseconds, left > 0 ? 0 : -1);
    work.over = nanoseconds === -1;
  };
  await new Loop(engine, 0).run(work);
  assertEquals(engine.waits.at(-1), -1);
});

Deno.test("the thread does not sleep when it became known just before that all is over", async () => {
  const [engine, work] = [new FakeEngine(), new FakeWork()];
  work.endLooking = () => {
    work.busy = true;
    Promise.resolve().then(() => {
      work.over = true;
      work.busy = false;
    });
    return true;
  };
  await new Loop(engine, 0).run(work);
  assertEquals(engine.waits, [0]);
});

Deno.test("while one ring must be polled, the others are looked at too", async () => {
  const [engine, work] = [new FakeEngine(), new FakeWork()];
  work.polled = true;
  engine.onWait = () => work.over = engine.waits.length === 2;
  await new Loop(engine, 0).run(work);
  assertEquals([engine.waits, work.asked], [[0, 0], ["poll", "look", "poll", "look"]]);
});
