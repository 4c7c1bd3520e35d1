/** A driver that runs while the device works: what it sees meanwhile, and how much of it the device does in one turn. */

import { assert, assertEquals } from "@std/assert";
import { BlkDevice } from "../../../src/blk/device.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import { FakeHost } from "./fake_host.ts";
import { FrontEnd, LAYOUTS, TestGuest } from "./front_end.ts";
import { ALL, filledDisk, Rig, turn } from "./rig.ts";

/** Adds reads, kicks once, and returns how many answers the driver had seen as each of them was carried out. */
function seenDuring(options: { layout: "split" | "packed"; eventIdx: boolean; requests: number; early?: boolean }) {
  const { requests, early = true, ...of } = options;
  const rig = new Rig();
  rig.device.returnsEarly = early;
  const guest = new TestGuest({ ...of, size: 256 });
  guest.start(rig.connect(), ALL);
  const seen: number[] = [];
  let answers = 0;
  for (let i = 0; i < requests; i++) guest.add("read", i % 256, 512);
  rig.storage.hook = () => {
    answers += guest.collect().length;
    seen.push(answers);
  };
  guest.kicks[0].kick();
  answers += guest.collect().length;
  assertEquals(answers, requests);
  return { seen, calls: guest.calls[0].count };
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: a driver beside the device sees each request as it ends (EVENT_IDX)`, () => {
    const { seen } = seenDuring({ layout, eventIdx: true, requests: 4 });
    assertEquals(seen, [0, 1, 2, 3]);
  });

  Deno.test(`${layout} ring: a driver without EVENT_IDX, which can't say that it is at work, is called once for all`, () => {
    const { seen, calls } = seenDuring({ layout, eventIdx: false, requests: 4 });
    assertEquals([seen, calls], [[0, 0, 0, 0], 1]);
  });

  Deno.test(`${layout} ring: a driver whose device returns nothing early sees all requests of a turn at its end`, () => {
    const { seen, calls } = seenDuring({ layout, eventIdx: true, requests: 4, early: false });
    assertEquals([seen, calls], [[0, 0, 0, 0], 1]);
  });

  Deno.test(`${layout} ring: a driver that adds a request for each that ends gets a turn of 64, and the next when it is asked for`, async () => {
    const rig = new Rig();
    const guest = new TestGuest({ layout, eventIdx: true, size: 256 });
    guest.start(rig.connect(), ALL);
    let requests = 0;
    rig.storage.hook = () => {
      requests++;
      guest.collect();
      guest.add("read", 0, 512);
    };
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    assertEquals(requests, 64);
    assertEquals(rig.device.endPolling(), false);
    assertEquals(requests, 128);
    rig.storage.hook = () => void requests++;
    // The one that the last turn left.
    assertEquals(rig.device.endPolling(), true);
    assertEquals(requests, 129);
    await turn();
    // And the one before it, whose driver was not looking any more.
    assertEquals(guest.collect().length, 2);
    // From here on the driver's kick is needed, and enough.
    guest.add("read", 0, 512);
    assertEquals(requests, 129);
    guest.kicks[0].kick();
    assertEquals(requests, 130);
  });
}

Deno.test("split ring: with many in flight some end before the driver sees the first of them, never more than 8", () => {
  const { seen } = seenDuring({ layout: "split", eventIdx: true, requests: 64 });
  const steps = seen.slice(1).map((count, i) => count - seen[i]).filter((step) => step > 0);
  assertEquals(Math.max(...steps), 8);
  assert(steps.length < 32, `${steps.length} times`);
  // Towards the end each counts.
  assertEquals(steps.at(-1), 1);
});

Deno.test("a bug that ends a request that was waiting is told to who asked for it, and is no unhandled rejection", async () => {
  const storage = new FaultStorage(filledDisk());
  const crashes: unknown[] = [];
  const device = new BlkDevice(new RawImage(storage), {}, { crashed: (error) => crashes.push(error) });
  const host = new FakeHost();
  const guest = new TestGuest();
  guest.start(new FrontEnd(new VhostUserBackEnd(device, host), host), ALL);
  const bug = new TypeError("a bug");
  storage.hook = () => Promise.reject(bug);
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  await turn();
  assertEquals(crashes, [bug]);
});
