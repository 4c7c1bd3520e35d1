/** When a driver is shown each request as it ends, and when all together. */

import { assert, assertEquals } from "@std/assert";
import { involuntarySwitches } from "../../src/host/thread.ts";
import { Pace } from "../../src/serve/pace.ts";
import { requiresServe } from "./rig.ts";

/** A device that takes ten requests a turn, and a thread that has to go as often as it is told. */
class FakeThread {
  readonly device = { returnsEarly: false, takenCount: 0 };
  readonly pace: Pace;
  #switches = 0;

  constructor() {
    this.pace = new Pace(this.device, () => this.#switches);
  }

  /** Runs a window; returns whether requests are returned early in the next. */
  window(switches: number, requests = 640): boolean {
    this.#switches += switches;
    this.device.takenCount += requests;
    for (let turn = 0; turn < 64; turn++) this.pace.turned();
    return this.device.returnsEarly;
  }

  /** Windows in a row that end without early returns, the first of them with so many switches. */
  windowsWithout(switches: number): number {
    for (let count = 0;; count++) if (this.window(count === 0 ? switches : 0)) return count;
  }
}

Deno.test("requests are returned early while the thread keeps its processor", () => {
  const thread = new FakeThread();
  assertEquals(thread.device.returnsEarly, true);
  for (let i = 0; i < 100; i++) assertEquals(thread.window(80), true);
});

Deno.test("a thread that loses its processor for more than one request in eight returns them together, and tries again ever later", () => {
  const thread = new FakeThread();
  const waits = Array.from({ length: 10 }, () => thread.windowsWithout(81));
  assertEquals(waits, [4, 8, 16, 32, 64, 128, 256, 256, 256, 256]);
});

Deno.test("once it keeps its processor again, it is soon quick to try", () => {
  const thread = new FakeThread();
  for (let i = 0; i < 8; i++) thread.windowsWithout(81);
  for (let i = 0; i < 6; i++) assertEquals(thread.window(0), true);
  assertEquals(thread.windowsWithout(81), 4);
});

Deno.test("a thread that has next to nothing to do decides nothing", () => {
  const thread = new FakeThread();
  for (let i = 0; i < 20; i++) assertEquals(thread.window(1000, 31), true);
});

Deno.test({
  name: "the kernel's count is that of this thread, and grows",
  ...requiresServe(),
  async fn() {
    const before = involuntarySwitches();
    assert(before >= 0);
    // Others that need a processor, more of them than there are processors.
    const busy = Array.from(
      { length: 2 * navigator.hardwareConcurrency },
      () => new Deno.Command("sh", { args: ["-c", "while :; do :; done"] }).spawn(),
    );
    try {
      const end = performance.now() + 20_000;
      while (involuntarySwitches() === before) assert(performance.now() < end, "it has not grown");
    } finally {
      for (const child of busy) child.kill("SIGKILL");
      await Promise.all(busy.map(({ status }) => status));
    }
  },
});
