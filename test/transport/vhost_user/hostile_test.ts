/**
 * A front-end that means no good: seeded sequences of messages, right, bent and random, with random descriptors. The
 * back-end throws nothing, closes every descriptor once, gives every mapping back, and serves the next session.
 */

import { assert, assertEquals } from "@std/assert";
import { Gate } from "../../blk/rig.ts";
import { forSeedsAsync } from "../../random.ts";
import { TestGuest } from "./front_end.ts";
import { randomMessage } from "./random_messages.ts";
import { ALL, Rig, turn } from "./rig.ts";

Deno.test("no sequence of messages breaks the back-end: nothing is thrown, leaked or closed twice, and the next session works", async () => {
  let [started, answered] = [0, 0];
  await forSeedsAsync(120, 1, async (random) => {
    const rig = new Rig({ queues: 2 });
    const gate = new Gate();
    rig.storage.hook = (operation) => random.oneIn(2) ? gate.hook(operation) : undefined;
    for (let session = 0; session < 3; session++) {
      const guest = new TestGuest({ layout: random.pick(["split", "packed"]), queues: 2 });
      const front = rig.connect();
      if (!random.oneIn(4)) guest.start(front, ALL);
      for (let step = 0; step < 40 && front.connection.endReason === null; step++) {
        randomMessage(front, random, guest);
        if (random.oneIn(6)) {
          random.fill(guest.ram.bytes.subarray(random.below(0x2_0000)).subarray(0, random.below(64)));
        }
        try {
          if (random.oneIn(2)) guest.add(random.pick(["read", "write"]), random.below(300), random.below(3) * 512, 0);
        } catch {
          // The ring is full, or what it held was overwritten.
        }
        for (const kick of guest.kicks) if (random.oneIn(2)) kick.kick();
        for (const poll of rig.host.pollers) poll();
        if (random.oneIn(3)) gate.open();
        if (random.oneIn(4)) await turn();
        for (const { fds } of front.replies.splice(0)) {
          answered++;
          for (const fd of fds) rig.host.closeFd(fd);
        }
      }
      started += guest.calls.some(({ count }) => count > 0) ? 1 : 0;
      if (random.oneIn(2)) front.connection.disconnected();
      else front.connection.stop();
      while (rig.backEnd.connection !== null) {
        gate.open();
        await turn();
      }
      await front.connection.closed;
      for (const { fds } of front.replies.splice(0)) for (const fd of fds) rig.host.closeFd(fd);
      assertEquals(rig.host.problems, []);
      assert(rig.host.clean, `${rig.host.open.size} descriptors, ${rig.host.mappings} mappings`);
    }
    rig.storage.hook = () => {};
    const guest = new TestGuest();
    const front = rig.connect();
    guest.start(front, ALL);
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    assertEquals(guest.collect().map(({ status }) => status), [0]);
  });
  // Most sessions get somewhere: a test of refusals alone would prove little.
  assert(started > 100 && answered > 1500, `${started} sessions with I/O, ${answered} answers`);
});
