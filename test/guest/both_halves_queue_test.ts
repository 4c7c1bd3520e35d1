/** The driver's half against the device's half, over a model of buffers (queue_pair.ts). */

import { assert } from "@std/assert";
import { forSeeds } from "../random.ts";
import { type Fault, type Features, QueuePair } from "./queue_pair.ts";

const FEATURES: Features[] = (["split", "packed"] as const).flatMap((layout) =>
  [false, true].flatMap((eventIdx) =>
    [false, true].flatMap((inOrder) => [false, true].map((indirect) => ({ layout, eventIdx, inOrder, indirect })))
  )
);

function name({ layout, eventIdx, inOrder, indirect }: Features): string {
  const names = [eventIdx && "EVENT_IDX", inOrder && "IN_ORDER", indirect && "INDIRECT_DESC"].filter((part) => part);
  return `${layout} queue with ${names.join(", ") || "no feature"}`;
}

for (const features of FEATURES) {
  Deno.test(`${name(features)}: every buffer comes back once with its token, length and bytes, and no wakeup is lost, over seeded runs (VIRTIO 1.4 §2.7, §2.8)`, () => {
    forSeeds(40, 1, (random) => new QueuePair(random, features, 600).run());
  });
}

for (const layout of ["split", "packed"] as const) {
  Deno.test(`${layout} queue: more than 70,000 buffers pass between the halves (VIRTIO 1.4 §2.7.13.3, §2.8.1)`, () => {
    const features = { layout, eventIdx: true, inOrder: false, indirect: false };
    forSeeds(1, 77, (random) => new QueuePair(random, features, 70_100).run());
  });
}

/** Runs seeds until one fails, and returns how; a fault need not show in each. */
function firstFailure(features: Features, fault: Fault): string {
  for (let seed = 1; seed <= 40; seed++) {
    try {
      forSeeds(1, seed, (random) => new QueuePair(random, features, 600, fault).run());
    } catch (error) {
      return (error as Error).message;
    }
  }
  return "nothing failed";
}

for (const layout of ["split", "packed"] as const) {
  Deno.test(`canary: on a ${layout} queue the model sees lost wakeups, wrong lengths and bytes, lost buffers, and disorder`, () => {
    const expected: Record<Fault, RegExp> = {
      "deaf device": /standstill/,
      "deaf driver": /standstill/,
      "no kick": /standstill/,
      "no call": /standstill/,
      "lost buffer": /standstill/,
      "wrong length": /used length \d+, the device wrote \d+/,
      "wrong byte": /the device's bytes are not there/,
      "out of order": /buffer \d+ came back, \d+ is next/,
    };
    for (const [fault, pattern] of Object.entries(expected) as [Fault, RegExp][]) {
      for (const eventIdx of [false, true]) {
        const inOrder = fault === "out of order";
        const found = firstFailure({ layout, eventIdx, inOrder, indirect: false }, fault);
        assert(pattern.test(found) && /^with seed \d+: /.test(found), `${fault}: ${found}`);
      }
    }
  });
}
