/** How the block driver finds, negotiates and sets up its device (VIRTIO 1.4 §3.1.1, §2.2.1, §2.5.1, §5.2.5.1). */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { LOST } from "../../src/guest/request_slot.ts";
import { ProbeError } from "../../src/guest/mmio_probe.ts";
import { featureSet } from "../../src/virtio/features.ts";
import { driverProblems, FakeWindow } from "./fake_window.ts";
import { capacity, fake, flush, real, VERSION_1 } from "./block_driver_rig.ts";

Deno.test("start() follows the whole sequence of initialization, DRIVER_OK last (VIRTIO 1.4 §3.1.1)", async () => {
  const { window, driver } = fake();
  await driver.start();
  const { desc, driver: avail, device } = driver.queues[0].addresses;
  const hex = (value: number) => `0x${value.toString(16)}`;
  assertEquals(window.take(), [
    "read MagicValue 0x74726976",
    "read Version 0x2",
    "read DeviceID 0x2",
    "write Status 0x0",
    "read Status 0x0",
    "read Status 0x0",
    "write Status 0x1",
    "read Status 0x1",
    "write Status 0x3",
    "write DeviceFeaturesSel 0x0",
    "read DeviceFeatures 0x0",
    "write DeviceFeaturesSel 0x1",
    "read DeviceFeatures 0x1",
    "write DriverFeaturesSel 0x0",
    "write DriverFeatures 0x0",
    "write DriverFeaturesSel 0x1",
    "write DriverFeatures 0x1",
    "read Status 0x3",
    "write Status 0xb",
    "read Status 0xb",
    "write QueueSel 0x0",
    "read QueueReady 0x0",
    "read QueueSizeMax 0x100",
    "write QueueSel 0x0",
    "write QueueSize 0x100",
    `write QueueDescLow ${hex(desc)}`,
    "write QueueDescHigh 0x0",
    `write QueueDriverLow ${hex(avail)}`,
    "write QueueDriverHigh 0x0",
    `write QueueDeviceLow ${hex(device)}`,
    "write QueueDeviceHigh 0x0",
    "write QueueReady 0x1",
    "read Status 0xb",
    "write Status 0xf",
  ]);
});

Deno.test("start() touches nothing but the identity registers of what is no block device (VIRTIO 1.4 §4.2.3.1.1)", async () => {
  for (const [id, reads] of [[0, 3], [1, 3], [25, 3]]) {
    const { window, driver } = fake();
    window.overrides.DeviceID = () => id;
    const error = await assertRejects(() => driver.start(), ProbeError);
    assertEquals(error.message, `device ID ${id} is not a block device`);
    assertEquals(window.accesses.length, reads);
    assertEquals(window.accesses.every(({ kind }) => kind === "read"), true);
  }
});

Deno.test("start() accepts what it understands of the offer and nothing else: not unknown, reserved, other devices' or transports' bits (VIRTIO 1.4 §2.2.1)", async () => {
  const { window, driver } = fake();
  window.features = (1n << 64n) - 1n;
  window.config[34] = 1; // num_queues
  await driver.start();
  const understood = featureSet(1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 28, 29, 32, 34, 35, 38, 40);
  assertEquals(window.accepted, understood);
  assertEquals(driver.features, understood);
  assertEquals(driverProblems(window.accesses), []);
  // In words: not ZONED (17), legacy (0, 7), ACCESS_PLATFORM (33), ORDER_PLATFORM (36), SR_IOV (37),
  // NOTIF_CONFIG_DATA (39), SUSPEND (43), nor anything reserved (44 to 49).
  for (const bit of [0n, 7n, 17n, 33n, 36n, 37n, 39n, 41n, 43n, 44n, 49n, 63n]) {
    assertEquals(driver.features >> bit & 1n, 0n);
  }
});

Deno.test("start() gets on with any offer that has VERSION_1, however little it is (VIRTIO 1.4 §2.2.1)", async () => {
  for (let bit = 0n; bit < 64n; bit++) {
    const { window, driver } = fake();
    window.features = VERSION_1 | 1n << bit;
    window.config[34] = 1;
    await driver.start();
    assertEquals(window.accepted & ~window.features, 0n);
    assertEquals(window.accepted >> 32n & 1n, 1n);
    assertEquals([bit, window.status, driverProblems(window.accesses)], [bit, 15, []]);
  }
});

Deno.test("start() accepts RING_PACKED, RO and FLUSH when they are offered (VIRTIO 1.4 §6.1, §5.2.6.1)", async () => {
  const { window, driver } = fake();
  window.features = VERSION_1 | featureSet(34, 5, 9);
  await driver.start();
  assertEquals(window.accepted, window.features);
});

Deno.test("start() declines what it was told to decline", async () => {
  const { window, driver } = fake({ decline: featureSet(9, 29) });
  window.features = VERSION_1 | featureSet(9, 28, 29);
  await driver.start();
  assertEquals(window.accepted, VERSION_1 | featureSet(28));
});

Deno.test("start() writes no configuration and does not read writeback before FEATURES_OK (VIRTIO 1.4 §3.1.1, §5.2.5.1)", async () => {
  const { window, driver } = fake();
  window.features = VERSION_1 | featureSet(9, 11, 12);
  window.config[34] = 2;
  window.queueSizes = [8, 8];
  await driver.start();
  const featuresOk = window.accesses.findIndex(({ kind, offset, value }) =>
    kind === "write" && offset === 0x70 && value === 11
  );
  const config = window.accesses.findIndex(({ offset }) => offset >= 0x100);
  assert(featuresOk > 0 && config > featuresOk);
  assertEquals(driver.readConfig("writeback"), 0);
  assertEquals(driverProblems(window.accesses), []);
});

Deno.test("start() uses as many queues as num_queues says, one without MQ (VIRTIO 1.4 §5.2.2)", async () => {
  for (const [features, expected] of [[VERSION_1 | featureSet(12), 3], [VERSION_1, 1]] as const) {
    const { window, driver } = fake();
    window.features = features;
    window.queueSizes = [4, 8, 16, 32];
    window.config[34] = 3;
    await driver.start();
    assertEquals(driver.queues.map(({ size }) => size), [4, 8, 16].slice(0, expected));
    // Without MQ the field does not exist, and is not read.
    assertEquals(driverProblems(window.accesses), []);
  }
});

Deno.test("start() never writes a QueueSize above QueueSizeMax, nor one that a split queue cannot have (VIRTIO 1.4 §4.2.2.2, §2.7)", async () => {
  for (
    const [sizeMax, queueSize, split, packed] of [
      [256, 64, 64, 64],
      [16, 256, 16, 16],
      [100, 256, 64, 100],
      [256, 100, 64, 100],
      [1, 256, 1, 1],
      [3, 3, 2, 3],
    ]
  ) {
    for (const [bits, size] of [[0n, split], [1n << 34n, packed]] as const) {
      const { window, driver } = fake({ queueSize });
      window.features = VERSION_1 | bits;
      window.queueSizes = [sizeMax];
      await driver.start();
      assertEquals(driver.queues[0].size, size);
      assertEquals(driverProblems(window.accesses), []);
    }
  }
});

Deno.test("start() sets FAILED and stops when a queue is missing or in use (VIRTIO 1.4 §3.1.1)", async () => {
  const missing = fake();
  missing.window.queueSizes = [];
  const error = await assertRejects(() => missing.driver.start(), ProbeError);
  assertEquals(error.message, "the device has no queue 0");
  assertEquals(missing.window.status, 1 | 2 | 8 | 128);
  assertEquals(missing.window.take().at(-1), "write Status 0x8b");
  const used = fake();
  used.window.overrides.QueueReady = () => 1;
  assertEquals((await assertRejects(() => used.driver.start(), ProbeError)).message, "queue 0 is in use already");
  assertEquals(used.window.status, 1 | 2 | 8 | 128);
});

Deno.test("a driver that failed resets the device before it tries again (VIRTIO 1.4 §2.1.1)", async () => {
  const { window, driver } = fake();
  window.refusedStatus = 8;
  await assertRejects(() => driver.start(), ProbeError, "the device refused the features 32");
  assertEquals(window.status & 128, 128);
  window.refusedStatus = 0;
  await driver.start();
  assertEquals(window.status, 15);
  assertEquals(driverProblems(window.accesses), []);
});

Deno.test("readConfig() and readAllConfig() use each field's own width, inside the generation loop (VIRTIO 1.4 §4.2.2.2, §2.5.1)", async () => {
  const { window, driver } = fake();
  window.features = VERSION_1 | featureSet(1, 2, 4, 6, 9, 10, 11, 12, 13, 14, 16);
  window.config[34] = 1;
  await driver.start();
  window.accesses.length = 0;
  driver.readAllConfig();
  assertEquals(driverProblems(accessesAfterStart(window)), []);
  const widths = window.accesses.filter(({ offset }) => offset >= 0x100).map(({ width }) => width);
  assertEquals(widths, [4, 4, 4, 4, 2, 1, 1, 4, 1, 1, 2, 4, 1, 2, 4, 4, 4, 4, 4, 1, 4, 4, 4]);
  assertEquals([window.accesses[0].offset, window.accesses.at(-1)?.offset], [0xfc, 0xfc]);
  // And again from the start when the generation changed in the middle.
  let changed = false;
  window.accesses.length = 0;
  window.onReadConfig = (at) => {
    if (at === 40 && !changed) window.generation++;
    if (at === 40) changed = true;
  };
  driver.readAllConfig();
  assertEquals(window.accesses.filter(({ offset }) => offset === 0xfc).length, 4);
  assertEquals(window.accesses.filter(({ offset }) => offset === 0x100).length, 2);
});

/** What was recorded, with a start in front that offers all, for the judge. */
function accessesAfterStart(window: FakeWindow) {
  const offer = (select: number) => [
    { kind: "write", offset: 0x14, width: 4, value: select } as const,
    { kind: "read", offset: 0x10, width: 4, value: 0xffffffff } as const,
  ];
  const ready = { kind: "read", offset: 0x70, width: 4, value: 15 } as const;
  return [...offer(0), ...offer(1), ready, ...window.accesses];
}

Deno.test("a field of the configuration whose feature was not negotiated is not read (VIRTIO 1.4 §2.5.1)", async () => {
  const { window, driver } = fake();
  await driver.start();
  window.accesses.length = 0;
  assertEquals(driver.readAllConfig(), { capacity: 0 });
  assertEquals(window.accesses.filter(({ offset }) => offset >= 0x100).map(({ offset }) => offset), [0x100, 0x104]);
});

Deno.test("the capacity is read in two halves, with 32-bit accesses (VIRTIO 1.4 §2.5.1)", async () => {
  const { window, driver } = fake();
  capacity(window, 2 ** 40 + 5);
  await driver.start();
  assertEquals(driver.readConfig("capacity"), 2 ** 40 + 5);
});

Deno.test("start() on a device in use resets it first: what was in flight is lost, the old rings are given back", async () => {
  const { driver, transport, window } = await real();
  const free = driver.allocator.freeBytes;
  const { onInterrupt } = transport;
  for (let i = 0; i < 3; i++) {
    transport.onInterrupt = () => {};
    const lost = flush(driver);
    await driver.start();
    transport.onInterrupt = onInterrupt;
    assertEquals((await lost).status, LOST);
    assertEquals([driver.inFlightCount, (await flush(driver)).status], [0, 0]);
    assert(free - driver.allocator.freeBytes < 512);
  }
  assertEquals(driverProblems(window.accesses), []);
});
