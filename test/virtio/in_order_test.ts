/** VIRTIO_F_IN_ORDER as the device keeps it. The driver's part is written by hand (ring_harness.ts). */

import { assert, assertEquals } from "@std/assert";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import { forSeeds } from "../random.ts";
import { LAYOUTS, makeRing } from "./ring_harness.ts";

/** All orders of the numbers below `count`. */
function permutations(count: number): number[][] {
  if (count === 0) return [[]];
  return permutations(count - 1).flatMap((order) =>
    Array.from({ length: count }, (_, i) => order.toSpliced(i, 0, count - 1))
  );
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} queue: with IN_ORDER every order of completion of four buffers becomes the order in which they were made available (VIRTIO 1.4 §6.2)`, () => {
    for (const order of permutations(4)) {
      const ring = makeRing(layout, { size: 4, inOrder: true });
      const ids = [0, 1, 2, 3].map(() => ring.offer([{ address: ring.data, length: 1 }]));
      const chains = ids.map(() => ring.pop(new DescriptorChain()));
      const done: boolean[] = [];
      const returned: number[] = [];
      for (const i of order) {
        ring.queue.push(chains[i], 10 + i);
        done[i] = true;
        ring.queue.publish();
        for (const { id, length } of ring.takeAllUsed()) {
          const k = ids.indexOf(id);
          assertEquals(length, 10 + k);
          returned.push(k);
        }
        // A buffer waits exactly for those before it.
        const ready = [0, 1, 2, 3].findIndex((k) => !done[k]);
        assertEquals(returned, [0, 1, 2, 3].slice(0, ready < 0 ? 4 : ready), `order ${order}`);
        assertEquals(ring.queue.inFlightCount, 4 - returned.length);
      }
    }
  });

  Deno.test(`${layout} queue: with IN_ORDER nothing is told while everything that is done waits for an earlier buffer (VIRTIO 1.4 §6.2)`, () => {
    const ring = makeRing(layout, { size: 4, inOrder: true });
    for (let i = 0; i < 3; i++) ring.offer([{ address: ring.data, length: 1 }]);
    const chains = [0, 1, 2].map(() => ring.pop(new DescriptorChain()));
    for (const i of [2, 1]) {
      ring.queue.push(chains[i], 0);
      assert(!ring.queue.publish());
    }
    assertEquals(ring.takeAllUsed(), []);
    ring.queue.push(chains[0], 0);
    assert(ring.queue.publish());
    assertEquals(ring.takeAllUsed().length, 3);
    assertEquals([ring.queue.counters.batches, ring.queue.counters.calls], [1, 1]);
  });

  Deno.test(`${layout} queue: with IN_ORDER lists of any length come back in order over a long seeded run (VIRTIO 1.4 §6.2)`, () => {
    forSeeds(6, 40, (random) => {
      const ring = makeRing(layout, { size: layout === "split" ? 16 : 11, inOrder: true });
      const offered: number[] = [];
      const working: DescriptorChain[] = [];
      let free = ring.size;
      const slots = new Map<number, number>();
      for (let step = 0; step < 3000; step++) {
        const count = random.between(1, 4);
        if (count <= free && random.oneIn(2)) {
          const id = ring.offer(Array.from({ length: count }, () => ({ address: ring.data, length: 1 })));
          free -= count;
          slots.set(id, count);
          offered.push(id);
        }
        const chain = new DescriptorChain();
        if (ring.queue.pop(chain)) working.push(chain);
        if (working.length > 0 && random.oneIn(2)) {
          ring.queue.push(working.splice(random.below(working.length), 1)[0], 0);
        }
        if (random.oneIn(3)) ring.queue.publish();
        for (const { id } of ring.takeAllUsed()) {
          if (offered.shift() !== id) throw new Error(`step ${step}: buffer ${id} came back out of order`);
          free += slots.get(id)!;
        }
      }
      while (ring.queue.pop(ring.chain)) ring.queue.push(ring.chain, 0);
      for (const chain of working) ring.queue.push(chain, 0);
      ring.queue.publish();
      assertEquals(ring.takeAllUsed().map(({ id }) => id), offered);
      assertEquals(ring.queue.inFlightCount, 0);
    });
  });
}
