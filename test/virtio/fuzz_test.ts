/**
 * Rings of random bytes. Whatever the driver wrote, pop() returns, throws nothing, stays within its bounds, and gives
 * out no byte outside guest memory. Half of the bytes are plausible, so that the walks get somewhere.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import type { SegmentList } from "../../src/memory/segment_list.ts";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import { packedSizes } from "../../src/virtio/virtqueue/packed_layout.ts";
import { PackedVirtqueue } from "../../src/virtio/virtqueue/packed_virtqueue.ts";
import { splitSizes } from "../../src/virtio/virtqueue/split_layout.ts";
import { SplitVirtqueue } from "../../src/virtio/virtqueue/split_virtqueue.ts";
import { INDIRECT_MAX_DESCRIPTORS } from "../../src/virtio/virtqueue/virtqueue.ts";
import { Random } from "../random.ts";
import { created, type Layout, LAYOUTS } from "./ring_harness.ts";

const CASES = 20_000;
/** A ring, and behind a hole a little more memory; both small, so that random addresses hit and miss. */
const [RAM, RAM_BYTES, MORE, MORE_BYTES] = [0x100, 0x600, 0x900, 0x200];

/** The segments of a list lie in guest memory, and their lengths add up. */
function checkSegments(memory: GuestMemory, list: SegmentList): void {
  let sum = 0;
  for (let i = 0; i < list.count; i++) {
    const [region, from, length] = [list.regionOf(i), list.offsetOf(i), list.lengthOf(i)];
    if (!memory.regions.includes(region) || from < 0 || length < 1 || from + length > region.sizeBytes) {
      throw new Error(`segment of ${length} bytes at ${from} is outside memory`);
    }
    sum += length;
  }
  if (sum !== list.byteLength) throw new Error(`${sum} bytes in the segments, ${list.byteLength} in the list`);
}

/** Fills the ring with descriptors that are wrong in about one field of three. */
function scribble(random: Random, layout: Layout, memory: GuestMemory, size: number, areas: [number, number, number]) {
  const { view, guestAddress } = memory.regions[0];
  for (const { bytes } of memory.regions) random.fill(bytes);
  // Descriptors everywhere, so that indirect tables at any place hold some.
  for (let at = 0; at + 16 <= RAM_BYTES; at += 16) {
    if (random.oneIn(3)) continue;
    view.setUint32(at, RAM + random.below(MORE + MORE_BYTES), true);
    view.setUint32(at + 4, random.oneIn(8) ? random.next() : 0, true);
    view.setUint32(at + 8, random.pick([0, 16, 32, random.below(64), random.below(0x800), random.next()]), true);
    const shared = random.oneIn(6) ? random.below(0x10000) : random.pick([0, 1, 1, 2, 3, 4]);
    if (layout === "split") {
      view.setUint16(at + 12, shared, true);
      view.setUint16(at + 14, random.oneIn(5) ? random.below(0x10000) : random.below(size), true);
    } else {
      view.setUint16(at + 12, random.below(2 * size), true);
      view.setUint16(at + 14, shared | (random.oneIn(5) ? random.pick([0, 0x8080, 0x8000]) : 0x80), true);
    }
  }
  if (layout === "packed") return;
  const avail = areas[1] - guestAddress;
  view.setUint16(avail + 2, random.oneIn(4) ? random.below(0x10000) : random.below(size + 1), true);
  for (let i = 0; i < size; i++) if (!random.oneIn(5)) view.setUint16(avail + 4 + 2 * i, random.below(size), true);
}

/** One ring of random bytes; returns what happened, for the count at the end. */
function runCase(random: Random, layout: Layout): "empty" | "chains" | "broken" {
  const memory = new GuestMemory([
    new MemoryRegion(RAM, new Uint8Array(RAM_BYTES)),
    new MemoryRegion(MORE, new Uint8Array(MORE_BYTES)),
  ]);
  const size = layout === "split" ? 1 << random.below(5) : random.between(1, 16);
  const areas: [number, number, number] = [RAM, RAM + 16 * size, RAM + 16 * size + 64];
  scribble(random, layout, memory, size, areas);
  const [descAddress, driverAddress, deviceAddress] = areas;
  const config = { memory, size, descAddress, driverAddress, deviceAddress };
  const options = { eventIdx: random.oneIn(2), indirect: !random.oneIn(4), inOrder: random.oneIn(4) };
  const queue = created((layout === "split" ? SplitVirtqueue : PackedVirtqueue).create({ ...config, ...options }));
  const before = memory.regions.map(({ bytes }) => bytes.slice());
  const chains: DescriptorChain[] = [];
  // A queue hands out at most as many buffers as it has descriptors until some come back.
  for (let i = 0;; i++) {
    const chain = new DescriptorChain();
    if (!queue.pop(chain)) break;
    if (i >= size) throw new Error(`${i + 1} buffers are in flight in a queue of ${size}`);
    checkSegments(memory, chain.readable);
    checkSegments(memory, chain.writable);
    const bound = size + Math.max(size, INDIRECT_MAX_DESCRIPTORS);
    if (chain.descriptors.length > bound) throw new Error(`a walk read ${chain.descriptors.length} descriptors`);
    if (chain.descriptorCount < 1 || chain.descriptorCount > size) {
      throw new Error(`${chain.descriptorCount} in the ring`);
    }
    if (chain.readable.byteLength + chain.writable.byteLength > 0xffffffff) {
      if (chain.violation === null) throw new Error("a chain of 2^32 bytes");
    }
    chains.push(chain);
  }
  memory.regions.forEach(({ bytes }, i) => {
    if (bytes.some((byte, at) => byte !== before[i][at])) throw new Error("pop() wrote to memory");
  });
  for (const chain of random.shuffle(chains)) queue.push(chain, random.next());
  queue.publish();
  queue.disableNotifications();
  const more = queue.enableNotifications();
  if (queue.violation !== null && (more || queue.pop(new DescriptorChain()))) throw new Error("a broken ring goes on");
  // The rings and the device's area are the only place that was written.
  const device = layout === "split"
    ? [deviceAddress, splitSizes(size).device]
    : [descAddress, deviceAddress - descAddress + packedSizes(size).device];
  memory.regions.forEach(({ bytes, guestAddress }, i) =>
    bytes.forEach((byte, at) => {
      const address = guestAddress + at;
      const allowed = address >= device[0] && address < device[0] + device[1];
      if (byte !== before[i][at] && !allowed) throw new Error(`${address.toString(16)} was written`);
    })
  );
  return queue.violation !== null ? "broken" : chains.length > 0 ? "chains" : "empty";
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} queue: ${CASES} rings of random bytes make pop() neither throw nor leave guest memory (VIRTIO 1.4 §2.7, §2.8)`, () => {
    const outcomes = { empty: 0, chains: 0, broken: 0 };
    for (let seed = 1; seed <= CASES; seed++) {
      try {
        outcomes[runCase(new Random(seed), layout)]++;
      } catch (error) {
        throw new Error(`with seed ${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
    // The seeds are fixed, so this is no matter of chance: the rings are neither all broken nor all empty.
    for (const count of Object.values(outcomes)) assert(count > CASES / 100, JSON.stringify(outcomes));
  });
}

Deno.test("canary: the check of segments sees one that ends outside its region", () => {
  const region = new MemoryRegion(RAM, new Uint8Array(64));
  const memory = new GuestMemory([region]);
  const chain = new DescriptorChain();
  chain.readable.append(region, 60, 4);
  checkSegments(memory, chain.readable);
  chain.readable.append(region, 61, 4);
  assertThrows(() => checkSegments(memory, chain.readable), Error, "segment of 4 bytes at 61 is outside memory");
  chain.writable.append(new MemoryRegion(RAM, region.bytes), 0, 4);
  assertThrows(() => checkSegments(memory, chain.writable), Error, "segment of 4 bytes at 0 is outside memory");
  chain.writable.clear();
  chain.writable.byteLength = 1;
  assertThrows(() => checkSegments(memory, chain.writable), Error, "0 bytes in the segments, 1 in the list");
  assertEquals(memory.regions.length, 1);
});
