/** What a trace says of a request: every stage, in order, with the right contents. */

import { assertEquals } from "@std/assert";
import type { TraceEvent } from "../../src/trace/events.ts";
import { concat, Gate, header, LAYOUTS, linked, rig, SECTOR, send, turn } from "./rig.ts";

/** `events` without what depends on the clock. */
function timeless(events: readonly TraceEvent[]): unknown[] {
  return events.map((event) => "microseconds" in event ? { ...event, microseconds: 0 } : event);
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: the trace of one read has each stage in order`, async () => {
    const made = await rig({ layout, driver: { useIndirect: false } });
    const { guest } = made.machine;
    made.events.length = 0;
    await guest.read(1024, 2 * SECTOR);
    const chain = made.events.find(({ event }) => event === "chain");
    if (chain?.event !== "chain") throw new Error("no chain");
    const { descriptors, head } = chain;
    const ring = layout === "packed" ? 0x80 : 0;
    const expectedHead = layout === "packed" ? head : 0;
    assertEquals(descriptors.map(({ index, indirect, length, flags }) => ({ index, indirect, length, flags })), [
      { index: 0, indirect: false, length: 16, flags: NEXT_FLAG | ring },
      { index: 1, indirect: false, length: 1024, flags: NEXT_FLAG | WRITE_FLAG | ring },
      { index: 2, indirect: false, length: 1, flags: WRITE_FLAG | ring },
    ]);
    assertEquals(descriptors[2].address, descriptors[0].address + 16);
    const queue = 0;
    assertEquals(
      timeless(made.events),
      [
        { event: "kick", queue, buffers: 1, sent: true },
        { event: "chain", queue, head: expectedHead, readableBytes: 16, writableBytes: 1025, descriptors },
        { event: "request", queue, head, kind: "read", type: 0, offset: 1024, lengthBytes: 1024 },
        {
          event: "extents",
          queue,
          head,
          extents: [{ guestOffset: 1024, lengthBytes: 1024, kind: "data", hostOffset: 1024 }],
        },
        { event: "status", queue, head, status: 0, name: "OK", microseconds: 0 },
        { event: "used", queue, head, bytesWritten: 1025 },
        { event: "interrupt", usedBuffer: true, configChange: false },
      ].toSpliced(6, 0, { event: "call", queue, buffers: 1, sent: true }),
    );
    await made.machine.close();
  });
}

const [NEXT_FLAG, WRITE_FLAG] = [1, 2];

Deno.test("the trace of booting has the status steps, the features and the queue", async () => {
  const made = await rig({ device: { queueSize: 64 } });
  const events = made.events.filter(({ event }) => event !== "device-status");
  assertEquals(
    made.events.flatMap((event) => event.event === "device-status" ? [[event.written, event.status, event.names]] : []),
    [
      [1, 1, "ACKNOWLEDGE"],
      [3, 3, "ACKNOWLEDGE DRIVER"],
      [11, 11, "ACKNOWLEDGE DRIVER FEATURES_OK"],
      [15, 15, "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK"],
    ],
  );
  const { desc, driver, device } = made.machine.guest.driver.queues[0].addresses;
  assertEquals(events, [
    {
      event: "features",
      accepted: [
        ...["SEG_MAX", "BLK_SIZE", "FLUSH", "TOPOLOGY", "CONFIG_WCE", "DISCARD", "WRITE_ZEROES"],
        ...["INDIRECT_DESC", "EVENT_IDX", "VERSION_1", "RING_RESET"],
      ],
    },
    {
      event: "queue",
      queue: 0,
      layout: "split",
      size: 64,
      descAddress: desc,
      driverAddress: driver,
      deviceAddress: device,
    },
  ]);
  await made.machine.close();
});

Deno.test("the trace tells a batch from its notification, and a notification sent from one not wanted", async () => {
  const made = await rig();
  const { guest } = made.machine;
  made.events.length = 0;
  await Promise.all([guest.read(0, SECTOR), guest.write(SECTOR, new Uint8Array(SECTOR)), guest.flush()]);
  const calls = made.events.filter(({ event }) => event === "call" || event === "kick");
  assertEquals(calls, [
    { event: "kick", queue: 0, buffers: 3, sent: true },
    { event: "call", queue: 0, buffers: 3, sent: true },
  ]);
  // More requests while the device still works on some: it did not ask to be told, and the driver not either.
  const gate = new Gate();
  made.storage.hook = gate.hook;
  const first = guest.read(0, SECTOR);
  await turn();
  made.events.length = 0;
  guest.driver.queues[0].disableInterrupts();
  gate.open();
  await turn();
  const second = made.events.filter(({ event }) => event === "call");
  assertEquals(second.length, 1);
  made.storage.hook = () => {};
  guest.driver.poll();
  await first;
  await made.machine.close();
});

Deno.test("the trace of a broken request explains it before its status: rule, section, what was found, the chain", async () => {
  const made = await rig();
  made.events.length = 0;
  await send(made, concat(header(1, 1000), new Uint8Array(SECTOR)), 1);
  const stages = made.events.map(({ event }) => event);
  assertEquals(stages, ["kick", "chain", "request", "violation", "status", "used", "call", "interrupt"]);
  const violation = made.events[3];
  if (violation.event !== "violation") throw new Error("no violation");
  assertEquals(violation.consequence, "request failed");
  assertEquals(violation.violation, {
    rule: "beyond-capacity",
    section: "5.2.6.1",
    expected: "a request stays below the capacity",
    found: "1 sectors from sector 1000, the capacity is 128",
  });
  assertEquals(violation.descriptors?.map(({ length }) => length), [528, 1]);
  await made.machine.close();
});

Deno.test("the trace of a request beyond every disk has no extents", async () => {
  const made = await rig();
  made.events.length = 0;
  await send(made, header(0, 0xffff_ffff_ffff_ffffn), 513);
  const stages = made.events.map(({ event }) => event);
  assertEquals(stages, ["kick", "chain", "request", "violation", "status", "used", "call", "interrupt"]);
  await made.machine.close();
});

Deno.test("the trace of a broken ring shows the chain that broke it, and what it comes to", async () => {
  const made = await rig();
  const { guest } = made.machine;
  const area = guest.allocate(64);
  made.events.length = 0;
  await guest.chain(linked([{ address: area, length: 16, writable: false }]));
  const violation = made.events.find(({ event }) => event === "violation");
  if (violation?.event !== "violation") throw new Error("no violation");
  assertEquals([violation.consequence, violation.queue], ["device needs reset", 0]);
  assertEquals(violation.descriptors, [{ index: 0, indirect: false, address: area, length: 16, flags: 0 }]);
  const interrupt = made.events.at(-1);
  assertEquals(interrupt, { event: "interrupt", usedBuffer: false, configChange: true });
  await made.machine.close();
});

Deno.test("the trace has the extents of a read or write up to the last byte of the disk", async () => {
  const made = await rig();
  const last = made.memory.sizeBytes - SECTOR;
  const extents = [{ guestOffset: last, lengthBytes: SECTOR, kind: "data" as const, hostOffset: last }];
  for (const act of ["read", "write"] as const) {
    made.events.length = 0;
    if (act === "read") await made.machine.guest.read(last, SECTOR);
    else await made.machine.guest.write(last, new Uint8Array(SECTOR));
    const event = made.events.find(({ event }) => event === "extents");
    assertEquals(event?.event === "extents" && event.extents, extents);
  }
  await made.machine.close();
});

Deno.test("the trace of a request for sector 2^44 or more gives an offset that no number holds", async () => {
  const made = await rig();
  await send(made, header(0, 2n ** 44n), 513);
  const offsets = made.events.flatMap((event) => event.event === "request" ? [event.offset] : []);
  assertEquals(offsets, [Infinity]);
  await made.machine.close();
});
