/** The driver's procedures at the registers (VIRTIO 1.4 §3.1.1, §4.2), against a device that records every access. */

import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { MmioProbe, ProbeError } from "../../src/guest/mmio_probe.ts";
import { MMIO, type MmioRegister } from "../../src/transport/mmio/mmio_layout.ts";
import { driverProblems, FakeWindow } from "./fake_window.ts";

const ADDRESSES = { desc: 0x12_3456_7000, driver: 0x8000_0000, device: 0xffff_f000 };

function probe(): { window: FakeWindow; probe: MmioProbe } {
  const window = new FakeWindow();
  return { window, probe: new MmioProbe(window) };
}

Deno.test("identify() reads MagicValue and Version first, then DeviceID, and nothing else (VIRTIO 1.4 §4.2.3.1.1)", () => {
  const { window, probe: mmio } = probe();
  assertEquals(mmio.identify(), 2);
  assertEquals(window.take(), ["read MagicValue 0x74726976", "read Version 0x2", "read DeviceID 0x2"]);
});

Deno.test("identify() ignores a device whose MagicValue is not 0x74726976, and reads nothing more (VIRTIO 1.4 §4.2.2.2)", () => {
  for (const magic of [0, 0xffffffff, 0x76697274]) {
    const { window, probe: mmio } = probe();
    window.overrides.MagicValue = () => magic;
    const error = assertThrows(() => mmio.identify(), ProbeError);
    assertEquals(error.message, `no virtio-mmio device: magic 0x${magic.toString(16)}`);
    assertEquals(window.take(), [`read MagicValue 0x${magic.toString(16)}`]);
  }
});

Deno.test("identify() ignores a device whose Version is not 2, and reads nothing more (VIRTIO 1.4 §4.2.2.2)", () => {
  for (const version of [0, 1, 3]) {
    const { window, probe: mmio } = probe();
    window.overrides.Version = () => version;
    const error = assertThrows(() => mmio.identify(), ProbeError);
    assertEquals(error.message, `virtio-mmio version ${version}, not 2`);
    assertEquals(window.take().length, 2);
  }
});

Deno.test("identify() reports a placeholder, DeviceID 0, as no error, and accesses no other register (VIRTIO 1.4 §4.2.2.2)", () => {
  const { window, probe: mmio } = probe();
  window.overrides.DeviceID = () => 0;
  assertEquals(mmio.identify(), 0);
  assertEquals(window.take(), ["read MagicValue 0x74726976", "read Version 0x2", "read DeviceID 0x0"]);
});

Deno.test("reset() writes 0 and is complete when Status reads 0, not before (VIRTIO 1.4 §2.4.2)", async () => {
  const { window, probe: mmio } = probe();
  const left = [15, 15, 79, 0];
  window.overrides.Status = () => left.shift()!;
  await mmio.reset();
  assertEquals(window.take(), [
    "write Status 0x0",
    "read Status 0xf",
    "read Status 0xf",
    "read Status 0x4f",
    "read Status 0x0",
  ]);
});

Deno.test("addStatus() keeps the bits that are set (VIRTIO 1.4 §2.1.1)", () => {
  const { window, probe: mmio } = probe();
  for (const bit of [1, 2, 8, 4]) mmio.addStatus(bit);
  assertEquals(window.status, 15);
  assertEquals(driverProblems(window.accesses), []);
});

Deno.test("negotiate() follows the sequence: ACKNOWLEDGE, DRIVER, features, FEATURES_OK, and reads the status again (VIRTIO 1.4 §3.1.1)", () => {
  const { window, probe: mmio } = probe();
  window.features = 1n << 32n | 0x80000003n;
  const accepted = mmio.negotiate((offered) => {
    assertEquals(offered, window.features);
    return offered & ~2n;
  });
  assertEquals(accepted, 1n << 32n | 0x80000001n);
  assertEquals(window.accepted, accepted);
  assertEquals(window.take(), [
    "read Status 0x0",
    "write Status 0x1",
    "read Status 0x1",
    "write Status 0x3",
    "write DeviceFeaturesSel 0x0",
    "read DeviceFeatures 0x80000003",
    "write DeviceFeaturesSel 0x1",
    "read DeviceFeatures 0x1",
    "write DriverFeaturesSel 0x0",
    "write DriverFeatures 0x80000001",
    "write DriverFeaturesSel 0x1",
    "write DriverFeatures 0x1",
    "read Status 0x3",
    "write Status 0xb",
    "read Status 0xb",
  ]);
});

Deno.test("negotiate() sets FAILED and stops when FEATURES_OK does not stay set (VIRTIO 1.4 §3.1.1)", () => {
  const { window, probe: mmio } = probe();
  window.refusedStatus = 8;
  const error = assertThrows(() => mmio.negotiate((offered) => offered), ProbeError);
  assertEquals(error.message, "the device refused the features 32");
  assertEquals(window.status, 1 | 2 | 128);
  assertEquals(window.take().slice(-2), ["read Status 0x3", "write Status 0x83"]);
});

Deno.test("negotiate() gives a device up that does not offer VERSION_1: FAILED, and nothing accepted (VIRTIO 1.4 §6.1, §2.2.1)", () => {
  const { window, probe: mmio } = probe();
  window.features = 0x30000000n;
  const error = assertThrows(() => mmio.negotiate((offered) => offered), ProbeError);
  assertEquals(error.message, "the device is a legacy one: it does not offer VERSION_1");
  assertEquals([window.status, window.accepted], [1 | 2 | 128, 0n]);
  assertEquals(window.take().filter((access) => access.includes("DriverFeatures")), []);
});

Deno.test("queueSizeMax() selects the queue and checks that it is not in use before it reads its size (VIRTIO 1.4 §4.2.3.2)", () => {
  const { window, probe: mmio } = probe();
  window.queueSizes = [256, 64];
  assertEquals([mmio.queueSizeMax(1), mmio.queueSizeMax(2)], [64, 0]);
  assertEquals(window.take(), [
    "write QueueSel 0x1",
    "read QueueReady 0x0",
    "read QueueSizeMax 0x40",
    "write QueueSel 0x2",
    "read QueueReady 0x0",
    "read QueueSizeMax 0x0",
  ]);
  window.ready[1] = true;
  const error = assertThrows(() => mmio.queueSizeMax(1), ProbeError);
  assertEquals(error.message, "queue 1 is in use already");
});

Deno.test("setUpQueue() writes size and all six halves of the addresses, then QueueReady (VIRTIO 1.4 §4.2.3.2)", () => {
  const { window, probe: mmio } = probe();
  mmio.setUpQueue(3, 32, ADDRESSES);
  assertEquals(window.take(), [
    "write QueueSel 0x3",
    "write QueueSize 0x20",
    "write QueueDescLow 0x34567000",
    "write QueueDescHigh 0x12",
    "write QueueDriverLow 0x80000000",
    "write QueueDriverHigh 0x0",
    "write QueueDeviceLow 0xfffff000",
    "write QueueDeviceHigh 0x0",
    "write QueueReady 0x1",
  ]);
});

Deno.test("resetQueue() considers the reset complete when QueueReset reads 0, and checks QueueReady (VIRTIO 1.4 §4.2.2.2, §2.6.1.1.2)", async () => {
  const { window, probe: mmio } = probe();
  const left = [1, 1, 0];
  window.overrides.QueueReset = () => left.shift()!;
  window.ready[0] = true;
  await mmio.resetQueue(0);
  // The queue is selected before each read, since somebody else may have selected another meanwhile.
  assertEquals(window.take(), [
    "write QueueSel 0x0",
    "write QueueReset 0x1",
    "read QueueReset 0x1",
    "write QueueSel 0x0",
    "read QueueReset 0x1",
    "write QueueSel 0x0",
    "read QueueReset 0x0",
    "read QueueReady 0x0",
  ]);
  window.overrides.QueueReady = () => 1;
  left.push(0);
  const error = await assertRejects(() => mmio.resetQueue(0), ProbeError);
  assertEquals(error.message, "queue 0 did not stop");
});

Deno.test("readConfig() uses accesses of the field's width, two of 32 bits for 64 (VIRTIO 1.4 §4.2.2.2)", () => {
  const { window, probe: mmio } = probe();
  window.config.set([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x02, 0x00]);
  assertEquals([1, 2, 4, 8].map((width) => mmio.readConfig(0, width as 1 | 2 | 4 | 8)), [
    0x88,
    0x7788,
    0x55667788,
    0x0002_3344_5566_7788,
  ]);
  assertEquals(window.take(), [
    "read Config+0/1 0x88",
    "read Config+0/2 0x7788",
    "read Config+0/4 0x55667788",
    "read Config+0/4 0x55667788",
    "read Config+4/4 0x23344",
  ]);
  mmio.writeConfig(32, 1, 1);
  assertEquals(window.take(), ["write Config+32/1 0x1"]);
});

Deno.test("consistently() reads again until the generation did not change in between (VIRTIO 1.4 §2.5.1)", () => {
  const { window, probe: mmio } = probe();
  // The disk grows between the two halves of its capacity: 0xffffffff becomes 0x100000000, twice.
  window.config.set([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
  let changes = 2;
  window.onReadConfig = (at) => {
    if (at !== 0 || changes-- <= 0) return;
    window.generation = (window.generation + 1) >>> 0;
    window.config.set([0, 0, 0, 0, 1, 0, 0, 0]);
  };
  window.generation = 0xfffffffe;
  const capacity = mmio.consistently(() => mmio.readConfig(0, 8));
  assertEquals(capacity, 0x1_0000_0000, "and not 0x1ffffffff, which the disk never was");
  assertEquals(window.take().filter((access) => access.includes("Generation")), [
    "read ConfigGeneration 0xfffffffe",
    "read ConfigGeneration 0xffffffff",
    "read ConfigGeneration 0xffffffff",
    "read ConfigGeneration 0x0",
    "read ConfigGeneration 0x0",
    "read ConfigGeneration 0x0",
  ]);
});

Deno.test("every control register is accessed with 32 bits at its own offset (VIRTIO 1.4 §4.2.2.2)", () => {
  const { window, probe: mmio } = probe();
  for (const name of Object.keys(MMIO) as MmioRegister[]) {
    if (name === "Config") continue;
    mmio.read(name);
    mmio.write(name, 0);
    const [read, write] = window.accesses.splice(0);
    assertEquals([read.offset, read.width, write.offset, write.width], [MMIO[name], 4, MMIO[name], 4]);
  }
});
