/**
 * Notifications in both directions, as the device sees them: when the driver asked to be told of used buffers, and
 * what the device asks of the driver. The driver's part is written by hand (ring_harness.ts).
 */

import { assert, assertEquals } from "@std/assert";
import { RING_EVENT_FLAGS_DESC } from "../../src/virtio/virtqueue/packed_layout.ts";
import {
  AVAIL_FLAGS,
  availEventOffset,
  USED_FLAGS,
  USED_IDX,
  usedEventOffset,
} from "../../src/virtio/virtqueue/split_layout.ts";
import { LAYOUTS, makeRing, PackedRing, type Ring, SplitRing } from "./ring_harness.ts";

/** Passes `count` buffers of `descriptors` each through the device, and returns what publish() said. */
function use(ring: Ring, count: number, descriptors = 1): boolean {
  const list = Array.from({ length: descriptors }, () => ({ address: ring.data, length: 1 }));
  for (let i = 0; i < count; i++) ring.offer(list);
  for (let i = 0; i < count; i++) ring.queue.push(ring.pop(), 0);
  const wanted = ring.queue.publish();
  assertEquals(ring.takeAllUsed().length, count);
  return wanted;
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} queue: with the flag clear each batch is told, with the flag set none (VIRTIO 1.4 §2.7.7.2, §2.8.10)`, () => {
    const ring = makeRing(layout, { size: 4 });
    for (let i = 0; i < 12; i++) {
      const never = i % 3 === 1;
      ring.want(never ? "never" : "always");
      assertEquals(use(ring, 1 + i % 4), !never);
    }
    const { batches, calls, callsSuppressed } = ring.queue.counters;
    assertEquals([batches, calls, callsSuppressed], [12, 8, 4]);
  });

  Deno.test(`${layout} queue: with EVENT_IDX a batch is told exactly when it uses the buffer that the driver waits for (VIRTIO 1.4 §2.7.7.2, §2.8.10)`, () => {
    const size = 4;
    for (let start = 0; start < 2 * size; start++) {
      for (let ahead = 0; ahead < size; ahead++) {
        for (let batch = 1; batch <= size; batch++) {
          const ring = makeRing(layout, { size, eventIdx: true });
          for (let i = 0; i < start; i++) use(ring, 1);
          ring.want("at", ahead);
          assertEquals(use(ring, batch), batch > ahead, `at ${start}, ${batch} used, waits for ${ahead} more`);
          // Passed once, the event asks for nothing more until it is set again.
          if (batch > ahead && size > 2) assertEquals(use(ring, 1), false);
        }
      }
    }
  });

  Deno.test(`${layout} queue: the device's advice is read by the driver as it was meant, and is no more than 0, 1 or a position (VIRTIO 1.4 §2.7.10.2, §2.8.10)`, () => {
    for (const eventIdx of [false, true]) {
      const ring = makeRing(layout, { size: 3 + +(layout === "split"), eventIdx });
      for (let i = 0; i < 9; i++) {
        ring.queue.disableNotifications();
        // A split ring with EVENT_IDX has no way to say never: its event stays behind, where nothing passes it.
        if (layout === "split" && eventIdx) assertEquals(ring.u16(ring.config.deviceAddress + USED_FLAGS), 0);
        else assertEquals(ring.wish(), "never");
        assert(!ring.queue.enableNotifications());
        assertEquals(ring.wish(), eventIdx ? ring.position : "always");
        if (layout === "split") assertEquals(ring.u16(ring.config.deviceAddress + USED_FLAGS), 0);
        use(ring, 1);
      }
    }
  });

  Deno.test(`${layout} queue: enableNotifications() tells of a buffer that became available meanwhile, so no wakeup is lost (VIRTIO 1.4 §2.7.10, §2.8.10)`, () => {
    for (const eventIdx of [false, true]) {
      const ring = makeRing(layout, { size: 2, eventIdx });
      for (let i = 0; i < 10; i++) {
        ring.queue.disableNotifications();
        assert(!ring.queue.pop(ring.chain));
        // The driver looks at the device's advice now, sees no need to notify, and does not.
        ring.offer([{ address: ring.data, length: 1 }]);
        assert(ring.queue.enableNotifications(), "the buffer would wait for ever");
        ring.queue.push(ring.pop(), 0);
        ring.queue.publish();
        ring.takeUsed();
        assert(!ring.queue.enableNotifications());
        // The next buffer is one that the driver notifies of.
        assertEquals(ring.wish(), eventIdx ? ring.position : "always");
      }
    }
  });
}

Deno.test("SplitVirtqueue without EVENT_IDX ignores used_event, and writes no avail_event (VIRTIO 1.4 §2.7.7.2)", () => {
  const ring = new SplitRing({ size: 4 });
  for (let event = 0; event < 0x10000; event += 0x555) {
    ring.setU16(ring.config.driverAddress + usedEventOffset(4), event);
    ring.setU16(ring.config.driverAddress + AVAIL_FLAGS, 0);
    assert(use(ring, 1));
    ring.setU16(ring.config.driverAddress + AVAIL_FLAGS, 1);
    assert(!use(ring, 1));
    ring.queue.disableNotifications();
    ring.queue.enableNotifications();
  }
  assertEquals(ring.u16(ring.config.deviceAddress + availEventOffset(4)), 0);
});

Deno.test("SplitVirtqueue with EVENT_IDX ignores the flags of the available ring (VIRTIO 1.4 §2.7.7.2)", () => {
  const ring = new SplitRing({ size: 4, eventIdx: true });
  for (const flags of [0, 1, 0xffff]) {
    ring.want("at");
    ring.setU16(ring.config.driverAddress + AVAIL_FLAGS, flags);
    assert(use(ring, 1));
    ring.want("never");
    ring.setU16(ring.config.driverAddress + AVAIL_FLAGS, flags);
    assert(!use(ring, 1));
  }
});

Deno.test("SplitVirtqueue with EVENT_IDX: events around 65535 are told once each (VIRTIO 1.4 §2.7.7.2)", () => {
  for (let start = 65530; start < 65540; start++) {
    for (let event = 65528; event < 65546; event++) {
      for (let batch = 1; batch <= 4; batch++) {
        const ring = new SplitRing({ size: 4, eventIdx: true, startIdx: start & 0xffff });
        ring.setU16(ring.config.driverAddress + usedEventOffset(4), event & 0xffff);
        const expected = event >= start && event < start + batch;
        assertEquals(use(ring, batch), expected, `${batch} used from ${start}, event ${event}`);
      }
    }
  }
});

Deno.test("SplitVirtqueue writes used entries and their lengths before the index that shows them (VIRTIO 1.4 §2.7.8.2)", () => {
  const ring = new SplitRing({ size: 4 });
  for (let i = 0; i < 4; i++) ring.offer([{ address: ring.data, length: 1 }]);
  const { deviceAddress } = ring.config;
  for (let i = 0; i < 4; i++) {
    ring.queue.push(ring.pop(), 100 + i);
    assertEquals([ring.u32(deviceAddress + 4 + 8 * i), ring.u32(deviceAddress + 8 + 8 * i)], [i, 100 + i]);
    assertEquals(ring.u16(deviceAddress + USED_IDX), 0, "the index moved before publish()");
  }
  ring.queue.publish();
  assertEquals(ring.u16(deviceAddress + USED_IDX), 4);
});

Deno.test("PackedVirtqueue: the first used descriptor of a batch gets its flags last (VIRTIO 1.4 §2.8.2, §2.8.9)", () => {
  const ring = new PackedRing({ size: 4 });
  for (let i = 0; i < 3; i++) ring.offer([{ address: ring.data, length: 1 }]);
  const flags = (slot: number) => ring.u16(ring.config.descAddress + 16 * slot + 14);
  const offered = flags(0);
  for (let i = 0; i < 3; i++) ring.queue.push(ring.pop(), 0);
  assertEquals([flags(0), flags(1), flags(2)], [offered, 0x8080, 0x8080]);
  ring.queue.publish();
  assertEquals([flags(0), flags(1), flags(2)], [0x8080, 0x8080, 0x8080]);
});

Deno.test("PackedVirtqueue with EVENT_IDX: a batch of lists is told exactly when it passes the descriptor of the event, in the lap of its wrap counter (VIRTIO 1.4 §2.8.10)", () => {
  for (const size of [1, 2, 3, 4, 6]) {
    for (const descriptors of [1, 2, 3].filter((count) => count <= size)) {
      for (let count = 1; count * descriptors <= size; count++) {
        for (let start = 0; start < 2 * size; start++) {
          for (let event = 0; event < 2 * size; event++) {
            const ring = new PackedRing({ size, eventIdx: true });
            for (let i = 0; i < start; i++) use(ring, 1);
            const lap = Math.floor(start / size) * size;
            // Events of the lap that the device is in, and of the one before.
            const at = lap - size + event;
            const offWrap = event % size | (Math.floor(at / size) % 2 === 0 ? 0x8000 : 0);
            ring.setU16(ring.config.driverAddress, offWrap);
            ring.setU16(ring.config.driverAddress + 2, RING_EVENT_FLAGS_DESC);
            // An event two laps back has the wrap counter of this lap again: nothing tells them apart, so a
            // position counts as passed whenever the driver could mean it.
            const positions = Array.from({ length: count * descriptors }, (_, i) => (start + i) % (2 * size));
            const expected = positions.includes(((at % (2 * size)) + 2 * size) % (2 * size));
            const what = `size ${size}, ${count} lists of ${descriptors} from ${start}, event ${at}`;
            assertEquals(use(ring, count, descriptors), expected, what);
          }
        }
      }
    }
  }
});

Deno.test("PackedVirtqueue notifies for the reserved value 3, and for DESC without EVENT_IDX: one too many does no harm (VIRTIO 1.4 §2.8.10)", () => {
  for (const [eventIdx, flags] of [[true, 3], [false, 3], [false, 2]] as const) {
    for (let event = 0; event < 0x10000; event += 0x777) {
      const ring = new PackedRing({ size: 4, eventIdx });
      ring.setU16(ring.config.driverAddress, event);
      ring.setU16(ring.config.driverAddress + 2, flags);
      assert(use(ring, 1));
    }
  }
});

Deno.test("PackedVirtqueue ignores the reserved bits of the driver's event suppression (VIRTIO 1.4 §2.8.14)", () => {
  const ring = new PackedRing({ size: 4, eventIdx: true });
  for (const [flags, expected] of [[0xfffc, true], [0xfffd, false], [0xfffe, false]] as const) {
    // As the position of the event, the last descriptor but one: never the next.
    const behind = (ring.usedSlot + 2) % 4 | (ring.usedSlot + 2 >= 4 ? ring.usedWrap ^ 1 : ring.usedWrap) << 15;
    ring.setU16(ring.config.driverAddress, behind);
    ring.setU16(ring.config.driverAddress + 2, flags);
    assertEquals(use(ring, 1), expected);
  }
});

Deno.test("PackedVirtqueue keeps the reserved bits of the device's event suppression at 0 (VIRTIO 1.4 §2.8.14)", () => {
  for (const eventIdx of [false, true]) {
    const ring = new PackedRing({ size: 5, eventIdx });
    for (let i = 0; i < 11; i++) {
      ring.queue.disableNotifications();
      assertEquals(ring.u16(ring.config.deviceAddress + 2), 1);
      ring.queue.enableNotifications();
      assertEquals(ring.u16(ring.config.deviceAddress + 2), eventIdx ? 2 : 0);
      use(ring, 1);
    }
  }
});
