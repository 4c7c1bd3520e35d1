/**
 * Drivers that break the rules: what each gets told, and that nothing else happens. The driver's part is written by
 * hand (ring_harness.ts).
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { formatViolation } from "../../src/virtio/violation.ts";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import { virtqueueViolation } from "../../src/virtio/virtqueue/rules.ts";
import {
  type Desc,
  INDIRECT,
  type Layout,
  LAYOUTS,
  makeRing,
  NEXT,
  PackedRing,
  type Ring,
  type RingOptions,
  segments,
  SplitRing,
  WRITE,
} from "./ring_harness.ts";

/** A ring that is broken: what the driver does, and the explanation it gets. */
interface Case {
  name: string;
  options?: RingOptions;
  break: (ring: Ring) => void;
  rule: string;
  /** Sections for split and packed; a layout without one has no such case. */
  split?: string;
  packed?: string;
  /** What the message says, by layout where it differs. */
  found: string | Record<Layout, string>;
}

const good = (ring: Ring): Desc => ({ address: ring.data, length: 8 });

const CASES: Case[] = [
  {
    name: "an INDIRECT descriptor that was not negotiated",
    options: { indirect: false },
    break: (ring) => ring.offerIndirect([good(ring)]),
    rule: "indirect-not-negotiated",
    split: "2.7.5.3.1",
    packed: "2.8.19",
    found: "descriptor 0 has INDIRECT set",
  },
  {
    name: "an INDIRECT descriptor with NEXT",
    break: (ring) => {
      const table = ring.table([good(ring)]);
      ring.offer([{ address: table, length: 16, flags: INDIRECT }, good(ring)]);
    },
    rule: "indirect-next",
    split: "2.7.5.3.1",
    packed: "2.8.19",
    found: "descriptor 0 has both flags set",
  },
  {
    name: "an INDIRECT descriptor at the end of a packed list",
    break: (ring) => ring.offerIndirect([good(ring)], [good(ring), good(ring)]),
    rule: "indirect-next",
    packed: "2.8.19",
    found: "descriptor 2 has both flags set",
  },
  ...[0, 1, 15, 17, 24, 0xffffffff].map((length): Case => ({
    name: `an indirect table of ${length} bytes`,
    break: (ring) => ring.offer([{ address: ring.data, length, flags: INDIRECT }]),
    rule: "indirect-length",
    split: "2.7.5.3",
    packed: "2.8.7",
    found: `descriptor 0 gives its indirect table ${length} bytes`,
  })),
  {
    name: "an indirect table in an indirect table",
    break: (ring) => ring.offerIndirect([good(ring), { address: ring.data, length: 16, flags: INDIRECT }]),
    rule: "indirect-nested",
    split: "2.7.5.3.1",
    found: "entry 1 of the table of descriptor 0 has INDIRECT set",
  },
  {
    name: "an indirect table outside memory",
    break: (ring) => ring.offer([{ address: ring.hole, length: 16, flags: INDIRECT }]),
    rule: "indirect-memory",
    split: "2.7.5.3",
    packed: "2.8.7",
    found: {
      split: "entry 0 of the table of descriptor 0 is not",
      packed: "entry 0 of the table at slot 0 is not",
    },
  },
  {
    name: "an indirect table that ends in a hole",
    break: (ring) => {
      const table = ring.hole - 24;
      ring.writeDesc(table, { ...good(ring), flags: ring.layout === "split" ? NEXT : 0, next: 1 });
      ring.offer([{ address: table, length: 32, flags: INDIRECT }]);
    },
    rule: "indirect-memory",
    split: "2.7.5.3",
    packed: "2.8.7",
    found: {
      split: "entry 1 of the table of descriptor 0 is not",
      packed: "entry 1 of the table at slot 0 is not",
    },
  },
  ...[2n ** 64n - 16n, 2n ** 64n - 8n, 2n ** 63n, 2n ** 53n, 2n ** 53n - 16n].map((address): Case => ({
    name: `an indirect table at 0x${address.toString(16)}`,
    break: (ring) => ring.offer([{ address, length: 32, flags: INDIRECT }]),
    rule: "indirect-memory",
    split: "2.7.5.3",
    packed: "2.8.7",
    found: {
      split: "entry 0 of the table of descriptor 0 is not",
      packed: "entry 0 of the table at slot 0 is not",
    },
  })),
  {
    name: "an indirect table with more than 1024 descriptors",
    break: (ring) => ring.offerIndirect(Array.from({ length: 1025 }, () => good(ring))),
    rule: "chain-too-long",
    split: "2.7.5.3.1",
    packed: "2.8.17",
    found: {
      split: "the indirect table of descriptor 0 links more than 1024",
      packed: "the indirect table at slot 0 has 1025 descriptors",
    },
  },
  {
    name: "an indirect table of 4 GiB",
    break: (ring) => {
      // Each entry of the split table is linked to the first: only the bound on the walk ends it.
      ring.writeDesc(ring.data, { ...good(ring), flags: NEXT, next: 0 });
      ring.offer([{ address: ring.data, length: 0xfffffff0, flags: INDIRECT }]);
    },
    rule: "chain-too-long",
    split: "2.7.5.3.1",
    packed: "2.8.17",
    found: {
      split: "the indirect table of descriptor 0 links more than 1024",
      packed: "the indirect table at slot 0 has 268435455 descriptors",
    },
  },
  {
    name: "a loop in an indirect table",
    break: (ring) => ring.offerIndirect([{ ...good(ring), next: 1 }, { ...good(ring), flags: NEXT, next: 0 }]),
    rule: "chain-too-long",
    split: "2.7.5.3.1",
    found: "the indirect table of descriptor 0 links more than 2",
  },
  ...[2, 3, 0xffff].map((next): Case => ({
    name: `an indirect table of 2 that continues at ${next}`,
    break: (ring) => ring.offerIndirect([{ ...good(ring), next: 1 }, { ...good(ring), flags: NEXT, next }]),
    rule: "desc-range",
    split: "2.7.5",
    found: `entry 1 of an indirect table continues at ${next}, the table has 2`,
  })),
];

const SPLIT_CASES: (Omit<Case, "break"> & { break: (ring: SplitRing) => void })[] = [
  ...[8, 9, 0x7fff, 0xffff].map((head) => ({
    name: `head ${head} of a queue of 8`,
    break: (ring: SplitRing) => ring.offerHead(head),
    rule: "head-range",
    split: "2.7.13.2",
    found: `entry 0 of the available ring is ${head}, the queue has 8 descriptors`,
  })),
  ...[8, 0xffff].map((next) => ({
    name: `a chain that continues at ${next} of a queue of 8`,
    break: (ring: SplitRing) => ring.offerRaw([good(ring), { ...good(ring), flags: NEXT, next }].toReversed()),
    rule: "desc-range",
    split: "2.7.5",
    found: `descriptor 0 continues at ${next}, the table has 8 descriptors`,
  })),
  ...[0, 3, 7].map((next) => ({
    name: `a loop of all 8 descriptors back to ${next}`,
    break: (ring: SplitRing) => {
      ring.offerRaw(Array.from({ length: 8 }, (_, i) => ({
        ...good(ring),
        flags: NEXT,
        next: i === 7 ? next : i + 1,
      })));
    },
    rule: "chain-too-long",
    split: "2.7.5.3.1",
    found: "the chain from descriptor 0 has more than 8",
  })),
  {
    name: "a descriptor that is its own successor",
    break: (ring) => ring.offerRaw([{ ...good(ring), flags: NEXT, next: 0 }]),
    rule: "chain-too-long",
    split: "2.7.5.3.1",
    found: "the chain from descriptor 0 has more than 8",
  },
  ...[9, 100, 0x8000, 0xffff].map((idx) => ({
    name: `an available index that jumps to ${idx} in a queue of 8`,
    break: (ring: SplitRing) => ring.setAvailIdx(idx),
    rule: "avail-jump",
    split: "2.7.13",
    found: `the available index went from 0 to ${idx}, the queue has 8 descriptors`,
  })),
  {
    name: "an available index that goes back by one",
    break: (ring) => {
      ring.offer([good(ring)]);
      ring.pop();
      ring.setAvailIdx(0);
    },
    rule: "avail-jump",
    split: "2.7.13",
    found: "the available index went from 1 to 0, the queue has 8 descriptors",
  },
  {
    name: "a head that is in flight",
    break: (ring) => {
      ring.offerHead(ring.offer([good(ring)]));
      ring.pop();
    },
    rule: "head-in-flight",
    split: "2.7.13.1",
    found: "descriptor 0 was made available again while in flight",
  },
];

const PACKED_CASES: (Omit<Case, "break"> & { break: (ring: PackedRing) => void })[] = [
  {
    name: "a list that goes once around the ring",
    break: (ring) => ring.offerRaw(Array.from({ length: 8 }, () => ({ ...good(ring), flags: NEXT }))),
    rule: "chain-too-long",
    packed: "2.8.17",
    found: "the list at slot 0 has more than 8",
  },
  {
    name: "a list whose second descriptor is not available",
    break: (ring) => ring.offerRaw([{ ...good(ring), flags: NEXT }]),
    rule: "list-unavailable",
    packed: "2.8.17",
    found: "the list at slot 0 continues at slot 1, which is not available",
  },
  {
    name: "a buffer ID that is in flight",
    break: (ring) => {
      const id = ring.offer([good(ring)]);
      ring.pop();
      ring.offerRaw([{ ...good(ring), id }]);
    },
    rule: "id-in-flight",
    packed: "2.8.21.1",
    found: "buffer ID 32768 was used again while in flight",
  },
  {
    name: "more descriptors than the ring has",
    break: (ring) => {
      for (let i = 0; i < 4; i++) {
        ring.offer([good(ring), good(ring)]);
        ring.pop(new DescriptorChain());
      }
      ring.offer([good(ring)]);
    },
    rule: "ring-overrun",
    packed: "2.8.16",
    found: "9 descriptors are in flight, the ring has 8",
  },
];

/** Runs a case: the ring must be broken by the next pop, with this explanation and no other effect. */
function refuse(layout: Layout, test: Case): void {
  const ring = makeRing(layout, test.options);
  test.break(ring);
  const before = ring.snapshot();
  const inFlight = ring.queue.inFlightCount;
  assert(!ring.queue.pop(ring.chain), `${test.name}: a chain was popped`);
  const { violation } = ring.queue;
  assert(violation !== null, `${test.name}: the ring is not broken`);
  assertEquals([violation.rule, violation.section], [test.rule, test[layout]!], test.name);
  assertEquals(violation.found, typeof test.found === "string" ? test.found : test.found[layout], test.name);
  assertEquals(formatViolation(violation), `${violation.found}; ${violation.expected} (VIRTIO 1.4 §${test[layout]})`);
  assertEquals(ring.queue.inFlightCount, inFlight, test.name);
  // Nothing more is taken, whatever the driver offers, and nothing is asked for.
  for (let i = 0; i < 2; i++) assert(!ring.queue.pop(ring.chain), `${test.name}: popped from a broken ring`);
  assert(!ring.queue.enableNotifications(), `${test.name}: a broken ring has something new`);
  assert(!ring.queue.publish(), `${test.name}: a broken ring has something used`);
  assertEquals(ring.changes(before), [], `${test.name}: memory was written`);
  assertEquals(ring.queue.violation, violation, `${test.name}: the first violation is the one that is told`);
}

for (const layout of LAYOUTS) {
  const own = (layout === "split" ? SPLIT_CASES : PACKED_CASES) as Case[];
  for (const test of [...CASES, ...own]) {
    const section = test[layout];
    if (section === undefined) continue;
    Deno.test(`${layout} queue: pop() refuses ${test.name} (VIRTIO 1.4 §${section})`, () => refuse(layout, test));
  }

  Deno.test(`${layout} queue: what is in flight when the ring breaks still goes back (VIRTIO 1.4 §2.7, §2.8)`, () => {
    const ring = makeRing(layout, { indirect: false });
    const id = ring.offer([good(ring)]);
    const chain = ring.pop(new DescriptorChain());
    ring.offerIndirect([good(ring)]);
    assert(!ring.queue.pop(ring.chain));
    ring.queue.push(chain, 3);
    assert(ring.queue.publish());
    assertEquals(ring.takeAllUsed().map((used) => [used.id, used.length]), [[id, 3]]);
  });

  Deno.test(`${layout} queue: a driver that adds buffers while it has none back is stopped after one queue size of them (VIRTIO 1.4 §2.7.13.1, §2.8.16)`, () => {
    const ring = makeRing(layout, { size: 4 });
    // Pushed, and not yet published: the driver cannot know that it has anything back.
    for (let i = 0; i < 4; i++) {
      ring.offer([good(ring)]);
      ring.queue.push(ring.pop(), 0);
    }
    if (ring instanceof SplitRing) ring.offerHead(0);
    else ring.offer([good(ring)]);
    assert(!ring.queue.pop(ring.chain));
    assertEquals(ring.queue.violation?.rule, layout === "split" ? "desc-shared" : "ring-overrun");
    assertEquals(ring.queue.violation?.found, "5 descriptors are in flight, the ring has 4");
    ring.queue.publish();
    for (let i = 0; i < 4; i++) assert(ring.takeUsed() !== null);
  });

  Deno.test(`${layout} queue: a buffer outside guest memory breaks the request, not the ring (VIRTIO 1.4 §2.7.5, §2.8.13)`, () => {
    const { hole, far } = makeRing(layout);
    const cases: [address: number | bigint, length: number, place: string][] = [
      [hole, 1, hex(hole)],
      [hole - 1, 2, hex(hole - 1)],
      [far - 1, 2, hex(far - 1)],
      [hole - 1, 0x1_0000 + 2, hex(hole - 1)],
      [far + 4095, 2, hex(far + 4095)],
      [far + 4096, 0xffffffff, hex(far + 4096)],
      [0, 1, "0x0"],
      [2n ** 53n - 1n, 1, "0x1fffffffffffff"],
      [2n ** 53n, 1, "an address of 2^53 or more"],
      [2n ** 64n - 1n, 2, "an address of 2^53 or more"],
      [2n ** 64n - 0x100n, 0xffffffff, "an address of 2^53 or more"],
      [2n ** 64n + BigInt(far) - 0x1000n - 2n ** 32n, 0xffffffff, "an address of 2^53 or more"],
    ];
    for (const [address, length, place] of cases) {
      for (const flags of [0, WRITE]) {
        for (const indirect of [false, true]) {
          const ring = makeRing(layout);
          const list = [{ address, length, flags }, { address: ring.data, length: 1, flags: WRITE }];
          if (indirect) ring.offerIndirect(list);
          else ring.offer(list);
          const before = ring.snapshot();
          const { violation, readable, writable, writablePrefixLost } = ring.pop();
          assertEquals([violation?.rule, violation?.section], ["unmapped", layout === "split" ? "2.7.5" : "2.8.13"]);
          assertEquals(violation?.found, `descriptor 0 describes ${length} bytes at ${place}, outside guest memory`);
          // The status byte behind it can still be written, and nothing else can be reached.
          assertEquals([segments(readable), segments(writable)], [[], [[ring.data, 1]]]);
          assertEquals(writablePrefixLost, flags === WRITE);
          assertEquals([ring.queue.violation, ring.changes(before)], [null, []]);
        }
      }
    }
  });

  Deno.test(`${layout} queue: nothing device-writable in front of an unmapped descriptor is left (VIRTIO 1.4 §2.7.8.2)`, () => {
    const ring = makeRing(layout);
    const unmapped = { address: ring.hole, length: 1, flags: WRITE };
    ring.offer([{ address: ring.data, length: 512, flags: WRITE }, unmapped]);
    const chain = ring.pop();
    assertEquals([segments(chain.writable), chain.writablePrefixLost], [[], true]);
    assertEquals(chain.violation?.rule, "unmapped");
  });

  Deno.test(`${layout} queue: a device-readable descriptor behind a device-writable one breaks the request (VIRTIO 1.4 §2.7.4.2, §2.8.17)`, () => {
    for (const indirect of [false, true]) {
      const ring = makeRing(layout);
      const list = [
        { address: ring.data, length: 4 },
        { address: ring.data + 8, length: 4, flags: WRITE },
        { address: ring.data + 16, length: 4 },
        { address: ring.data + 24, length: 1, flags: WRITE },
      ];
      if (indirect) ring.offerIndirect(list);
      else ring.offer(list);
      const { violation, writable } = ring.pop();
      assertEquals(
        [violation?.rule, violation?.section],
        ["readable-after-writable", layout === "split" ? "2.7.4.2" : "2.8.17"],
      );
      assertEquals(violation?.found, "descriptor 2 is device-readable but follows a device-writable one");
      assertEquals(segments(writable), [[ring.data + 8, 4], [ring.data + 24, 1]]);
      assertEquals(ring.queue.violation, null);
    }
  });

  Deno.test(`${layout} queue: a chain of 2^32 bytes is the longest that is taken (VIRTIO 1.4 §2.7.5.2)`, () => {
    // 32768 times the same 128 KiB, which lie in two regions.
    const ring = makeRing(layout, { size: 32768 });
    const whole = { address: ring.data, length: 0x2_0000, flags: WRITE };
    ring.offer(Array.from({ length: 32768 }, () => whole));
    const { violation, writable } = ring.pop();
    assertEquals([violation, writable.byteLength], [null, 2 ** 32]);
    ring.queue.push(ring.chain, 0);
    ring.queue.publish();
    ring.takeUsed();
    // Only a split chain can be longer: an indirect table behind direct descriptors (§2.7.5.3.2).
    if (layout === "packed") return;
    const table = {
      address: ring.table([{ ...whole, flags: WRITE | NEXT, next: 1 }, { ...whole, length: 1 }]),
      length: 32,
      flags: INDIRECT,
    };
    ring.offer([...Array.from({ length: 32767 }, () => whole), table]);
    const longer = ring.pop();
    assertEquals([longer.violation?.rule, longer.violation?.section], ["chain-bytes", "2.7.5.2"]);
    assertEquals(longer.violation?.found, "the chain describes more bytes");
    assertEquals([segments(longer.writable), longer.writablePrefixLost], [[[ring.data, 1]], true]);
  });
}

Deno.test("SplitVirtqueue: descriptors that two buffers in flight share do no harm to the device (VIRTIO 1.4 §2.7.13.1)", () => {
  const ring = new SplitRing({ size: 4 });
  ring.offerRaw([{ ...good(ring), flags: NEXT, next: 2 }]);
  ring.offerRaw([{ ...good(ring), flags: NEXT, next: 2 }]);
  ring.setDesc(2, { address: ring.far, length: 1, flags: WRITE });
  const chains = [ring.pop(), ring.pop(new DescriptorChain())];
  for (const chain of chains) {
    assertEquals(segments(chain.writable), [[ring.far, 1]]);
    ring.queue.push(chain, 1);
  }
  ring.queue.publish();
  assertEquals(ring.takeAllUsed().map(({ id }) => id), [0, 1]);
});

Deno.test("SplitVirtqueue: a head can be made available again once its buffer was returned, not before (VIRTIO 1.4 §2.7.13.1)", () => {
  const ring = new SplitRing({ size: 2 });
  const head = ring.offer([good(ring)]);
  const chain = ring.pop(new DescriptorChain());
  ring.queue.push(chain, 0);
  ring.queue.publish();
  ring.offerHead(head);
  assertEquals(ring.pop().head, head);
  ring.offerHead(head);
  assert(!ring.queue.pop(ring.chain));
  assertEquals(ring.queue.violation?.rule, "head-in-flight");
});

Deno.test("split queue: buffers in flight that share descriptors break the ring (VIRTIO 1.4 §2.7.13.1)", () => {
  const ring = makeRing("split", { size: 8 }) as SplitRing;
  const head = ring.offer(Array.from({ length: 8 }, () => good(ring)));
  assertEquals(ring.pop().descriptorCount, 8);
  // From its second descriptor on the chain is no head that is in flight, but every descriptor of it is.
  ring.offerHead((head + 1) % 8);
  assert(!ring.queue.pop(ring.chain));
  assertEquals(ring.queue.violation?.rule, "desc-shared");
  assertEquals(ring.queue.violation?.found, "15 descriptors are in flight, the ring has 8");
});

Deno.test("every rule of a virtqueue says what it expects, in words that fit behind what was found", () => {
  for (const packed of [false, true]) {
    for (const rule of ["queue-size", "avail-jump", "ring-overrun", "chain-too-long", "list-unavailable"] as const) {
      const { section, expected } = virtqueueViolation(rule, "x", packed);
      assert(/^2\.[78](\.\d+)*$/.test(section) && /^[a-z].*[^.]$/i.test(expected), rule);
    }
  }
});

Deno.test("canary: a ring that is not broken, or by another rule, fails the check of hostile drivers", () => {
  const row: Case = { name: "canary", break: () => {}, rule: "desc-range", split: "2.7.5", found: "x" };
  assertThrows(() => refuse("split", row), Error, "the ring is not broken");
  assertThrows(() => refuse("split", { ...row, break: (ring) => ring.offer([good(ring)]) }), Error, "was popped");
  const loop = (ring: Ring) => void ring.offerRaw([{ ...good(ring), flags: NEXT, next: 0 }]);
  assertThrows(() => refuse("split", { ...row, break: loop }), Error, "canary");
});

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
