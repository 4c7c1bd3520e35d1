/** The device status state machine (VIRTIO 1.4 §2.1, §3.1), notifications from the device, and reset (§2.4). */

import { assertEquals } from "@std/assert";
import { MMIO } from "../../src/transport/mmio/mmio_layout.ts";
import {
  ACKNOWLEDGE,
  Bench,
  CONFIG_CHANGE,
  DRIVER,
  DRIVER_OK,
  FAILED,
  LIVE,
  NEEDS_RESET,
  READ_WRITE,
  READY,
  settle,
  SUSPEND,
  VRING,
  WRITE_ONLY,
} from "./bench.ts";

Deno.test("initialization in order: each step shows in the status, and the device learns of each (VIRTIO 1.4 §3.1.1)", () => {
  const bench = new Bench();
  assertEquals(bench.status, 0);
  bench.live();
  assertEquals(bench.statuses, [
    [ACKNOWLEDGE, ACKNOWLEDGE],
    [ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER],
    [READY, READY],
    [LIVE, LIVE],
  ]);
  const again = new Bench().negotiate().setUpQueue(0, 4);
  assertEquals(again.device.take(), ["negotiated 10100000003"], "no queue is started before DRIVER_OK");
  again.status = LIVE;
  assertEquals(again.device.take(), ["start 0 size 4"]);
  assertEquals([bench.rules(), again.rules(), again.transport.negotiatedFeatures], [[], [], again.device.features]);
});

Deno.test("any valid subset of the offered features is accepted (VIRTIO 1.4 §2.2.2)", () => {
  for (const optional of [0n, 1n, 2n, 3n, 1n << 40n, 1n << 40n | 3n]) {
    const bench = new Bench().negotiate(1n << 32n | optional);
    assertEquals([bench.status, bench.rules()], [READY, []]);
    assertEquals(bench.transport.negotiatedFeatures, 1n << 32n | optional);
    assertEquals(bench.device.take(), [`negotiated ${(1n << 32n | optional).toString(16)}`]);
  }
});

Deno.test("FEATURES_OK stays clear when the driver accepts a feature that was not offered, whichever bit (VIRTIO 1.4 §2.2.2)", () => {
  for (let bit = 0; bit < 64; bit++) {
    const bench = new Bench();
    if (bench.device.features >> BigInt(bit) & 1n) continue;
    bench.negotiate(bench.device.features | 1n << BigInt(bit));
    assertEquals([bit, bench.status, bench.rules()], [bit, ACKNOWLEDGE | DRIVER, ["feature-not-offered"]]);
    assertEquals(bench.device.take(), []);
    assertEquals(bench.transport.negotiatedFeatures, 0n);
    // The driver may think again.
    bench.accept(bench.device.features);
    bench.status = READY;
    assertEquals(bench.status, READY);
  }
});

Deno.test("FEATURES_OK stays clear when the driver accepts bits from 64 on, at any selector (VIRTIO 1.4 §2.2.2)", () => {
  for (const select of [2, 3, 4, 5, 31, 0x7fffffff, 0xffffffff]) {
    const bench = new Bench();
    bench.status = ACKNOWLEDGE | DRIVER;
    bench.accept(bench.device.features);
    bench.write("DriverFeaturesSel", select);
    bench.write("DriverFeatures", 1);
    bench.status = READY;
    assertEquals([select, bench.status, bench.rules()], [select, ACKNOWLEDGE | DRIVER, ["feature-not-offered"]]);
    // Zeros there refuse nothing.
    const zeros = new Bench();
    zeros.accept(zeros.device.features);
    zeros.write("DriverFeaturesSel", select);
    zeros.write("DriverFeatures", 0);
    zeros.status = READY;
    assertEquals(zeros.status, READY);
  }
});

Deno.test("FEATURES_OK stays clear when the driver declines VERSION_1 (VIRTIO 1.4 §6.2)", () => {
  const bench = new Bench().negotiate(3n);
  assertEquals(bench.status, ACKNOWLEDGE | DRIVER);
  assertEquals(bench.violations, [{
    rule: "version-1-declined",
    section: "6.1",
    expected: "a driver accepts VIRTIO_F_VERSION_1; vblk has no legacy interface",
    found: "the driver did not accept VERSION_1",
  }]);
});

Deno.test("the refusal names the features that were not offered", () => {
  const bench = new Bench((device) => device.features &= ~1n).negotiate(1n << 32n | 1n | 1n << 34n | 1n << 47n);
  assertEquals(bench.violations[0].found, "the driver accepted ZERO, RING_PACKED, BIT_47");
});

Deno.test("features are frozen by FEATURES_OK: what is accepted later is ignored (VIRTIO 1.4 §3.1.1)", () => {
  const bench = new Bench().negotiate(1n << 32n);
  bench.accept(bench.device.features);
  assertEquals(bench.rules(), ["features-late", "features-late"]);
  assertEquals(bench.transport.negotiatedFeatures, 1n << 32n);
});

Deno.test("the same features are accepted again after each reset (VIRTIO 1.4 §2.2.2)", () => {
  const bench = new Bench();
  for (let i = 0; i < 3; i++) {
    bench.live();
    assertEquals([bench.status, bench.rules()], [LIVE, []]);
    bench.status = 0;
    assertEquals([bench.status, bench.transport.negotiatedFeatures], [0, 0n]);
  }
});

Deno.test("DRIVER_OK without FEATURES_OK: the device needs a reset, and interrupts nobody (VIRTIO 1.4 §3.1.1, §2.1.2)", () => {
  for (const before of [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER]) {
    const bench = new Bench();
    if (before !== 0) bench.status = before;
    bench.status = before | DRIVER_OK;
    assertEquals([bench.status, bench.rules()], [before | NEEDS_RESET, ["status-order"]]);
    assertEquals([bench.interrupts, bench.read("InterruptStatus"), bench.device.take()], [0, 0, []]);
    bench.status = 0;
    bench.live();
    assertEquals(bench.status, LIVE);
  }
});

Deno.test("FEATURES_OK and DRIVER_OK written at once are taken in order", () => {
  const bench = new Bench();
  bench.accept(bench.device.features);
  bench.status = LIVE;
  assertEquals([bench.status, bench.rules()], [LIVE, []]);
  const refused = new Bench();
  refused.status = LIVE;
  assertEquals([refused.status, refused.rules()], [ACKNOWLEDGE | DRIVER | NEEDS_RESET, [
    "version-1-declined",
    "status-order",
  ]]);
});

Deno.test("no status bit is cleared but by writing 0 (VIRTIO 1.4 §2.1.1)", () => {
  for (let value = 1; value < 256; value++) {
    const bench = new Bench().live();
    bench.status = value;
    assertEquals(bench.status & LIVE, LIVE);
    const cleared = (LIVE & ~value) !== 0;
    assertEquals([value, bench.rules().includes("status-cleared")], [value, cleared]);
    // Of the other bits only FAILED is the driver's to set.
    assertEquals(bench.status & (SUSPEND | NEEDS_RESET | FAILED), value & FAILED);
  }
});

Deno.test("SUSPEND is ignored at every point, as VIRTIO_F_SUSPEND is not offered (VIRTIO 1.4 §3.4.2)", () => {
  for (const prepare of [(b: Bench) => b, (b: Bench) => b.negotiate(), (b: Bench) => b.live()]) {
    const bench = prepare(new Bench());
    const before = bench.status;
    bench.device.take();
    bench.status = before | SUSPEND;
    assertEquals([bench.status, bench.rules(), bench.device.take()], [before, ["suspend"], []]);
  }
  assertEquals(new Bench().device.features >> 43n & 1n, 0n);
});

Deno.test("DEVICE_NEEDS_RESET is the device's: a driver can neither set nor clear it (VIRTIO 1.4 §2.1)", () => {
  const bench = new Bench().live();
  bench.status = LIVE | NEEDS_RESET;
  assertEquals([bench.status, bench.rules()], [LIVE, []]);
  bench.device.events.needsReset({ rule: "r", section: "s", expected: "e", found: "f" });
  assertEquals(bench.status, LIVE | NEEDS_RESET);
  bench.status = LIVE;
  assertEquals([bench.status, bench.rules()], [LIVE | NEEDS_RESET, []]);
  bench.status = 0;
  assertEquals(bench.status, 0);
});

Deno.test("a device that needs a reset says so by a configuration change notification once DRIVER_OK is set, and not before (VIRTIO 1.4 §2.1.2)", () => {
  const violation = { rule: "r", section: "s", expected: "e", found: "f" };
  const early = new Bench().negotiate();
  early.device.events.needsReset(violation);
  assertEquals([early.status, early.interrupts, early.read("InterruptStatus")], [READY | NEEDS_RESET, 0, 0]);
  const late = new Bench().live();
  late.device.events.needsReset(violation);
  assertEquals([late.status, late.interrupts, late.read("InterruptStatus")], [LIVE | NEEDS_RESET, 1, CONFIG_CHANGE]);
});

Deno.test("nothing is notified before DRIVER_OK or after a reset, whatever the device says (VIRTIO 1.4 §2.1.2, §2.4.1)", () => {
  const bench = new Bench();
  const speak = () => {
    bench.device.events.usedBuffer(0);
    bench.device.events.configChanged();
  };
  speak();
  bench.status = ACKNOWLEDGE;
  speak();
  bench.negotiate().setUpQueue(0, 16);
  speak();
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [0, 0]);
  bench.status = LIVE;
  speak();
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, VRING | CONFIG_CHANGE]);
  bench.status = 0;
  assertEquals(bench.read("InterruptStatus"), 0, "§4.2.2.1: a reset clears it");
  speak();
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, 0]);
});

Deno.test("InterruptStatus holds each event until the driver acknowledges it; the line is level-triggered (VIRTIO 1.4 §4.2.2.1)", () => {
  const bench = new Bench().live();
  const { events } = bench.device;
  events.usedBuffer(0);
  events.usedBuffer(1);
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, VRING]);
  // One reason more while the line is up is no new interrupt.
  events.configChanged();
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, VRING | CONFIG_CHANGE]);
  bench.write("InterruptACK", VRING);
  assertEquals(bench.read("InterruptStatus"), CONFIG_CHANGE);
  events.usedBuffer(0);
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [1, VRING | CONFIG_CHANGE]);
  // Bits that mean nothing acknowledge nothing; bits that are clear may be acknowledged.
  bench.write("InterruptACK", 0xfffffffc);
  assertEquals(bench.read("InterruptStatus"), VRING | CONFIG_CHANGE);
  bench.write("InterruptACK", 0xffffffff);
  assertEquals(bench.read("InterruptStatus"), 0);
  bench.write("InterruptACK", 3);
  events.configChanged();
  assertEquals([bench.interrupts, bench.read("InterruptStatus")], [2, CONFIG_CHANGE]);
  assertEquals(bench.transport.counters.interrupts, 2);
});

Deno.test("reading InterruptStatus acknowledges nothing", () => {
  const bench = new Bench().live();
  bench.device.events.usedBuffer(0);
  for (let i = 0; i < 3; i++) assertEquals(bench.read("InterruptStatus"), VRING);
});

Deno.test("a reset waits for the device to be at rest; until then the status stays and no register takes a write (VIRTIO 1.4 §2.4.1)", async () => {
  const bench = new Bench().live();
  let rest = () => {};
  bench.device.atRest = new Promise((resolve) => rest = resolve);
  bench.status = 0;
  assertEquals([bench.status, bench.device.take()], [LIVE, ["reset"]]);
  for (const register of [...WRITE_ONLY, ...READ_WRITE]) {
    bench.write(register, 1);
    assertEquals([register, bench.rules()], [register, ["in-reset"]]);
  }
  bench.transport.write(MMIO.Config, 1, 0);
  bench.status = 0;
  assertEquals([bench.rules(), bench.device.take()], [["in-reset", "in-reset"], []]);
  bench.device.events.usedBuffer(0);
  bench.device.events.configChanged();
  await settle();
  assertEquals([bench.status, bench.interrupts], [LIVE, 0]);
  rest();
  await settle();
  assertEquals([bench.status, bench.read("InterruptStatus")], [0, 0]);
  bench.device.atRest = undefined;
  assertEquals(bench.live().status, LIVE);
});

Deno.test("a reset brings every register back: status, features, selectors, queues, interrupts (VIRTIO 1.4 §2.4.1, §4.2.2.1)", () => {
  const bench = new Bench().live();
  bench.device.events.usedBuffer(0);
  bench.write("DeviceFeaturesSel", 1);
  bench.write("QueueSel", 1);
  bench.status = 0;
  assertEquals(bench.status, 0);
  assertEquals(bench.read("InterruptStatus"), 0);
  assertEquals([bench.read("DeviceFeatures"), bench.read("QueueSizeMax")], [3, 16], "the selectors are 0 again");
  for (const queue of [0, 1]) {
    bench.write("QueueSel", queue);
    assertEquals([bench.read("QueueReady"), bench.read("QueueReset")], [0, 0]);
  }
  bench.device.take();
  // Nothing was accepted any more, and no queue is left to be started.
  bench.status = READY;
  assertEquals([bench.status, bench.rules()], [ACKNOWLEDGE | DRIVER, ["version-1-declined"]]);
  bench.accept(bench.device.features);
  bench.status = LIVE;
  assertEquals(bench.device.take(), ["negotiated 10100000003"]);
});
