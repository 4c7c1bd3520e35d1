/** What the host sees of `vblk serve`: memory that does not grow, and no work when there is none. */

import { assert, assertEquals } from "@std/assert";
import { Folder } from "../storage/support.ts";
import { FrontEnd, Guest, OK, PERMISSIONS, requiresServe, ServeProcess, TYPE } from "./rig.ts";

const MIB = 1 << 20;

Deno.test({
  name: "without requests it takes no processor time, connected or not",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk.img", new Uint8Array(MIB)), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    const idle = async (state: string) => {
      // What follows from what came before: a collection of garbage, for instance.
      await new Promise((resolve) => setTimeout(resolve, 500));
      const before = process.cpuTicks();
      await new Promise((resolve) => setTimeout(resolve, 1500));
      // A tick is 10 ms: less than one in a hundred of the time.
      assert(process.cpuTicks() - before <= 1, `${process.cpuTicks() - before} ticks in 1.5 s, ${state}`);
    };
    await idle("before anybody came");
    using guest = new Guest();
    {
      using front = new FrontEnd(socket);
      guest.start(front);
      for (let i = 0; i < 1000; i++) assertEquals(guest.run(TYPE.read, 0, 4096), OK);
      await idle("connected");
    }
    await idle("after the front-end left");
  },
});

/** A disk that is served by some threads, each of which has one queue. */
class Served implements AsyncDisposable {
  readonly folder = new Folder();
  readonly socket = this.folder.file("vm.sock");
  process!: ServeProcess;

  static async start(threads: number, ...flags: string[]): Promise<Served> {
    const served = new Served();
    served.process = await ServeProcess.ready([
      ...[served.folder.file("disk.img", new Uint8Array(8 * MIB)), "-f", "raw", "--vhost-user", served.socket],
      ...["--device", `num-queues=${threads}`, "--iothreads", `${threads}`],
    ], { permissions: [...PERMISSIONS, ...flags] });
    return served;
  }

  get residentMib(): number {
    return this.process.residentBytes() / MIB;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

const DEPTH = 32;

/** So many requests, spread over all queues. */
function load(guest: Guest, count: number): void {
  const inFlight = guest.queues.map(() => 0);
  for (let started = 0, ended = 0; ended < count;) {
    for (let queue = 0; queue < inFlight.length; queue++) {
      let wanted = false;
      for (; inFlight[queue] < DEPTH && started < count; inFlight[queue]++, started++) {
        const slot = guest.free.pop()!;
        const type = slot % 3 === 0 ? TYPE.write : TYPE.read;
        wanted = guest.submit(slot, type, started * 4096 % (8 * MIB), 4096, queue) || wanted;
      }
      if (wanted) guest.kick(queue);
    }
    for (let queue = 0; queue < inFlight.length; queue++) {
      if (inFlight[queue] === 0) continue;
      for (const { slot, status } of guest.wait(queue)) {
        assertEquals(status, OK);
        guest.free.push(slot);
        inFlight[queue]--;
        ended++;
      }
    }
  }
}

for (const threads of [1, 2]) {
  Deno.test({
    name: `its memory does not grow with the number of requests, I/O threads: ${threads}`,
    ...requiresServe(),
    async fn() {
      const requests = Number(Deno.env.get("VBLK_FOOTPRINT_REQUESTS") ?? 2_000_000);
      await using served = await Served.start(threads);
      const before = served.residentMib;
      using front = new FrontEnd(served.socket);
      using guest = new Guest({ queues: threads, slots: threads * DEPTH });
      guest.start(front);
      // The compiler and the collector take what they need at the beginning.
      load(guest, requests / 4);
      const samples: number[] = [];
      for (let i = 0; i < 24; i++) {
        load(guest, requests / 32);
        samples.push(served.residentMib);
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
      const text = `${requests} requests, resident MiB: before ${before.toFixed(1)}; ` +
        `${samples.map((mib) => mib.toFixed(1)).join(" ")}; idle ${served.residentMib.toFixed(1)}`;
      if (Deno.env.get("VBLK_FOOTPRINT_REQUESTS") !== undefined) console.log(text);
      // The least of each half, since between two collections garbage comes and goes. One lost object of 16 bytes for
      // each request would be more, however many there are.
      const grown = Math.min(...samples.slice(12)) - Math.min(...samples.slice(0, 12));
      assert(grown < Math.max(2, requests * 3 / 8 * 16 / MIB), text);
      assert(Math.max(...samples) < 256, text);
    },
  });

  Deno.test({
    name: `its memory does not grow with the number of sessions, I/O threads: ${threads}`,
    ...requiresServe(),
    async fn() {
      const sessions = Number(Deno.env.get("VBLK_FOOTPRINT_SESSIONS") ?? 400);
      // Everything that can be collected is, each time: sessions leave more garbage behind than requests.
      await using served = await Served.start(threads, "--v8-flags=--gc-global,--max-semi-space-size=1");
      const { process } = served;
      const samples: number[] = [];
      const held = new Set<string>();
      for (let i = 1; i <= sessions; i++) {
        {
          using front = new FrontEnd(served.socket);
          using guest = new Guest({ queues: threads });
          guest.start(front);
          for (let queue = 0; queue < threads; queue++) {
            assertEquals(guest.run(TYPE.read, i % 2048 * 4096, 4096, undefined, queue), OK);
          }
        }
        if (i < sessions / 4 || i % Math.ceil(sessions / 32) !== 0) continue;
        // It answers when nothing of the last one is left.
        using next = new FrontEnd(served.socket);
        next.ask("GET_FEATURES");
        samples.push(served.residentMib);
        held.add(`${process.descriptors().length} descriptors, ${process.mappedMemfds().length} mappings`);
      }
      const text = `${sessions} sessions, ${[...held].join("; ")}, resident MiB: ` +
        samples.map((mib) => mib.toFixed(1)).join(" ");
      if (Deno.env.get("VBLK_FOOTPRINT_SESSIONS") !== undefined) console.log(text);
      assertEquals(held.size, 1, text);
      const half = samples.length / 2;
      const grown = Math.min(...samples.slice(half)) - Math.min(...samples.slice(0, half));
      // Some of it for the compiler, which comes late here. Two pages lost in each of some thousand sessions are more.
      assert(grown < Math.max(16, sessions * 3 / 8 * 4096 / MIB), text);
    },
  });
}
