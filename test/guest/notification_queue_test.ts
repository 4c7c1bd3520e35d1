/** When the driver notifies, and what it asks of the device, by the bytes (queue_rig.ts). */

import { assert, assertEquals } from "@std/assert";
import { availEventOffset, usedEventOffset } from "../../src/virtio/virtqueue/split_layout.ts";
import { LAYOUTS, QueueRig } from "./queue_rig.ts";

/** Adds and publishes a batch of buffers of `descriptors` each, lets it be used, and returns what publish() said. */
function send(rig: QueueRig, batch: number, descriptors = 1): boolean {
  for (let i = 0; i < batch; i++) assert(rig.add(descriptors, i));
  const wanted = rig.driver.publish();
  assertEquals(rig.useAll(), batch);
  assertEquals(rig.takeAll().length, batch);
  return wanted;
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} driver queue: enableInterrupts() tells of a buffer that was used meanwhile, so no interrupt is lost (VIRTIO 1.4 §2.7.14, §2.8.22)`, () => {
    for (const eventIdx of [false, true]) {
      const rig = new QueueRig(layout, { size: 4, eventIdx });
      for (let i = 0; i < 12; i++) {
        rig.driver.disableInterrupts();
        assertEquals(rig.driver.take(), -1);
        rig.add(1, i);
        rig.driver.publish();
        rig.useAll();
        assert(rig.driver.enableInterrupts(), "the buffer would wait for ever");
        assertEquals(rig.driver.take(), i);
        assert(!rig.driver.enableInterrupts());
      }
    }
  });

  Deno.test(`${layout} driver queue: with EVENT_IDX the device is notified exactly when a batch passes the position that it waits for (VIRTIO 1.4 §2.7.10.1, §2.8.10)`, () => {
    const size = 4;
    for (let start = 0; start < 2 * size; start++) {
      for (let ahead = 0; ahead < size; ahead++) {
        for (let batch = 1; batch <= size; batch++) {
          const rig = new QueueRig(layout, { size, eventIdx: true });
          for (let i = 0; i < start; i++) send(rig, 1);
          const { device } = rig.driver.addresses;
          const at = start + ahead;
          if (layout === "split") {
            rig.setU16(device + availEventOffset(size), at);
          } else {
            rig.setU16(device, at % size | (Math.floor(at / size) % 2 === 0 ? 0x8000 : 0));
            rig.setU16(device + 2, 2);
          }
          assertEquals(send(rig, batch), batch > ahead, `at ${start}, ${batch} sent, waits for ${ahead} more`);
        }
      }
    }
  });
}

Deno.test("SplitDriverQueue without EVENT_IDX notifies when the used ring's flags are 0 and not when they are 1, whatever avail_event is (VIRTIO 1.4 §2.7.10.1)", () => {
  const rig = new QueueRig("split", { size: 4 });
  const { device } = rig.driver.addresses;
  for (let event = 0; event < 0x10000; event += 0x333) {
    rig.setU16(device + availEventOffset(4), event);
    rig.setU16(device, 0);
    assert(send(rig, 1));
    rig.setU16(device, 1);
    assert(!send(rig, 1));
  }
});

Deno.test("SplitDriverQueue with EVENT_IDX ignores the used ring's flags, and passes avail_event past 65535 once (VIRTIO 1.4 §2.7.10.1)", () => {
  const rig = new QueueRig("split", { size: 8, eventIdx: true });
  const { device } = rig.driver.addresses;
  let idx = 0;
  for (const event of [0, 1, 100, 65534, 65535, 65536, 65537, 65540]) {
    rig.setU16(device + availEventOffset(8), event & 0xffff);
    while (idx <= event) {
      rig.setU16(device, idx & 1);
      const batch = idx + 8 < event ? 8 : 1 + idx % 3;
      const wanted = send(rig, batch);
      idx += batch;
      if (wanted !== idx > event) throw new Error(`event ${event}, index ${idx}`);
    }
  }
});

Deno.test("SplitDriverQueue sets flags to 0 or 1 without EVENT_IDX, and leaves them 0 with it (VIRTIO 1.4 §2.7.7.1)", () => {
  for (const eventIdx of [false, true]) {
    const rig = new QueueRig("split", { size: 4, eventIdx });
    const { driver } = rig.driver.addresses;
    for (let i = 0; i < 9; i++) {
      assertEquals(rig.u16(driver), 0);
      rig.driver.disableInterrupts();
      assertEquals(rig.u16(driver), eventIdx ? 0 : 1);
      rig.driver.enableInterrupts();
      // The event is the entry that is used next; without EVENT_IDX the field is nobody's.
      assertEquals(rig.u16(driver + usedEventOffset(4)), eventIdx ? i : 0);
      send(rig, 1);
    }
  }
});

Deno.test("PackedDriverQueue without EVENT_IDX heeds ENABLE and DISABLE, and takes DESC and the reserved value for ENABLE (VIRTIO 1.4 §2.8.10)", () => {
  const rig = new QueueRig("packed", { size: 3 });
  const { device } = rig.driver.addresses;
  for (const [flags, expected] of [[0, true], [1, false], [2, true], [3, true], [0xfffd, false], [0xfffc, true]]) {
    for (let event = 0; event < 0x10000; event += 0xfff) {
      rig.setU16(device, event);
      rig.setU16(device + 2, flags as number);
      assertEquals(send(rig, 1), expected);
    }
  }
});

Deno.test("PackedDriverQueue with EVENT_IDX notifies exactly when a batch of lists passes the descriptor of the event (VIRTIO 1.4 §2.8.10)", () => {
  for (const size of [1, 2, 3, 5]) {
    for (const descriptors of [1, 2].filter((count) => count <= size)) {
      for (let batch = 1; batch * descriptors <= size; batch++) {
        for (let start = 0; start < 2 * size; start++) {
          for (let ahead = 0; ahead < size; ahead++) {
            const rig = new QueueRig("packed", { size, eventIdx: true });
            for (let i = 0; i < start; i++) send(rig, 1);
            const at = start + ahead;
            rig.setU16(rig.driver.addresses.device, at % size | (Math.floor(at / size) % 2 === 0 ? 0x8000 : 0));
            rig.setU16(rig.driver.addresses.device + 2, 2);
            const what = `size ${size}: ${batch} lists of ${descriptors} from ${start}, event ${ahead} ahead`;
            assertEquals(send(rig, batch, descriptors), ahead < batch * descriptors, what);
          }
        }
      }
    }
  }
});

Deno.test("PackedDriverQueue asks for interrupts by position with EVENT_IDX, by flag without it, and keeps reserved bits 0 (VIRTIO 1.4 §2.8.10, §2.8.14)", () => {
  for (const eventIdx of [false, true]) {
    const size = 3;
    const rig = new QueueRig("packed", { size, eventIdx });
    const { driver } = rig.driver.addresses;
    for (let i = 0; i < 4 * size; i++) {
      rig.driver.disableInterrupts();
      assertEquals(rig.u16(driver + 2), 1);
      rig.driver.enableInterrupts();
      assertEquals(rig.u16(driver + 2), eventIdx ? 2 : 0);
      const position = i % size | (Math.floor(i / size) % 2 === 0 ? 0x8000 : 0);
      if (eventIdx) assertEquals(rig.u16(driver), position);
      send(rig, 1);
    }
  }
});
