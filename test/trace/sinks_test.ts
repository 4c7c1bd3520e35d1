import { assertEquals } from "@std/assert";
import { descriptorLines, flagNames } from "../../src/trace/descriptors.ts";
import type { TraceDescriptor, TraceEvent } from "../../src/trace/events.ts";
import { explainLines, explainSink, type ViolationEvent } from "../../src/trace/explain.ts";
import { jsonSink } from "../../src/trace/json_sink.ts";
import { eventLines, textSink } from "../../src/trace/text_sink.ts";

const DESCRIPTORS: TraceDescriptor[] = [
  { index: 3, indirect: false, address: 0x1000, length: 48, flags: 4 },
  { index: 0, indirect: true, address: 0x8000_0000, length: 16, flags: 1 },
  { index: 1, indirect: true, address: Infinity, length: 1, flags: 2 },
];

const VIOLATION: ViolationEvent = {
  event: "violation",
  queue: 0,
  head: 3,
  consequence: "request failed",
  violation: { rule: "data-length", section: "5.2.6.1", expected: "whole sectors", found: "3 bytes" },
  descriptors: DESCRIPTORS,
};

/** One event of each kind, and how it is printed. */
const EVENTS: [event: TraceEvent, lines: string[]][] = [
  [
    { event: "device-status", written: 3, status: 3, names: "ACKNOWLEDGE DRIVER" },
    ["driver sets the device status; it is now ACKNOWLEDGE DRIVER"],
  ],
  [{ event: "features", accepted: ["FLUSH", "VERSION_1"] }, ["driver accepts FLUSH VERSION_1"]],
  [
    { event: "queue", queue: 1, layout: "packed", size: 8, descAddress: 4096, driverAddress: 8192, deviceAddress: 255 },
    ["queue 1 is ready: packed, 8 descriptors (descriptors 0x1000, driver area 0x2000, device area 0xff)"],
  ],
  [
    { event: "kick", queue: 0, buffers: 1, sent: true },
    ["driver ==kick==> device   queue 0: 1 buffer available"],
  ],
  [
    { event: "kick", queue: 0, buffers: 2, sent: false },
    ["driver ..kick... device   queue 0: 2 buffers available, notification suppressed"],
  ],
  [
    { event: "chain", queue: 0, head: 3, readableBytes: 16, writableBytes: 1, descriptors: DESCRIPTORS },
    [
      "  pop     head 3: 16 bytes for the device to read, 1 to write",
      "            desc[3]   0x1000        48 bytes  an indirect table  INDIRECT",
      "            table[0]  0x80000000    16 bytes  device-readable    NEXT",
      "            table[1]  2^53 or more   1 bytes  device-writable    WRITE",
    ],
  ],
  [
    { event: "request", queue: 0, head: 3, kind: "read", type: 0, offset: 1024, lengthBytes: 512 },
    ["    request  read (type 0), sector 2, 512 bytes of data"],
  ],
  [
    { event: "request", queue: 0, head: 3, kind: "read", type: 0, offset: Infinity, lengthBytes: 512 },
    ["    request  read (type 0), sector 2^44 or more, 512 bytes of data"],
  ],
  [
    {
      event: "extents",
      queue: 0,
      head: 3,
      extents: [
        { guestOffset: 0, lengthBytes: 512, kind: "data", hostOffset: 4096 },
        { guestOffset: 512, lengthBytes: 512, kind: "zero" },
      ],
    },
    [
      "      image    512 bytes at offset 0: stored at offset 4096",
      "      image    512 bytes at offset 512: zeros, stored nowhere",
    ],
  ],
  [
    { event: "status", queue: 0, head: 3, status: 0, name: "OK", microseconds: 12 },
    ["    status   OK after 12 us"],
  ],
  [{ event: "used", queue: 0, head: 3, bytesWritten: 513 }, ["  push    head 3: 513 bytes written"]],
  [
    { event: "call", queue: 0, buffers: 1, sent: true },
    ["driver <==call== device   queue 0: 1 buffer used"],
  ],
  [
    { event: "call", queue: 0, buffers: 3, sent: false },
    ["driver ...call.. device   queue 0: 3 buffers used, notification suppressed"],
  ],
  [
    { event: "interrupt", usedBuffer: true, configChange: true },
    ["driver handles the interrupt: used buffers, configuration changed"],
  ],
  [VIOLATION, explainLines(VIOLATION).map((line) => `  ! ${line}`)],
  [{ event: "host-error", queue: 0, head: 3, message: "disk full" }, ["      ! host: disk full"]],
];

Deno.test("every kind of event has its printed form", () => {
  for (const [event, lines] of EVENTS) assertEquals(eventLines(event), lines, event.event);
});

Deno.test("textSink() puts the time before the first line of an event, and blanks before the others", () => {
  const written: string[] = [];
  const sink = textSink((lines) => written.push(...lines), () => 1.23456);
  sink({
    event: "chain",
    queue: 0,
    head: 3,
    readableBytes: 16,
    writableBytes: 1,
    descriptors: DESCRIPTORS.slice(0, 1),
  });
  assertEquals(written, [
    "     1.235 ms    pop     head 3: 16 bytes for the device to read, 1 to write",
    "                           desc[3]  0x1000  48 bytes  an indirect table  INDIRECT",
  ]);
});

Deno.test("jsonSink() writes one object a line: time, sequence, and the fields of the event", () => {
  const written: string[] = [];
  let time = 0;
  const sink = jsonSink((lines) => written.push(...lines), () => time += 0.5004);
  for (const [event] of EVENTS) sink(event);
  assertEquals(written.length, EVENTS.length);
  EVENTS.forEach(([event], i) => {
    const { time, sequence, ...rest } = JSON.parse(written[i]);
    assertEquals(sequence, i);
    assertEquals(time, Number(((i + 1) * 0.5004).toFixed(3)));
    assertEquals(rest, JSON.parse(JSON.stringify(event)));
  });
});

Deno.test("an address that JSON can't carry is null in the trace", () => {
  const written: string[] = [];
  const sink = jsonSink((lines) => written.push(...lines));
  sink({ event: "chain", queue: 0, head: 0, readableBytes: 0, writableBytes: 1, descriptors: DESCRIPTORS });
  assertEquals(JSON.parse(written[0]).descriptors[2].address, null);
});

Deno.test("an explanation names rule and section, the place, what was expected and found, and shows the chain", () => {
  assertEquals(explainLines(VIOLATION), [
    "the driver broke a rule: data-length (VIRTIO 1.4 §5.2.6.1)",
    "  where        queue 0, head 3",
    "  expected     whole sectors",
    "  found        3 bytes",
    "  consequence  the request failed; the device goes on",
    "  chain        desc[3]   0x1000        48 bytes  an indirect table  INDIRECT",
    "               table[0]  0x80000000    16 bytes  device-readable    NEXT",
    "               table[1]  2^53 or more   1 bytes  device-writable    WRITE",
  ]);
  const { violation } = VIOLATION;
  assertEquals(
    explainLines({ event: "violation", consequence: "ignored", violation })[3],
    "  consequence  the device ignored it",
  );
});

Deno.test("explainSink() explains broken rules and is silent about everything else", () => {
  const written: string[] = [];
  const sink = explainSink((lines) => written.push(...lines));
  for (const [event] of EVENTS) sink(event);
  assertEquals(written, explainLines(VIOLATION));
});

Deno.test("descriptorLines() shows a loop once round, and a long chain in part", () => {
  const loop = [0, 1, 2, 1, 2].map((index) => ({ index, indirect: false, address: 0, length: 0, flags: 1 }));
  assertEquals(descriptorLines(loop).map((line) => line.slice(0, 13).trimEnd()), [
    "desc[0]  0x0",
    "desc[1]  0x0",
    "desc[2]  0x0",
    "desc[1] again",
  ]);
  const long = Array.from({ length: 20 }, (_, index) => ({ index, indirect: true, address: 0, length: 0, flags: 1 }));
  assertEquals(descriptorLines(long).length, 17);
  assertEquals(descriptorLines(long).at(-1), "... and 4 more");
  assertEquals(descriptorLines([]), []);
});

Deno.test("flagNames() names every flag, and keeps what has no name as a number", () => {
  assertEquals(flagNames(0), "0");
  assertEquals(flagNames(3), "NEXT|WRITE");
  assertEquals(flagNames(0x8084), "INDIRECT|AVAIL|USED");
  assertEquals(flagNames(0x18), "0x18");
});
