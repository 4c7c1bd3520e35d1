/** The driver's half of both layouts, held against the bytes that the specification asks for (queue_rig.ts). */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { DeviceMisbehaved } from "../../src/guest/driver_queue.ts";
import { packedSizes } from "../../src/virtio/virtqueue/packed_layout.ts";
import { splitSizes, USED_FLAGS } from "../../src/virtio/virtqueue/split_layout.ts";
import { LAYOUTS, QueueRig } from "./queue_rig.ts";

const [NEXT, WRITE, INDIRECT] = [1, 2, 4];
const FLAG_BITS = 7;

for (const layout of LAYOUTS) {
  Deno.test(`${layout} driver queue: each part is aligned, and empty in memory that was in use before (VIRTIO 1.4 §2.7.1, §2.7.10.1, §2.8.11, §2.8.13)`, () => {
    for (const size of [1, 2, 4, 8, 256, 32768, ...layout === "packed" ? [3, 100, 32767] : []]) {
      const rig = new QueueRig(layout, { size });
      const { desc, driver, device } = rig.driver.addresses;
      const alignment = layout === "split" ? [16, 2, 4] : [16, 4, 4];
      assertEquals([desc, driver, device].map((address, i) => address % alignment[i]), [0, 0, 0]);
      const sizes = layout === "split" ? splitSizes(size) : packedSizes(size);
      for (const [address, length] of [[desc, sizes.desc], [driver, sizes.driver], [device, sizes.device]]) {
        const bytes = rig.ram.bytes.subarray(address - rig.ram.guestAddress).subarray(0, length);
        assert(bytes.every((byte) => byte === 0), `size ${size}`);
      }
      if (layout === "split") assertEquals(rig.u16(device + USED_FLAGS), 0);
    }
  });

  Deno.test(`${layout} driver queue: a buffer becomes a list of descriptors in its order, the writable ones last, NEXT on all but the last (VIRTIO 1.4 §2.7.4.2, §2.7.13.1, §2.8.17, §2.8.21.1)`, () => {
    for (const [readable, writable] of [[1, 0], [0, 1], [1, 1], [3, 0], [0, 3], [2, 3], [5, 3]]) {
      const rig = new QueueRig(layout, { size: 8 });
      const elements = rig.elements(readable, writable);
      assert(rig.driver.add(elements, elements.length, 7));
      assertEquals(rig.takeAvailable(), null, "shown before publish()");
      rig.driver.publish();
      const list = rig.takeAvailable()!;
      assertEquals(
        list.map(({ address, length, flags }) => [address, length, flags & FLAG_BITS]),
        elements.map(({ address, length }, i) => [
          address,
          length,
          (i + 1 < elements.length ? NEXT : 0) | (i >= readable ? WRITE : 0),
        ]),
      );
      assertEquals([rig.takeAvailable(), rig.driver.freeCount], [null, 8 - elements.length]);
    }
  });

  Deno.test(`${layout} driver queue: INDIRECT is set only when it was negotiated, on one descriptor without NEXT, and never in a table (VIRTIO 1.4 §2.7.5.3.1, §2.8.19)`, () => {
    for (const inOrder of [false, true]) {
      for (const indirect of [false, true]) {
        const rig = new QueueRig(layout, { size: 4, indirect, inOrder });
        for (const count of [1, 2, 4, 3, 4]) {
          const elements = rig.elements(count - 1, 1);
          rig.driver.add(elements, count, 0);
          rig.driver.publish();
          const list = rig.takeAvailable()!;
          if (!indirect || count === 1) {
            assertEquals(list.length, count);
            assert(list.every(({ flags }) => !(flags & INDIRECT)));
          } else {
            assertEquals([list.length, list[0].flags & FLAG_BITS, list[0].length], [1, INDIRECT, 16 * count]);
            const table = elements.map((_, i) => rig.descriptor(list[0].address, i));
            const expected = elements.map(({ address, length, writable }, i) => {
              // Split: next is 1, 2, ...; packed: WRITE is the only flag.
              const more = i + 1 < count && layout === "split";
              return { address, length, flags: (more ? NEXT : 0) | (writable ? WRITE : 0), link: more ? i + 1 : 0 };
            });
            const found = table.map(({ address, length, flags, link }) => ({ address, length, flags, link }));
            if (layout === "packed") expected.forEach((entry, i) => entry.link = found[i].link);
            assertEquals(found, expected);
          }
          rig.use([list], 0);
          assertEquals(rig.takeAll(), [0]);
        }
      }
    }
  });

  Deno.test(`${layout} driver queue: add() refuses what no driver may make available, and writes nothing (VIRTIO 1.4 §2.7.4.2, §2.7.5.2, §2.7.5.3.1, §2.8.17, §2.8.19)`, () => {
    for (const indirect of [false, true]) {
      const rig = new QueueRig(layout, { size: 4, indirect });
      const before = rig.ram.bytes.slice();
      const five = rig.elements(5, 0);
      assertThrows(() => rig.driver.add(five, 5, 0), RangeError, "a buffer of 5 elements does not fit a queue of 4");
      assertThrows(() => rig.driver.add(five, 0, 0), RangeError, "a buffer of 0 elements does not fit a queue of 4");
      const wrong = [...rig.elements(0, 1), ...rig.elements(1, 0)];
      assertThrows(
        () => rig.driver.add(wrong, 2, 0),
        RangeError,
        "element 1 of a buffer is device-readable but follows",
      );
      const long = [2 ** 32 - 1, 1, 1].map((length) => ({ address: 0, length, writable: false }));
      assertThrows(() => rig.driver.add(long, 3, 0), RangeError, "a buffer of 4294967297 bytes is longer than 2^32");
      assertEquals([rig.ram.bytes, rig.driver.freeCount, rig.driver.addedCount], [before, 4, 0]);
      assert(rig.driver.add(long, 2, 0), "2^32 bytes are allowed");
      assert(!rig.driver.publish() || rig.takeAvailable() !== null);
    }
  });

  Deno.test(`${layout} driver queue: without room for a whole list nothing is written, and no descriptor in flight is changed (VIRTIO 1.4 §2.7.13.1, §2.8.16, §2.8.17)`, () => {
    const rig = new QueueRig(layout, { size: 8 });
    for (let token = 0; token < 3; token++) assert(rig.add(2, token));
    rig.driver.publish();
    const before = rig.ram.bytes.slice();
    assert(!rig.add(3, 9));
    assertEquals(rig.ram.bytes, before);
    assertEquals(rig.driver.freeCount, 2);
    const lists = [0, 1, 2].map(() => rig.takeAvailable()!);
    // The one in the middle comes back; two more fit, the two others stay as they are.
    rig.use([lists[1]], 0);
    assertEquals([rig.takeAll(), rig.driver.freeCount], [[1], 4]);
    if (layout === "split") {
      assert(rig.add(4, 3) && !rig.add(1, 4));
      rig.driver.publish();
      for (const list of [lists[0], lists[2]]) {
        for (const found of list) assertEquals(rig.descriptor(rig.driver.addresses.desc, found.index), found);
      }
    }
  });

  Deno.test(`${layout} driver queue: what was published is not written again until the device has used it (VIRTIO 1.4 §2.7.13.1, §2.8.16)`, () => {
    const rig = new QueueRig(layout, { size: layout === "split" ? 8 : 7 });
    const { desc } = rig.driver.addresses;
    // The bytes of each descriptor that is in flight, by index.
    for (let i = 0; i < 50; i++) {
      assert(rig.add(2, 1));
      rig.driver.publish();
      const list = rig.takeAvailable()!;
      assert(rig.add(3, 2));
      rig.driver.publish();
      const other = rig.takeAvailable()!;
      rig.driver.disableInterrupts();
      rig.driver.enableInterrupts();
      for (const found of [...list, ...other]) assertEquals(rig.descriptor(desc, found.index), found);
      rig.use([list], 0);
      rig.use([other], 0);
      assertEquals(rig.takeAll(), [1, 2]);
    }
  });

  Deno.test(`${layout} driver queue: publish() shows a batch at once (VIRTIO 1.4 §2.7.13.3, §2.8.17)`, () => {
    const rig = new QueueRig(layout, { size: 8 });
    for (let lap = 0; lap < 9; lap++) {
      for (const count of [1, 2, 3]) assert(rig.add(count, count));
      assertEquals([rig.takeAvailable(), rig.driver.addedCount], [null, 3]);
      assert(rig.driver.publish());
      assert(!rig.driver.publish(), "nothing new, nothing to tell");
      const lists = [1, 2, 3].map(() => rig.takeAvailable()!);
      assertEquals([...lists.map((list) => list.length), rig.takeAvailable()], [1, 2, 3, null]);
      for (const list of lists) rig.use([list], 0);
      assertEquals(rig.takeAll(), [1, 2, 3]);
    }
  });

  Deno.test(`${layout} driver queue: publish() has everything in memory before the atomic store that shows it, and reads the device's wish after it (VIRTIO 1.4 §2.7.13.3.1, §2.7.13.4.1, §2.8.21.1.1, §2.8.21.3.1)`, () => {
    for (const eventIdx of [false, true]) {
      const rig = new QueueRig(layout, { size: 8, eventIdx });
      const { driver, desc, device } = rig.driver.addresses;
      for (const count of [1, 3, 2]) rig.add(count, count);
      const hidden = rig.ram.bytes.slice();
      const order: string[] = [];
      const real = { store: Atomics.store, load: Atomics.load };
      // A sequentially consistent access is a full barrier; so the test is that these are the accesses, in this order.
      const spy = (name: "store" | "load") => (words: Uint16Array, index: number, ...rest: number[]) => {
        const address = rig.ram.guestAddress + 2 * index;
        if (name === "store") assertEquals(rig.ram.bytes, hidden, "something was written before the store");
        const area = address >= device ? "device area" : address === (layout === "split" ? driver + 2 : desc + 14);
        order.push(`${name} ${area === true ? "what shows the batch" : area}`);
        return (real[name] as (...all: unknown[]) => number)(words, index, ...rest);
      };
      try {
        Object.assign(Atomics, { store: spy("store"), load: spy("load") });
        rig.driver.publish();
      } finally {
        Object.assign(Atomics, real);
      }
      const [first, ...others] = order;
      assertEquals(first, "store what shows the batch");
      assert(others.length > 0 && others.every((access) => access === "load device area"), order.join());
      const width = layout === "split" ? driver + 2 : desc + 14;
      const changed = [...rig.ram.bytes].flatMap((byte, i) => byte === hidden[i] ? [] : [rig.ram.guestAddress + i]);
      assert(changed.length > 0 && changed.every((at) => at === width || at === width + 1), "only the store wrote");
    }
  });

  Deno.test(`${layout} driver queue: used buffers come back with their tokens and used lengths, in the device's order (VIRTIO 1.4 §2.7.8, §2.8.4)`, () => {
    const rig = new QueueRig(layout, { size: 8 });
    for (let i = 0; i < 30; i++) {
      for (let token = 0; token < 4; token++) rig.driver.add(rig.elements(0, 2), 2, 100 + token);
      rig.driver.publish();
      const lists = [0, 1, 2, 3].map(() => rig.takeAvailable()!);
      const order = [2, 0, 3, 1];
      for (const k of order) rig.use([lists[k]], 0xfffffff0 + k);
      for (const k of order) assertEquals([rig.driver.take(), rig.driver.usedLength], [100 + k, 0xfffffff0 + k]);
      assertEquals([rig.driver.take(), rig.driver.freeCount], [-1, 8]);
    }
  });

  Deno.test(`${layout} driver queue: an interrupt without a used buffer is harmless (VIRTIO 1.4 §2.7.7.1)`, () => {
    const rig = new QueueRig(layout);
    for (let i = 0; i < 3; i++) assertEquals(rig.driver.take(), -1);
    rig.add(1, 5);
    rig.driver.publish();
    for (let i = 0; i < 3; i++) assertEquals(rig.driver.take(), -1);
    rig.useAll();
    assertEquals([rig.driver.take(), rig.driver.take(), rig.driver.freeCount], [5, -1, 8]);
  });

  Deno.test(`${layout} driver queue: a device that returns what it was not given is found out (VIRTIO 1.4 §2.7.8, §2.8.5)`, () => {
    for (const inOrder of [false, true]) {
      for (const wrong of [1, 7, 8, 0x1000, 0xffff]) {
        const rig = new QueueRig(layout, { size: 8, inOrder });
        rig.add(1, 0);
        rig.driver.publish();
        const id = rig.idOf(rig.takeAvailable()!);
        const other = id === wrong ? 2 : wrong;
        if (layout === "split") rig.useSplit(other, 0);
        else rig.usePacked(other, 0, 0, 1);
        const what = inOrder ? `the device used buffer ${other} out of order` : `the device returned buffer ${other}`;
        assertThrows(() => rig.driver.take(), DeviceMisbehaved, what);
      }
    }
  });

  Deno.test(`${layout} driver queue: a buffer that comes back twice is found out (VIRTIO 1.4 §2.7.8, §2.8.5)`, () => {
    const rig = new QueueRig(layout);
    rig.add(1, 0);
    rig.add(1, 1);
    rig.driver.publish();
    const list = rig.takeAvailable()!;
    rig.use([list], 0);
    rig.use([list], 0);
    assertEquals(rig.driver.take(), 0);
    assertThrows(
      () => rig.driver.take(),
      DeviceMisbehaved,
      `the device returned buffer ${rig.idOf(list)}, which was not in flight`,
    );
  });

  Deno.test(`${layout} driver queue: release() gives all of its memory back, indirect tables too`, () => {
    const rig = new QueueRig(layout, { size: 8, indirect: true });
    const before = rig.allocator.freeBytes;
    const fresh = new QueueRig(layout, { size: 8 });
    for (let i = 0; i < 20; i++) {
      rig.driver.add(rig.elements(i % 8, 1), 1 + i % 8, i);
      rig.driver.publish();
      rig.useAll();
      rig.takeAll();
    }
    assert(rig.allocator.freeBytes < before, "tables were made");
    rig.driver.release();
    fresh.driver.release();
    assertEquals(rig.allocator.freeBytes, fresh.allocator.freeBytes);
  });

  Deno.test(`${layout} driver queue: addRaw() writes descriptors exactly as given, for tests of the device`, () => {
    for (const indirect of [false, true]) {
      const rig = new QueueRig(layout, { size: 4 });
      assert(!rig.driver.addRaw([], false, 0));
      assert(!rig.driver.addRaw(Array.from({ length: 5 }, () => ({ address: 0n, length: 0, flags: 0 })), false, 0));
      const raw = [
        { address: 0x1234n, length: 0xffffffff, flags: NEXT | 0x7f08, next: 1 },
        { address: 0xfffn, length: 0, flags: WRITE | INDIRECT, next: 0xffff },
      ];
      assert(rig.driver.addRaw(raw, indirect, 3));
      rig.driver.publish();
      const list = rig.takeAvailable()!;
      const { desc } = rig.driver.addresses;
      const found = [0, 1].map((i) => rig.descriptor(indirect ? list[0].address : desc, i));
      // In a packed ring AVAIL and USED are the queue's own.
      const own = layout === "packed" && !indirect ? 0x8080 : 0;
      assertEquals(
        found.map(({ address, length, flags }) => [address, length, flags & ~own]),
        [[0x1234, 0xffffffff, raw[0].flags & ~own], [0xfff, 0, raw[1].flags & ~own]],
      );
      if (layout === "split") assertEquals(found.map(({ link }) => link), [1, 0xffff]);
      rig.use([list], 0);
      assertEquals([rig.takeAll(), rig.driver.freeCount], [[3], 4]);
    }
  });

  Deno.test(`${layout} driver queue: describe() prints the rings, a line an entry`, () => {
    const rig = new QueueRig(layout, { size: 4 });
    rig.driver.add(rig.elements(1, 1), 2, 0);
    rig.driver.publish();
    const text = rig.driver.describe().join("\n");
    const { buffer } = rig;
    const expected = layout === "split"
      ? ["split ring, 4 descriptors, 2 free", "avail  flags 0  idx 1  used_event 0", "used   flags 0  idx 0"]
      : ["packed ring, 4 descriptors, 2 free", "next available 2 (wrap 1)  next used 0 (wrap 1)", "enable  off 0"];
    const link = layout === "split" ? "flags NEXT  next 1" : "id 0  flags NEXT|AVAIL";
    for (const part of [...expected, `desc[0]  addr 0x${buffer.toString(16)}  len 8  ${link}`]) {
      assert(text.includes(part), `${part} in ${text}`);
    }
    rig.useAll(9);
    assert(layout === "packed" || rig.driver.describe().join("\n").includes("used[0]  id 0  len 9"));
  });
}

Deno.test("SplitDriverQueue never decrements the available index, which wraps at 65536 (VIRTIO 1.4 §2.7.6.1, §2.7.13.3)", () => {
  const rig = new QueueRig("split", { size: 8 });
  let before = 0;
  for (let i = 0; i < 70_000;) {
    const batch = 1 + i % 5;
    for (let k = 0; k < batch; k++) rig.add(1, k);
    const idx = () => rig.u16(rig.driver.addresses.driver + 2);
    if (idx() !== before) throw new Error("moved before publish()");
    rig.driver.publish();
    if (((idx() - before) & 0xffff) !== batch) throw new Error(`after ${i}: from ${before} to ${idx()}`);
    before = idx();
    rig.useAll();
    if (rig.takeAll().length !== batch) throw new Error(`after ${i}: lost a buffer`);
    i += batch;
  }
});

Deno.test("SplitDriverQueue: the position for notifications is the available index, and its low 15 bits are the offset (VIRTIO 1.4 §2.9)", () => {
  const rig = new QueueRig("split", { size: 4 });
  for (let i = 0; i < 70_000; i++) {
    if (rig.driver.position !== (i & 0xffff)) throw new Error(`position ${rig.driver.position} after ${i}`);
    rig.add(1, 0);
    rig.driver.publish();
    rig.useAll();
    rig.driver.take();
  }
});

Deno.test("PackedDriverQueue: the position for notifications is the next descriptor to make available and its wrap counter (VIRTIO 1.4 §2.8.16, §2.9)", () => {
  for (const size of [1, 3, 4]) {
    const rig = new QueueRig("packed", { size });
    for (let i = 0; i < 5 * size; i++) {
      assertEquals(rig.driver.position, i % size | (Math.floor(i / size) % 2 === 0 ? 0x8000 : 0));
      rig.add(1, 0);
      rig.driver.publish();
      rig.useAll();
      rig.driver.take();
    }
  }
});

Deno.test("PackedDriverQueue: every descriptor of a list carries AVAIL and USED of its own lap (VIRTIO 1.4 §2.8.1, §2.8.6)", () => {
  for (const size of [1, 2, 3, 5, 7]) {
    const rig = new QueueRig("packed", { size });
    let slot = 0;
    for (let i = 0; i < 40; i++) {
      const count = 1 + i % size;
      rig.add(count, i);
      rig.driver.publish();
      for (const { flags, index } of rig.takeAvailable()!) {
        assertEquals(index, slot % size);
        const wrap = Math.floor(slot++ / size) % 2 === 0;
        assertEquals(flags & 0x8080, wrap ? 0x80 : 0x8000);
      }
      // The rig takes the list as it found it; its own bookkeeping is what is used here.
      rig.usePacked(rig.descriptor(rig.driver.addresses.desc, (slot - 1) % size).link, 0, 0, count);
      assertEquals(rig.takeAll(), [i]);
    }
  }
});

Deno.test("PackedDriverQueue ignores the length of a used descriptor without WRITE, and NEXT in it (VIRTIO 1.4 §2.8.4, §2.8.6)", () => {
  const rig = new QueueRig("packed", { size: 4 });
  for (const [flags, expected] of [[0, 0], [NEXT, 0], [WRITE, 77], [WRITE | NEXT, 77]]) {
    rig.driver.add(rig.elements(1, 1), 2, 0);
    rig.driver.publish();
    rig.use([rig.takeAvailable()!], 77, flags);
    assertEquals([rig.driver.take(), rig.driver.usedLength], [0, expected]);
  }
});

Deno.test("canary: the hand-written device sees a list that is made available before its end", () => {
  const rig = new QueueRig("packed", { size: 4 });
  rig.add(2, 0);
  rig.driver.publish();
  rig.setU16(rig.driver.addresses.desc + 16 + 14, 0);
  assertThrows(() => rig.takeAvailable(), Error, "slot 1 of a list is not available");
});
