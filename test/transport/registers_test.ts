/** The registers of virtio-mmio one by one: directions, widths, values (VIRTIO 1.4 §4.2.2). */

import { assertEquals } from "@std/assert";
import { MMIO } from "../../src/transport/mmio/mmio_layout.ts";
import { ACKNOWLEDGE, Bench, DRIVER, LIVE, READ_ONLY, READ_WRITE, READY, WRITE_ONLY } from "./bench.ts";

Deno.test("the identity registers: magic, version 2, the device's ID, a vendor (VIRTIO 1.4 §4.2.2.1)", () => {
  const bench = new Bench();
  assertEquals(bench.read("MagicValue"), 0x74726976);
  assertEquals(bench.read("Version"), 2);
  assertEquals(bench.read("DeviceID"), 42);
  assertEquals(bench.read("VendorID"), 0x6b6c6276);
  // All of it before and after a reset, and at any status.
  bench.live();
  assertEquals([bench.read("MagicValue"), bench.read("Version"), bench.read("DeviceID")], [0x74726976, 2, 42]);
});

Deno.test("the table of registers is the standard's: each register has its direction and offset (VIRTIO 1.4 §4.2.2)", () => {
  const all = [...READ_ONLY, ...WRITE_ONLY, ...READ_WRITE, "Config"];
  assertEquals(all.toSorted(), Object.keys(MMIO).toSorted());
});

Deno.test("a write-only register reads as 0, a read-only one takes no writes, and both are told (VIRTIO 1.4 §4.2.2.2)", () => {
  for (const status of [0, READY, LIVE]) {
    const bench = new Bench();
    if (status === READY) bench.negotiate();
    if (status === LIVE) bench.live();
    for (const register of WRITE_ONLY) {
      assertEquals([register, bench.read(register), bench.rules()], [register, 0, ["register-write-only"]]);
    }
    for (const register of READ_ONLY) {
      const before = bench.read(register);
      for (const value of [0, 1, 0xffffffff]) bench.write(register, value);
      assertEquals(bench.read(register), before);
      assertEquals([register, bench.rules()], [register, Array(3).fill("register-read-only")]);
    }
    assertEquals(bench.status, status);
  }
});

Deno.test("every offset below the configuration that is no register reads as 0 and takes no writes", () => {
  const bench = new Bench().live();
  const known = new Set<number>(Object.values(MMIO));
  let count = 0;
  for (let offset = 0; offset < 0x100; offset += 4) {
    if (known.has(offset)) continue;
    count++;
    bench.transport.write(offset, 4, 0xffffffff);
    assertEquals(bench.transport.read(offset, 4), 0);
    assertEquals(bench.rules(), ["register-unknown", "register-unknown"]);
  }
  assertEquals(count, 64 - known.size + 1);
  assertEquals([bench.status, bench.device.take()], [LIVE, []]);
});

Deno.test("a control register is accessed with 32 bits, aligned, or not at all (VIRTIO 1.4 §4.2.2.2)", () => {
  const bench = new Bench().live();
  for (let offset = 0; offset < 0x100; offset++) {
    for (const width of [1, 2, 4] as const) {
      if (width === 4 && offset % 4 === 0) continue;
      assertEquals(bench.transport.read(offset, width), 0);
      bench.transport.write(offset, width, 0xffffffff);
      assertEquals([offset, width, bench.rules()], [offset, width, ["register-width", "register-width"]]);
    }
  }
  assertEquals([bench.status, bench.device.take(), bench.read("QueueReady")], [LIVE, [], 1]);
});

Deno.test("no register access, of any offset, width and value, throws or hangs", () => {
  const values = [0, 1, 2, 3, 0x7f, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, -1];
  for (
    const prepare of [(bench: Bench) => bench, (bench: Bench) => bench.negotiate(), (bench: Bench) => bench.live()]
  ) {
    for (let offset = 0; offset < 0x120; offset++) {
      for (const width of [1, 2, 4] as const) {
        const bench = prepare(new Bench());
        for (const value of values) {
          bench.transport.write(offset, width, value);
          const read = bench.transport.read(offset, width);
          if (!(read >= 0 && read <= 0xffffffff)) throw new Error(`0x${offset.toString(16)} reads as ${read}`);
        }
      }
    }
  }
});

Deno.test("DeviceFeatures shows 32 bits at DeviceFeaturesSel * 32, and zeros from 64 on (VIRTIO 1.4 §4.2.2)", () => {
  const bench = new Bench();
  const words: [number, number][] = [[0, 3], [1, 1 | 1 << 8], [2, 0], [3, 0], [4, 0], [0x7fffffff, 0], [0xffffffff, 0]];
  for (const [select, expected] of [...words, ...words]) {
    bench.write("DeviceFeaturesSel", select);
    assertEquals([select, bench.read("DeviceFeatures")], [select, expected]);
  }
});

Deno.test("the transport takes away features that it has no means for (VIRTIO 1.4 §2.2.2, §2.9)", () => {
  const bench = new Bench((device) => device.features |= 1n << 39n);
  bench.write("DeviceFeaturesSel", 1);
  assertEquals(bench.read("DeviceFeatures"), 1 | 1 << 8);
  bench.negotiate();
  assertEquals([bench.status, bench.rules()], [ACKNOWLEDGE | DRIVER, ["feature-not-offered"]]);
});

Deno.test("there is no shared memory: its length is -1 and its base all ones, whichever is selected (VIRTIO 1.4 §4.2.2)", () => {
  const bench = new Bench();
  for (const id of [0, 1, 255, 0xffffffff]) {
    bench.write("SHMSel", id);
    for (const register of ["SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh"] as const) {
      assertEquals(bench.read(register), 0xffffffff);
    }
  }
});

Deno.test("the configuration is read at any width, and written once FEATURES_OK is set (VIRTIO 1.4 §3.1.1)", () => {
  const bench = new Bench();
  assertEquals(bench.read("ConfigGeneration"), 7);
  const at = MMIO.Config;
  assertEquals([1, 2, 4].map((width) => bench.transport.read(at + 1, width as 1 | 2 | 4)), [2, 0x0302, 0x05040302]);
  assertEquals(bench.transport.read(at + 6, 4), 0x0807);
  bench.transport.write(at, 4, 0x11223344);
  assertEquals([bench.device.take(), bench.rules()], [[], ["config-early"]]);
  bench.negotiate();
  bench.device.take();
  bench.transport.write(at + 2, 4, 0x11223344);
  bench.transport.write(at + 1, 2, 0x1_5566);
  bench.transport.write(at, 1, -1);
  assertEquals(bench.device.take(), ["config 2 68,51,34,17", "config 1 102,85", "config 0 255"]);
});

Deno.test("every access counts, kicks and interrupts too: each would be an exit", () => {
  const bench = new Bench();
  const { counters } = bench.transport;
  assertEquals(counters, { reads: 0, writes: 0, notifications: 0, interrupts: 0 });
  bench.read("Version");
  bench.transport.read(MMIO.Config, 1);
  bench.transport.read(3, 1);
  bench.write("QueueSel", 0);
  bench.transport.write(MMIO.Config, 1, 0);
  bench.write("Version", 0);
  bench.write("QueueNotify", 99);
  assertEquals(counters, { reads: 3, writes: 4, notifications: 1, interrupts: 0 });
  bench.live();
  const { reads } = counters;
  bench.device.events.usedBuffer(0);
  bench.device.events.usedBuffer(0);
  assertEquals([counters.reads, counters.interrupts], [reads, 1]);
});
