/**
 * One suite for both layouts: what a device sees of a queue that a good driver uses. The driver's part is written
 * by hand (ring_harness.ts).
 */

import { assert, assertEquals } from "@std/assert";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { GuestMemory as Memory } from "../../src/memory/guest_memory.ts";
import type { Violation } from "../../src/virtio/violation.ts";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import { PackedVirtqueue } from "../../src/virtio/virtqueue/packed_virtqueue.ts";
import { SplitVirtqueue } from "../../src/virtio/virtqueue/split_virtqueue.ts";
import type { Virtqueue } from "../../src/virtio/virtqueue/virtqueue.ts";
import { INDIRECT, type Layout, LAYOUTS, makeRing, PackedRing, segments, SplitRing, WRITE } from "./ring_harness.ts";

const POWERS = Array.from({ length: 16 }, (_, i) => 2 ** i);
const SIZES: Record<Layout, number[]> = {
  split: POWERS,
  packed: [...POWERS, 3, 5, 6, 7, 9, 100, 1000, 32767],
};

/** Makes a queue, or says which rule the set-up broke. */
function create(
  layout: Layout,
  memory: GuestMemory,
  size: number,
  [descAddress, driverAddress, deviceAddress]: [number, number, number],
): Virtqueue | Violation {
  const config = { memory, size, descAddress, driverAddress, deviceAddress };
  const features = { eventIdx: false, indirect: false, inOrder: false };
  return (layout === "split" ? SplitVirtqueue : PackedVirtqueue).create({ ...config, ...features });
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} queue: a buffer goes to the device and back, at every queue size, until the ring has wrapped twice (VIRTIO 1.4 §2.7, §2.8)`, () => {
    for (const size of SIZES[layout]) {
      const ring = makeRing(layout, { size });
      assertEquals([ring.queue.layout, ring.queue.size], [layout, size]);
      for (let i = 0; i < Math.min(2 * size + 1, 5000); i++) {
        assert(!ring.queue.pop(ring.chain), "popped before anything was made available");
        const id = ring.offer([{ address: ring.data + i % 512, length: 16, flags: WRITE }]);
        const chain = ring.pop();
        if (chain.head !== id || segments(chain.writable)[0][0] !== ring.data + i % 512) {
          throw new Error(`size ${size}, buffer ${i}: popped ${chain.head}, offered ${id}`);
        }
        assert(ring.takeUsed() === null, "used before push");
        ring.queue.push(chain, 16);
        assert(ring.takeUsed() === null, "used before publish");
        ring.queue.publish();
        const used = ring.takeUsed();
        if (used?.id !== id || used.length !== 16) throw new Error(`size ${size}, buffer ${i}: ${used?.id}`);
      }
    }
  });

  Deno.test(`${layout} queue: as many buffers as it has descriptors are in flight at once, and not one is lost (VIRTIO 1.4 §2.7, §2.8)`, () => {
    for (const size of SIZES[layout]) {
      const ring = makeRing(layout, { size });
      for (let lap = 0; lap < 2; lap++) {
        const ids = Array.from({ length: size }, () => ring.offer([{ address: ring.data, length: 1 }]));
        const chains = ids.map(() => ring.pop(new DescriptorChain()));
        assertEquals(chains.map(({ head }) => head), ids);
        assertEquals(ring.queue.inFlightCount, size);
        assert(!ring.queue.pop(ring.chain) && ring.queue.violation === null, "popped more than was offered");
        for (const chain of chains) ring.queue.push(chain, 0);
        ring.queue.publish();
        assertEquals(ring.takeAllUsed().map(({ id }) => id), ids);
        assertEquals(ring.queue.inFlightCount, 0);
      }
    }
  });

  Deno.test(`${layout} queue: a list of descriptors is taken in its order, readable and writable apart (VIRTIO 1.4 §2.7.5, §2.8.18)`, () => {
    // Three descriptors in a ring of five or eight: the lists cross the end of the ring in every way.
    const ring = makeRing(layout, { size: layout === "split" ? 8 : 5 });
    for (let i = 0; i < 40; i++) {
      const id = ring.offer([
        { address: ring.data + 100, length: 7 },
        { address: ring.data, length: 9 },
        { address: ring.far, length: 16, flags: WRITE },
      ]);
      const chain = ring.pop();
      assertEquals(segments(chain.readable), [[ring.data + 100, 7], [ring.data, 9]]);
      assertEquals(segments(chain.writable), [[ring.far, 16]]);
      assertEquals([chain.head, chain.descriptorCount, chain.violation], [id, 3, null]);
      assertEquals(chain.descriptors.map(({ address, length, indirect }) => [address, length, indirect]), [
        [ring.data + 100, 7, false],
        [ring.data, 9, false],
        [ring.far, 16, false],
      ]);
      ring.queue.push(chain, 16);
      ring.queue.publish();
      assertEquals(ring.takeUsed()?.id, id);
    }
  });

  Deno.test(`${layout} queue: an indirect table is one descriptor in the ring, and WRITE on it means nothing (VIRTIO 1.4 §2.7.5.3.2, §2.8.7)`, () => {
    const ring = makeRing(layout, { size: 1 });
    for (const write of [0, WRITE]) {
      const table = ring.table(
        layout === "split"
          ? [{ address: ring.data, length: 4, flags: 1, next: 2 }, { address: 0, length: 0 }, {
            address: ring.far,
            length: 5,
            flags: WRITE,
          }]
          : [{ address: ring.data, length: 4 }, { address: ring.far, length: 5, flags: WRITE }],
      );
      const length = layout === "split" ? 48 : 32;
      ring.offer([{ address: table, length, flags: INDIRECT | write }]);
      const chain = ring.pop();
      assertEquals(segments(chain.readable), [[ring.data, 4]]);
      assertEquals(segments(chain.writable), [[ring.far, 5]]);
      assertEquals([chain.descriptorCount, chain.violation], [1, null]);
      assertEquals(chain.descriptors.map(({ indirect }) => indirect), [false, true, true]);
      ring.queue.push(chain, 5);
      ring.queue.publish();
      assertEquals(ring.takeUsed()?.length, 5);
    }
  });

  Deno.test(`${layout} queue: an indirect table may be longer than the queue, up to 1024, as Linux makes it`, () => {
    const ring = makeRing(layout, { size: 2 });
    const elements = Array.from({ length: 1024 }, (_, i) => ({ address: ring.data + i, length: 1, flags: WRITE }));
    ring.offerIndirect(elements);
    assertEquals(ring.pop().writable.count, 1024);
  });

  Deno.test(`${layout} queue: an indirect table and a buffer may lie across two adjacent regions (VIRTIO 1.4 §2.7.5.3, §2.8.7)`, () => {
    const ring = makeRing(layout, {});
    // From one byte to a whole descriptor on the far side of the border, so that each field is cut somewhere.
    for (let before = 1; before < 48; before++) {
      const table = ring.border - before;
      const more = layout === "split" ? 1 : 0;
      ring.writeDesc(table, { address: ring.border - 3, length: 8, flags: more, next: 1 });
      ring.writeDesc(table + 16, { address: ring.border - 8, length: 8, flags: more | WRITE, next: 2 });
      ring.writeDesc(table + 32, { address: ring.border - 1, length: 2, flags: WRITE });
      ring.offer([{ address: table, length: 48, flags: INDIRECT }]);
      const chain = ring.pop();
      assertEquals(segments(chain.readable), [[ring.border - 3, 3], [ring.border, 5]]);
      assertEquals(segments(chain.writable), [[ring.border - 8, 8], [ring.border - 1, 1], [ring.border, 1]]);
      ring.queue.push(chain, 10);
      ring.queue.publish();
      ring.takeUsed();
    }
  });

  Deno.test(`${layout} queue: a descriptor of no bytes is no buffer, wherever it points (VIRTIO 1.4 §2.7.5, §2.8.13)`, () => {
    const ring = makeRing(layout, {});
    ring.offer([
      { address: ring.data, length: 0 },
      { address: ring.hole, length: 0 },
      { address: ring.data, length: 3 },
      { address: 2n ** 64n - 1n, length: 0, flags: WRITE },
      // Device-readable behind device-writable, but of no bytes: nothing is out of order.
      { address: ring.data, length: 0 },
      { address: ring.far, length: 2, flags: WRITE },
    ]);
    const chain = ring.pop();
    assertEquals([segments(chain.readable), segments(chain.writable)], [[[ring.data, 3]], [[ring.far, 2]]]);
    assertEquals([chain.violation, chain.descriptorCount], [null, 6]);
  });

  Deno.test(`${layout} queue: what the driver changes after pop() changes nothing of the chain (double fetch)`, () => {
    for (const indirect of [false, true]) {
      const ring = makeRing(layout, {});
      const elements = [{ address: ring.data, length: 8 }, { address: ring.far, length: 4, flags: WRITE }];
      if (indirect) ring.offerIndirect(elements);
      else ring.offer(elements);
      const chain = ring.pop();
      const descriptors = chain.descriptors;
      ring.memory.regions[0].bytes.fill(0xff);
      ring.memory.regions[1].bytes.fill(0xff, 0x8000);
      assertEquals(segments(chain.readable), [[ring.data, 8]]);
      assertEquals(segments(chain.writable), [[ring.far, 4]]);
      assertEquals(chain.descriptors, descriptors);
    }
  });

  Deno.test(`${layout} queue: buffers come back in the order of completion, each with its used length (VIRTIO 1.4 §2.7.8, §2.8.12)`, () => {
    const ring = makeRing(layout, { size: 16 });
    const lengths = [0, 1, 512, 0xffffffff, 7];
    const ids = lengths.map(() => ring.offer([{ address: ring.data, length: 512, flags: WRITE }]));
    const chains = ids.map(() => ring.pop(new DescriptorChain()));
    const order = [3, 0, 4, 2, 1];
    for (const i of order) ring.queue.push(chains[i], lengths[i]);
    ring.queue.publish();
    const used = ring.takeAllUsed();
    assertEquals(used.map(({ id, length }) => [id, length]), order.map((i) => [ids[i], lengths[i]]));
  });

  Deno.test(`${layout} queue: publish() shows a whole batch at once and asks for one notification (VIRTIO 1.4 §2.7.8.2, §2.8.2)`, () => {
    const ring = makeRing(layout, { size: 8 });
    for (let lap = 0; lap < 5; lap++) {
      const ids = Array.from({ length: 7 }, () => ring.offer([{ address: ring.data, length: 1 }]));
      const before = { ...ring.queue.counters };
      for (let i = 0; i < 7; i++) ring.queue.push(ring.pop(), 0);
      assertEquals(ring.takeAllUsed(), []);
      assert(ring.queue.publish());
      assertEquals(ring.takeAllUsed().map(({ id }) => id), ids);
      assert(!ring.queue.publish(), "nothing new, nothing to tell");
      const { popped, pushed, published, batches, calls } = ring.queue.counters;
      assertEquals([popped - before.popped, pushed - before.pushed, published - before.published], [7, 7, 7]);
      assertEquals([batches - before.batches, calls - before.calls], [1, 1]);
    }
  });

  Deno.test(`${layout} queue: the device writes nothing but used buffers and its own area (VIRTIO 1.4 §2.7.5.1, §2.7.6, §2.8.15)`, () => {
    for (const eventIdx of [false, true]) {
      const ring = makeRing(layout, { size: 8, eventIdx });
      ring.offer([{ address: ring.data, length: 8 }, { address: ring.data + 64, length: 8, flags: WRITE }]);
      ring.offerIndirect([{ address: ring.data, length: 8 }, { address: ring.data + 64, length: 8, flags: WRITE }]);
      const before = ring.snapshot();
      const chains = [ring.pop(), ring.pop(new DescriptorChain())];
      ring.queue.disableNotifications();
      ring.queue.enableNotifications();
      // Until a buffer is returned, the device has written its own area at most.
      assertEquals(ring.changes(before, [[ring.config.deviceAddress, 6 + 8 * 8]]), []);
      for (const chain of chains) ring.queue.push(chain, 8);
      ring.queue.publish();
      assertEquals(ring.changes(before, ring.mayWrite(3)), []);
      assert(ring.changes(before).length > 0, "the comparison sees the used ring");
    }
  });

  Deno.test(`${layout} queue: a notification without a new buffer is harmless (VIRTIO 1.4 §2.7.10.2, §2.8.16)`, () => {
    const ring = makeRing(layout, {});
    const before = ring.snapshot();
    for (let i = 0; i < 3; i++) assert(!ring.queue.pop(ring.chain));
    assertEquals([ring.queue.violation, ring.changes(before)], [null, []]);
    ring.offer([{ address: ring.data, length: 1 }]);
    ring.pop();
    for (let i = 0; i < 3; i++) assert(!ring.queue.pop(ring.chain));
    assertEquals(ring.queue.violation, null);
  });

  Deno.test(`${layout} queue: more than 70,000 buffers pass, past every wrap of an index (VIRTIO 1.4 §2.7.13.3, §2.8.1)`, () => {
    // A batch that does not divide the ring puts the end of the ring everywhere in it.
    const ring = makeRing(layout, { size: layout === "split" ? 16 : 13 });
    const chains = Array.from({ length: 7 }, () => new DescriptorChain());
    for (let i = 0; i < 70_007; i += 7) {
      const ids = chains.map(() => ring.offer([{ address: ring.data + i % 1000, length: 1 + i % 9 }]));
      for (const [k, chain] of chains.entries()) {
        ring.pop(chain);
        if (chain.head !== ids[k] || chain.readable.byteLength !== 1 + i % 9) throw new Error(`buffer ${i + k}`);
      }
      assert(!ring.queue.pop(ring.chain));
      for (const chain of chains) ring.queue.push(chain, 0);
      ring.queue.publish();
      const used = ring.takeAllUsed();
      if (used.length !== 7 || used.some(({ id }, k) => id !== ids[k])) throw new Error(`used buffers of batch ${i}`);
    }
    assertEquals(ring.queue.counters.published, 70_007);
  });

  Deno.test(`${layout} queue: each part must start at a multiple of its alignment (VIRTIO 1.4 §2.7.1, §2.8.11)`, () => {
    const memory = Memory.allocate(0x4000);
    const alignment = layout === "split" ? [16, 2, 4] : [16, 4, 4];
    const names = layout === "split"
      ? ["descriptor table", "available ring", "used ring"]
      : ["descriptor ring", "driver event suppression structure", "device event suppression structure"];
    for (let part = 0; part < 3; part++) {
      for (let off = 0; off < 16; off++) {
        const addresses: [number, number, number] = [0x1000, 0x2000, 0x3000];
        addresses[part] += off;
        const queue = create(layout, memory, 4, addresses);
        if (off % alignment[part] === 0) {
          assert(!("rule" in queue), `${names[part]} at +${off}`);
        } else {
          assert("rule" in queue, `${names[part]} at +${off}`);
          assertEquals([queue.rule, queue.section], ["queue-alignment", layout === "split" ? "2.7.1" : "2.8.11"]);
          const place = `0x${addresses[part].toString(16)}`;
          assertEquals(queue.found, `the ${names[part]} is at ${place}, not a multiple of ${alignment[part]}`);
        }
      }
    }
  });

  Deno.test(`${layout} queue: each part must lie in one region of guest memory (VIRTIO 1.4 §2.7, §2.8.10.1)`, () => {
    const memory = new Memory([
      new MemoryRegion(0x1000, new Uint8Array(0x1000)),
      new MemoryRegion(0x2000, new Uint8Array(0x1000)),
    ]);
    const size = 8;
    const bytes = layout === "split" ? [128, 22, 70] : [128, 4, 4];
    const good: [number, number, number] = [0x1000, 0x1400, 0x1800];
    assert(!("rule" in create(layout, memory, size, good)));
    for (let part = 0; part < 3; part++) {
      const last = Math.floor((0x1000 - bytes[part]) / 16) * 16;
      for (const start of [0x1000, 0x2000]) {
        const fits = good.with(part, start + last) as typeof good;
        assert(!("rule" in create(layout, memory, size, fits)));
      }
      const outside = [0, 0x800, 0x3000, 2 ** 52, Infinity];
      // Behind the last place that fits: across the border to the next region, or out of memory.
      if (bytes[part] > 16) outside.push(0x1000 + last + 16, 0x2000 + last + 16);
      for (const address of outside) {
        const found = create(layout, memory, size, good.with(part, address) as typeof good);
        assert("rule" in found, `part ${part} at ${address}`);
        assertEquals([found.rule, found.section], ["queue-memory", layout === "split" ? "2.7" : "2.8.10.1"]);
        const place = address === Infinity ? "an address of 2^53 or more" : `0x${address.toString(16)}`;
        assert(found.found.endsWith(`(${bytes[part]} bytes at ${place}) is not`), found.found);
      }
    }
  });

  Deno.test(`${layout} queue: a part at an odd place of its region is refused, not read wrongly`, () => {
    const memory = new Memory([new MemoryRegion(0x1001, new Uint8Array(0x4000))]);
    const queue = create(layout, memory, 4, [0x2000, 0x3000, 0x4000]);
    assert("rule" in queue);
    assertEquals(queue.rule, "queue-alignment");
    assert(queue.found.endsWith("lies at an odd place of its region"), queue.found);
  });
}

Deno.test("SplitVirtqueue.create() takes powers of two from 1 to 32768 and no other size (VIRTIO 1.4 §2.7)", () => {
  const memory = Memory.allocate(0x10_0000);
  const sizes = Array.from({ length: 1030 }, (_, i) => i);
  for (const size of [...sizes, 32767, 32768, 32769, 65536, -1, 1.5, NaN, Infinity]) {
    const queue = create("split", memory, size, [0, 0x8_0000, 0xa_0000]);
    if (POWERS.includes(size)) {
      assert(!("rule" in queue), `size ${size}`);
    } else {
      assert("rule" in queue, `size ${size}`);
      assertEquals([queue.rule, queue.section], ["queue-size", "2.7"]);
      assertEquals(queue.found, `the queue's size is ${size}`);
    }
  }
});

Deno.test("PackedVirtqueue.create() takes every size from 1 to 32768 and no other (VIRTIO 1.4 §2.8, §2.8.10.1)", () => {
  const memory = Memory.allocate(0x10_0000);
  const sizes = Array.from({ length: 1030 }, (_, i) => i);
  for (const size of [...sizes, 32767, 32768, 32769, 65536, -1, 1.5, NaN, Infinity]) {
    const queue = create("packed", memory, size, [0, 0x8_0000, 0xa_0000]);
    if (Number.isInteger(size) && size >= 1 && size <= 32768) {
      assert(!("rule" in queue), `size ${size}`);
    } else {
      assert("rule" in queue, `size ${size}`);
      assertEquals([queue.rule, queue.section], ["packed-queue-size", "2.8.10.1"]);
      assertEquals(queue.found, `the queue's size is ${size}`);
    }
  }
});

Deno.test("SplitVirtqueue: a chain may begin with direct descriptors and end with one that is INDIRECT (VIRTIO 1.4 §2.7.5.3.2)", () => {
  for (let direct = 0; direct < 8; direct++) {
    const ring = new SplitRing({ size: 8 });
    const at = (i: number) => ring.data + 64 * i;
    const id = ring.offerIndirect(
      [{ address: at(20), length: 3 }, { address: at(21), length: 5, flags: WRITE }],
      Array.from({ length: direct }, (_, i) => ({ address: at(i), length: 2 })),
    );
    const chain = ring.pop();
    const expected = Array.from({ length: direct }, (_, i) => [at(i), 2]);
    assertEquals(segments(chain.readable), [...expected, [at(20), 3]] as [number, number][]);
    assertEquals(segments(chain.writable), [[at(21), 5]]);
    assertEquals([chain.head, chain.descriptorCount, chain.violation], [id, direct + 1, null]);
  }
});

Deno.test("SplitVirtqueue: a queue that is taken over goes on at its index, past 65535 too (VIRTIO 1.4 §2.7.13.3)", () => {
  for (const startIdx of [1, 7, 65530, 65534, 65535]) {
    const ring = new SplitRing({ size: 4, startIdx });
    assert(!ring.queue.pop(ring.chain));
    for (let i = 0; i < 20; i++) {
      const id = ring.offer([{ address: ring.data, length: 1 }]);
      ring.queue.push(ring.pop(), i);
      ring.queue.publish();
      assertEquals(ring.takeUsed(), { id, length: i });
    }
    assertEquals(ring.availIdx, (startIdx + 20) & 0xffff);
  }
});

Deno.test("PackedVirtqueue: WRITE in a used descriptor says whether anything was written; the length is 0 without it (VIRTIO 1.4 §2.8.3, §2.8.4)", () => {
  const ring = new PackedRing({ size: 3 });
  for (let i = 0; i < 12; i++) {
    ring.offer([{ address: ring.data, length: 99, flags: WRITE }]);
    ring.queue.push(ring.pop(), i % 2);
    ring.queue.publish();
    const { length, flags = 0 } = ring.takeUsed()!;
    assertEquals([length, (flags & WRITE) !== 0], [i % 2, i % 2 === 1]);
  }
});

Deno.test("PackedVirtqueue: AVAIL and USED of a used descriptor equal the device's wrap counter, and nothing else is set (VIRTIO 1.4 §2.8.1)", () => {
  for (const size of [1, 2, 3, 5]) {
    const ring = new PackedRing({ size });
    for (let i = 0; i < 4 * size; i++) {
      ring.offer([{ address: ring.data, length: 1 }]);
      ring.queue.push(ring.pop(), 0);
      ring.queue.publish();
      const lap = Math.floor(i / size);
      assertEquals(ring.takeUsed()?.flags, lap % 2 === 0 ? 0x8080 : 0, `size ${size}, buffer ${i}`);
    }
  }
});

Deno.test("PackedVirtqueue takes the buffer ID from the last descriptor of a list, and any ID (VIRTIO 1.4 §2.8.6)", () => {
  const ring = new PackedRing({ size: 4 });
  for (const id of [0, 3, 4, 0x7fff, 0xffff]) {
    ring.offerRaw([
      { address: ring.data, length: 1, flags: 1, id: 0x1111 },
      { address: ring.data, length: 1, id },
    ]);
    assertEquals(ring.pop().head, id);
    ring.queue.push(ring.chain, 0);
    ring.queue.publish();
    assertEquals(ring.u16(ring.config.descAddress + ring.usedSlot * 16 + 12), id);
    ring.usedSlot = ring.availSlot;
    ring.usedWrap = ring.availWrap;
  }
});

Deno.test("PackedVirtqueue ignores every flag but WRITE, and the ID, in an indirect table (VIRTIO 1.4 §2.8.7)", () => {
  const ring = new PackedRing({});
  for (let flags = 0; flags < 0x10000; flags += 0x31) {
    const table = ring.table([
      { address: ring.data, length: 2, flags: flags & ~WRITE, id: flags },
      { address: ring.far, length: 3, flags: flags | WRITE, id: 0xffff },
    ]);
    const id = ring.offer([{ address: table, length: 32, flags: INDIRECT }]);
    const chain = ring.pop();
    if (chain.head !== id || chain.violation !== null) throw new Error(`flags ${flags}`);
    assertEquals([segments(chain.readable), segments(chain.writable)], [[[ring.data, 2]], [[ring.far, 3]]]);
    ring.queue.push(chain, 0);
    ring.queue.publish();
    ring.takeUsed();
  }
});

Deno.test("PackedVirtqueue: a used list leaves the rest of its descriptors as they were (VIRTIO 1.4 §2.8.6, §2.8.15)", () => {
  const ring = new PackedRing({ size: 5 });
  ring.offer([1, 2, 3].map((length) => ({ address: ring.data, length })));
  ring.offer([{ address: ring.data, length: 4 }]);
  const chains = [ring.pop(), ring.pop(new DescriptorChain())];
  const before = ring.snapshot();
  // Out of order: the second list is used first, in the first slot, and then the first one, one slot on.
  ring.queue.push(chains[1], 0);
  ring.queue.publish();
  assertEquals(ring.changes(before, [[ring.config.descAddress, 16]]), []);
  const used = ring.snapshot();
  ring.queue.push(chains[0], 0);
  ring.queue.publish();
  assertEquals(ring.changes(used, [[ring.config.descAddress + 16, 16]]), [], "a used descriptor was changed again");
  assertEquals(ring.takeAllUsed().map(({ id }) => id), [0x8001, 0x8000]);
});

Deno.test("canary: the comparison of memory sees one changed byte, and takes what is allowed for allowed", () => {
  const ring = makeRing("split", {});
  const before = ring.snapshot();
  ring.memory.regions[2].bytes[5] ^= 1;
  assertEquals(ring.changes(before), [ring.border + 5]);
  assertEquals(ring.changes(before, [[ring.border + 5, 1]]), []);
  assertEquals(ring.changes(before, [[ring.border + 4, 1], [ring.border + 6, 9]]), [ring.border + 5]);
});
