/**
 * Every small list of a packed ring, at every place of it and in both laps, against a walk that is written from the
 * text of §2.8 alone.
 */

import { assert, assertThrows } from "@std/assert";
import { type Choose, everyChoice } from "./every_choice.ts";
import { type Desc, INDIRECT, NEXT, PackedRing, segments, WRITE } from "./ring_harness.ts";

const AVAIL = 1 << 7;
const USED = 1 << 15;

interface Slot extends Desc {
  flags: number;
  id: number;
}

interface Expected {
  /** `nothing`: no buffer is available; otherwise the rules of which one is broken. */
  outcome: "chain" | "nothing" | string[];
  readable: [number, number][];
  writable: [number, number][];
  violation?: string;
  head: number;
  ringDescriptors: number;
}

/** §2.8.1: the flags of a descriptor that is available in the lap of `wrap`. */
function isAvailable(flags: number, wrap: boolean): boolean {
  return ((flags & AVAIL) !== 0) === wrap && ((flags & USED) !== 0) !== wrap;
}

/** What §2.8 says about the list that begins at `start` in a lap of `wrap`. */
function reference(
  size: number,
  start: number,
  wrap: boolean,
  negotiated: boolean,
  at: (slot: number) => Slot,
): Expected {
  const nothing: Expected = { outcome: "nothing", readable: [], writable: [], head: 0, ringDescriptors: 0 };
  const list: Slot[] = [];
  for (let i = 0;; i++) {
    if (i === size) return { ...nothing, outcome: ["chain-too-long"] };
    const desc = at((start + i) % size);
    const lap = start + i < size ? wrap : !wrap;
    if (!isAvailable(desc.flags, lap)) return i === 0 ? nothing : { ...nothing, outcome: ["list-unavailable"] };
    list.push(desc);
    if (desc.flags & INDIRECT) {
      // Each table is 8 bytes or none here: only that it is refused, and why, is of interest.
      const next = desc.flags & NEXT || i > 0 ? ["indirect-next"] : [];
      return { ...nothing, outcome: [...negotiated ? [] : ["indirect-not-negotiated"], ...next, "indirect-length"] };
    }
    if (!(desc.flags & NEXT)) break;
  }
  const real = list.filter(({ length }) => length > 0);
  const place = ({ address, length }: Desc): [number, number] => [Number(address), length];
  const readable = real.filter(({ flags }) => !(flags & WRITE));
  const writable = real.filter(({ flags }) => flags & WRITE);
  const ordered = [...readable, ...writable].every((desc, i) => desc === real[i]);
  return {
    outcome: "chain",
    readable: readable.map(place),
    writable: writable.map(place),
    violation: ordered ? undefined : "readable-after-writable",
    head: list[list.length - 1].id,
    ringDescriptors: list.length,
  };
}

function compare(ring: PackedRing, expected: Expected, what: () => string): void {
  const { queue, chain } = ring;
  const popped = queue.pop(chain);
  const found: Expected = popped
    ? {
      outcome: "chain",
      readable: segments(chain.readable),
      writable: segments(chain.writable),
      violation: chain.violation?.rule,
      head: chain.head,
      ringDescriptors: chain.descriptorCount,
    }
    : { ...expected, outcome: queue.violation === null ? "nothing" : [queue.violation.rule] };
  const same = Array.isArray(expected.outcome) && Array.isArray(found.outcome)
    ? expected.outcome.includes(found.outcome[0])
    : JSON.stringify(found) === JSON.stringify(expected);
  if (!same) throw new Error(`${what()}: got ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
}

/** Passes `count` buffers of one descriptor through the ring, so that its next slot and lap are others. */
function advance(ring: PackedRing, count: number): void {
  for (let i = 0; i < count; i++) {
    ring.offer([{ address: ring.data, length: 1 }]);
    ring.queue.push(ring.pop(), 0);
    ring.queue.publish();
    ring.takeUsed();
  }
}

function slotOf(choose: Choose, ring: PackedRing, slot: number): Slot {
  const flags = choose([0, WRITE, NEXT, NEXT | WRITE, INDIRECT, INDIRECT | NEXT]) |
    choose([0, AVAIL, USED, AVAIL | USED]);
  return { address: ring.data + 64 * slot, length: choose([8, 0]), flags, id: 0x7000 + slot };
}

for (const size of [1, 2, 3, 4]) {
  Deno.test(`PackedVirtqueue.pop() takes and refuses every list in a ring of ${size}, at every slot and in both laps, as the text says (VIRTIO 1.4 §2.8.1, §2.8.15, §2.8.17)`, () => {
    const runs = everyChoice((choose) => {
      const ring = new PackedRing({ size, indirect: choose([true, false]) });
      const passed = choose(Array.from({ length: 2 * size }, (_, i) => i));
      advance(ring, passed);
      const slots: (Slot | undefined)[] = new Array(size).fill(undefined);
      const at = (slot: number) => slots[slot] ??= slotOf(choose, ring, slot);
      const expected = reference(size, ring.availSlot, ring.availWrap === 1, ring.options.indirect, at);
      // What no device may look at would be a list without end, available in either lap.
      slots.forEach((slot, i) => {
        const { wrap } = { wrap: i >= ring.availSlot ? ring.availWrap : ring.availWrap ^ 1 };
        const endless = { address: -1, length: 0xffffffff, flags: NEXT | PackedRing.availableFlags(wrap), id: 0xffff };
        ring.setDesc(i, slot ?? endless);
      });
      compare(ring, expected, () => `after ${passed}: ${JSON.stringify(slots)}`);
    });
    assert(runs > 4 ** size, `only ${runs} rings`);
  });
}

Deno.test("canary: the comparison with the reference walk sees a wrong rule, a wrong ID and a buffer that is not there", () => {
  const offer = (flags: number) => {
    const ring = new PackedRing({ size: 2 });
    ring.setDesc(0, { address: ring.data, length: 8, id: 5, flags });
    return ring;
  };
  const place: [number, number][] = [[offer(0).data, 8]];
  const chain: Expected = { outcome: "chain", readable: place, writable: [], head: 5, ringDescriptors: 1 };
  compare(offer(AVAIL), chain, () => "as it is");
  const wrong: [ring: PackedRing, expected: Expected][] = [
    [offer(AVAIL), { ...chain, head: 6 }],
    [offer(AVAIL), { ...chain, outcome: "nothing" }],
    [offer(AVAIL), { ...chain, violation: "readable-after-writable" }],
    [offer(0), chain],
    [offer(AVAIL | NEXT), { ...chain, outcome: ["chain-too-long"] }],
  ];
  for (const [ring, expected] of wrong) {
    assertThrows(() => compare(ring, expected, () => "canary"), Error, "canary: got ");
  }
});
