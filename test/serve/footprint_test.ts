/** What the host sees of `vblk serve`: memory that does not grow, and no work when there is none. */

import { assert, assertEquals } from "@std/assert";
import { Folder } from "../storage/support.ts";
import { FrontEnd, Guest, OK, requiresServe, ServeProcess, TYPE } from "./rig.ts";

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

Deno.test({
  name: "its memory does not grow with the number of requests",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk.img", new Uint8Array(8 * MIB)), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest({ slots: 64 });
    guest.start(front);
    const seconds = Number(Deno.env.get("VBLK_FOOTPRINT_SECONDS") ?? 8);
    let requests = 0;
    const load = (milliseconds: number) => {
      const end = performance.now() + milliseconds;
      while (performance.now() < end) {
        for (let slot; (slot = guest.free.pop()) !== undefined;) {
          const type = slot % 3 === 0 ? TYPE.write : TYPE.read;
          if (guest.submit(slot, type, requests++ * 4096 % (8 * MIB), 4096)) guest.kick();
        }
        for (const { slot, status } of guest.wait()) {
          assertEquals(status, OK);
          guest.free.push(slot);
        }
      }
    };
    // The compiler and the collector take what they need in the first seconds.
    load(seconds * 1000 / 4);
    const samples: number[] = [];
    const warm = requests;
    for (let i = 0; i < 12; i++) {
      load(seconds * 1000 / 16);
      samples.push(process.residentBytes());
    }
    const half = (part: number[]) => Math.min(...part);
    const grown = half(samples.slice(6)) - half(samples.slice(0, 6));
    const measured = requests - warm;
    const text = `${measured} requests, resident MiB: ${samples.map((bytes) => (bytes / MIB).toFixed(1)).join(" ")}`;
    if (Deno.env.get("VBLK_FOOTPRINT_SECONDS") !== undefined) console.log(text);
    assert(measured > 100_000, text);
    // The least of each half, since between two collections garbage comes and goes. One lost object of 64 bytes for
    // each request would be more.
    assert(grown < Math.max(2 * MIB, measured / 2 * 16), text);
    assert(Math.max(...samples) < 256 * MIB, text);
  },
});
