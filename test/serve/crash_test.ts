/** A bug in an I/O thread: all of them end, in good order, with what it was; nobody waits for ever. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { CommandFailure } from "../../src/cli/failure.ts";
import { ServeThreads } from "../../src/cli/serve_threads.ts";
import { Control, WISH } from "../../src/serve/control.ts";
import { Crash } from "../../src/serve/crash.ts";
import { Figures } from "../../src/serve/figures.ts";
import { HandedOver, HandOver } from "../../src/serve/handed_over.ts";
import { DescriptorList } from "../../src/host/socket_message.ts";
import type { ThreadStart } from "../../src/serve/thread_start.ts";
import { Folder } from "../storage/support.ts";
import { vringState } from "../transport/vhost_user/front_end.ts";
import { CRASH_AT } from "./crash_place.ts";
import { assertServes, FrontEnd, Guest, OK, PATIENCE_MS, requiresServe, ServeProcess, TYPE } from "./rig.ts";

const QUEUES = 3;

/** Threads that have the bug, and what they say when they end. */
class Served implements Disposable {
  readonly folder = new Folder();
  readonly image = this.folder.file("disk.img", new Uint8Array(1 << 20));
  readonly socket = this.folder.file("vm.sock");
  readonly controlPath = this.folder.file("control.sock");
  readonly control = new Control();
  readonly ready: Promise<void>;
  readonly ended: Promise<void>;

  constructor(count: number) {
    const start: ThreadStart = {
      part: "first",
      image: this.image,
      open: { format: "raw" },
      ...{ direct: false, ignoreFlush: false, ignoreDiscard: false, device: { queues: QUEUES }, pollNanoseconds: 0 },
      ...{ socketPath: this.socket, passed: { pid: undefined, count: undefined }, once: false },
      ...{ controlPath: this.controlPath, control: this.control.end },
      observe: { figures: new Figures().memory, requests: false, trace: null, sharedTrace: null },
      otherFigures: Array.from({ length: count - 1 }, () => new Figures().memory),
    };
    const load = () => new Worker(new URL("crashing_thread.ts", import.meta.url), { type: "module" });
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ready = promise;
    const threads = new ServeThreads(start, {
      ready: () => Promise.resolve(resolve()),
      statistics: () => {},
      message: ({ text }) => Promise.reject(new Error(text)),
      stop: () => this.control.ask(WISH.stop),
    }, load);
    this.ended = threads.run();
    this.ended.catch(() => {});
  }

  [Symbol.dispose](): void {
    this.folder[Symbol.dispose]();
  }
}

for (const [threads, queue] of [[1, 0], [3, 0], [3, 1], [3, 2]]) {
  Deno.test({
    name: `a bug in a request of queue ${queue} ends all with what it was, I/O threads: ${threads}`,
    ...requiresServe(),
    async fn() {
      using served = new Served(threads);
      await served.ready;
      using guest = new Guest({ queues: QUEUES });
      using front = new FrontEnd(served.socket);
      // Comes when the first has gone, which it never has: the threads must not wait for it either.
      using next = new FrontEnd(served.socket);
      guest.start(front);
      for (let other = 0; other < QUEUES; other++) {
        assertEquals(guest.run(TYPE.read, 0, 4096, undefined, other), OK);
      }
      guest.submit(guest.free[0], TYPE.read, CRASH_AT, 4096, queue);
      guest.kick(queue);
      // Whoever waits for that request waits in vain, and is let go.
      front.send("GET_VRING_BASE", vringState(queue, 0));
      const started = performance.now();
      const error = await assertRejects(() => served.ended, Error, "a bug of this test");
      assert(!(error instanceof CommandFailure));
      assert(error.stack?.includes("crashing_thread.ts"), error.stack);
      // They came to their end themselves, before anybody lost his patience with them.
      assert(performance.now() - started < 1500, `it took ${performance.now() - started} ms`);
      for (const end of [front, next]) assertEquals(end.receive(PATIENCE_MS), null);
      assertEquals([existsSync(served.socket), existsSync(served.controlPath)], [false, false]);
      // Nothing holds the image, in this process or another one.
      await using process = await ServeProcess.ready([served.image, "-f", "raw", "--vhost-user", served.socket]);
      assertServes(served.socket);
      assertEquals((await process.stop()).code, 0);
    },
  });
}

Deno.test("who waits for something hears of a bug instead, also of one that came before", async () => {
  const before = new Crash();
  before.note(new TypeError("first"));
  before.note(new TypeError("second"));
  await assertRejects(() => before.unless(Promise.resolve()), TypeError, "first");
  const later = new Crash();
  assertEquals([later.happened, await later.unless(Promise.resolve(7))], [false, 7]);
  const waiting = later.unless(new Promise(() => {}));
  later.note(new TypeError("later"));
  await assertRejects(() => waiting, TypeError, "later");
  assert(later.happened);
});

Deno.test({
  name: "a connection for a thread that has ended, or that it did not take, is at its end at once",
  ...requiresServe(),
  fn() {
    const hands = new HandOver();
    let ends = 0;
    const taker = new HandedOver(hands.otherEnd, () => ends++);
    using left = hands.connect();
    taker.close();
    using late = hands.connect();
    for (const end of [left, late]) {
      assertEquals(end.receive(new Uint8Array(1), new DescriptorList(), PATIENCE_MS), "end");
    }
    // Who closes it needs not be told, and may be gone already.
    assertEquals(ends, 0);
    hands.close();
  },
});
