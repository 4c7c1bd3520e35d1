/**
 * VIRTIO_F_IN_ORDER as the driver keeps it, against a device that does what §2.7.9 and §2.8.8 allow and ours never
 * does: one used entry for a batch of buffers.
 */

import { assertEquals, assertThrows } from "@std/assert";
import { DeviceMisbehaved } from "../../src/guest/driver_queue.ts";
import { forSeeds, type Random } from "../random.ts";
import { type Found, LAYOUTS, QueueRig } from "./queue_rig.ts";

/** What a skipped buffer's used length is: completely used. */
const ALL = 0xffffffff;

/** A long run with random lists and batches; `fault` spoils the expectation, for the canary. */
function run(random: Random, layout: (typeof LAYOUTS)[number], indirect: boolean, fault = 0): void {
  const size = layout === "split" ? 1 << random.between(0, 5) : random.between(1, 40);
  const rig = new QueueRig(layout, { size, inOrder: true, indirect });
  const seen: Found[][] = [];
  const expected: [token: number, length: number][] = [];
  let next = 0;
  let taken = 0;
  for (let step = 0; step < 3000; step++) {
    const count = random.between(1, Math.min(size, 5));
    if (random.oneIn(2)) {
      const fits = rig.driver.slotsFor(count) <= rig.driver.freeCount;
      assertEquals(rig.add(count, next), fits);
      if (fits) next++;
    }
    if (random.oneIn(2)) rig.driver.publish();
    for (let list; (list = rig.takeAvailable()) !== null;) seen.push(list);
    if (seen.length > 0 && random.oneIn(3)) {
      const batch = seen.splice(0, random.between(1, seen.length));
      const length = random.next();
      rig.use(batch, length);
      const first = taken + expected.length;
      batch.forEach((_, i) => expected.push([first + i, i + 1 < batch.length ? ALL : length + fault]));
    }
    for (let most = random.below(6); most > 0; most--) {
      const token = rig.driver.take();
      if (token < 0) break;
      const [wanted, length] = expected.shift() ?? [-1, 0];
      taken++;
      if (token !== wanted || rig.driver.usedLength !== length) {
        throw new Error(`step ${step}: got ${token} with ${rig.driver.usedLength}, expected ${wanted} with ${length}`);
      }
    }
  }
  rig.driver.publish();
  rig.useAll();
  for (const list of seen) rig.use([list], 0);
  assertEquals(rig.takeAll().length, next - taken);
  assertEquals(rig.driver.freeCount, size);
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} driver queue: with IN_ORDER one used entry returns every buffer of its batch, in order, over seeded runs (VIRTIO 1.4 §2.7.9, §2.8.8)`, () => {
    for (const indirect of [false, true]) forSeeds(8, 500, (random) => run(random, layout, indirect));
  });

  Deno.test(`${layout} driver queue: with IN_ORDER a used entry behind a batch is found where the batch ends (VIRTIO 1.4 §2.7.9, §2.8.8)`, () => {
    const rig = new QueueRig(layout, { size: 8, inOrder: true });
    for (let lap = 0; lap < 9; lap++) {
      for (let token = 0; token < 4; token++) rig.add(2, token);
      rig.driver.publish();
      const lists = [0, 1, 2, 3].map(() => rig.takeAvailable()!);
      rig.use(lists.slice(0, 3), 30);
      rig.use(lists.slice(3), 40);
      const got = [0, 1, 2, 3].map(() => [rig.driver.take(), rig.driver.usedLength]);
      assertEquals(got, [[0, ALL], [1, ALL], [2, 30], [3, 40]]);
      assertEquals([rig.driver.take(), rig.driver.freeCount], [-1, 8]);
    }
  });

  Deno.test(`${layout} driver queue: with IN_ORDER a batch that ends with a buffer that is not there is found out (VIRTIO 1.4 §2.7.9, §2.8.8)`, () => {
    const rig = new QueueRig(layout, { size: 8, inOrder: true });
    rig.add(2, 0);
    rig.add(2, 1);
    rig.driver.publish();
    const lists = [rig.takeAvailable()!, rig.takeAvailable()!];
    rig.use(lists, 0);
    assertEquals(rig.takeAll(), [0, 1]);
    rig.use(lists, 0);
    assertThrows(() => rig.driver.take(), DeviceMisbehaved, "out of order");
  });
}

Deno.test("SplitDriverQueue with IN_ORDER uses descriptors in ring order, with next x + 1, or 0 at the end of the table (VIRTIO 1.4 §2.7.5, §2.7.5.2)", () => {
  for (const size of [1, 2, 4, 8]) {
    const rig = new QueueRig("split", { size, inOrder: true });
    let expected = 0;
    for (let i = 0; i < 60; i++) {
      const count = 1 + i % size;
      rig.add(count, i);
      rig.driver.publish();
      const list = rig.takeAvailable()!;
      for (const [k, { index, link }] of list.entries()) {
        assertEquals(index, expected);
        expected = (expected + 1) % size;
        if (k + 1 < count) assertEquals(link, index === size - 1 ? 0 : index + 1);
      }
      rig.use([list], 0);
      rig.takeAll();
    }
  }
});

Deno.test("canary: the run with a batching device sees a used length that is off by one", () => {
  for (const layout of LAYOUTS) {
    assertThrows(() => forSeeds(1, 500, (random) => run(random, layout, false, 1)), Error, "with seed 500: step ");
  }
});
