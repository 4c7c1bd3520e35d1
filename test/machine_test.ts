/** A machine: both halves put together, and what an in-process "virtual machine" would pay in exits. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import type { BlkOptions } from "../src/blk/options.ts";
import { GuestIoError } from "../src/guest/guest_error.ts";
import { ProbeError } from "../src/guest/mmio_probe.ts";
import { RawImage } from "../src/image/raw/raw_image.ts";
import { Machine, type MachineOptions } from "../src/machine.ts";
import { BlockError } from "../src/storage/block_error.ts";
import { FaultStorage } from "../src/storage/fault.ts";
import { MemoryStorage } from "../src/storage/memory.ts";
import { featureSet } from "../src/virtio/features.ts";

const MIB = 1 << 20;

function start(device: Partial<BlkOptions> = {}, options: MachineOptions = {}): Promise<Machine> {
  return Machine.start(new RawImage(new MemoryStorage(MIB)), { ramBytes: MIB, device, ...options });
}

/** Lets the event loop go round once. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** Exits since the last time: register accesses and interrupts. */
function exitCounter({ transport: { counters } }: Machine): () => number {
  let before = 0;
  const now = () => counters.reads + counters.writes + counters.interrupts;
  before = now();
  return () => {
    const exits = now() - before;
    before = now();
    return exits;
  };
}

for (const packed of [false, true]) {
  const layout = packed ? "packed" : "split";

  Deno.test(`${layout} ring, EVENT_IDX: a request at depth 1 costs 4 exits: kick, interrupt, InterruptStatus, InterruptACK`, async () => {
    const machine = await start({ packed });
    const exits = exitCounter(machine);
    for (let i = 0; i < 100; i++) {
      await machine.guest.read(0, 4096);
      assertEquals(exits(), 4);
      await machine.guest.write(0, new Uint8Array(4096));
      assertEquals(exits(), 4);
    }
    await machine.close();
  });

  Deno.test(`${layout} ring, EVENT_IDX: 32 requests at once cost 4 exits, 0.125 for each`, async () => {
    const machine = await start({ packed });
    const exits = exitCounter(machine);
    for (let i = 0; i < 50; i++) {
      await Promise.all(Array.from({ length: 32 }, (_, k) => machine.guest.read(k * 4096, 4096)));
      assertEquals(exits(), 4);
    }
    await machine.close();
  });

  Deno.test(`${layout} ring, EVENT_IDX: a queue kept 32 deep stays far below 1 exit for each request`, async () => {
    const machine = await start({ packed });
    const exits = exitCounter(machine);
    let left = 3200;
    const worker = async () => {
      while (left-- > 0) await machine.guest.read((left % 256) * 4096, 4096);
    };
    await Promise.all(Array.from({ length: 32 }, worker));
    // Every round of 32 is one kick and one interrupt; none more.
    assertEquals(exits(), 4 * 100);
    await machine.close();
  });

  Deno.test(`${layout} ring without EVENT_IDX: the flags save as much in one process`, async () => {
    const machine = await start({ packed, eventIdx: false });
    const exits = exitCounter(machine);
    await Promise.all(Array.from({ length: 32 }, (_, k) => machine.guest.read(k * 4096, 4096)));
    assertEquals(exits(), 4);
    await machine.close();
  });
}

Deno.test("Machine.start() boots a guest that sees the disk's size and what the device offers", async () => {
  const machine = await start({ queues: 2, queueSize: 64 });
  assertEquals(machine.guest.sizeBytes, MIB);
  assertEquals(machine.guest.queueCount, 2);
  assertEquals(machine.transport.negotiatedFeatures, machine.device.features);
  assertEquals(machine.guest.features, machine.device.features);
  assertEquals(machine.transport.status, 1 + 2 + 4 + 8);
  await machine.close();
});

Deno.test("Machine.start() says which option makes no sense", async () => {
  const error = await assertRejects(() => start({ queueSize: 3 }), RangeError);
  assertEquals(error.message, "device option queueSize: 3 is not a power of two from 1 to 32768");
});

Deno.test("Machine.start() fails with ProbeError when the driver declines VERSION_1 (VIRTIO 1.4 §6.2)", async () => {
  const error = await assertRejects(() => start({}, { driver: { decline: featureSet(32) } }), ProbeError);
  assert(error.message.startsWith("the device refused the features "), error.message);
});

Deno.test("every feature of the device can be declined alone, and the disk works without it (VIRTIO 1.4 §2.2.2)", async () => {
  const all: Partial<BlkOptions> = {
    packed: true,
    inOrder: true,
    notificationData: true,
    queues: 2,
    sizeMax: 4096,
    geometry: true,
    secureErase: true,
    lifetime: { preEolInfo: 1, typA: 1, typB: 1 },
  };
  const offered = (await start(all)).device.features;
  for (let bit = 0; bit < 64; bit++) {
    if (bit === 32 || !(offered >> BigInt(bit) & 1n)) continue;
    const machine = await start(all, { driver: { decline: featureSet(bit) } });
    assertEquals(machine.guest.features, offered & ~featureSet(bit));
    const data = new Uint8Array(10000).map((_, i) => i + bit);
    await machine.guest.write(12345, data);
    assertEquals(await machine.guest.read(12345, 10000), data);
    await machine.close();
  }
});

Deno.test("resize() changes the disk under a running guest, both ways", async () => {
  const machine = await start();
  await machine.guest.write(MIB - 512, new Uint8Array(512).fill(1));
  await machine.resize(2 * MIB);
  assertEquals([machine.guest.sizeBytes, machine.image.sizeBytes], [2 * MIB, 2 * MIB]);
  assertEquals(await machine.guest.read(MIB - 512, 1024), new Uint8Array(1024).fill(1, 0, 512));
  await machine.resize(MIB / 2);
  await machine.resize(MIB);
  assertEquals(await machine.guest.read(MIB - 512, 512), new Uint8Array(512), "what was cut off is gone");
  await machine.close();
});

Deno.test("resize() lets requests in flight end, and holds later ones back until they meet the new size", async () => {
  const storage = new FaultStorage(new MemoryStorage(MIB));
  const machine = await Machine.start(new RawImage(storage), { ramBytes: MIB });
  const { guest, image } = machine;
  const order: string[] = [];
  const { promise: gate, resolve: open } = Promise.withResolvers<void>();
  storage.hook = ({ kind }) => {
    order.push(kind);
    if (kind === "write") return gate;
  };
  const inFlight = guest.write(MIB - 512, new Uint8Array(512).fill(1));
  await turn();
  const resized = machine.resize(MIB / 2);
  const [beyond, inside] = [guest.read(MIB - 512, 512), guest.read(0, 512)];
  await turn();
  assertEquals([order, image.sizeBytes], [["write"], MIB]);
  open();
  await inFlight;
  await assertRejects(() => beyond, GuestIoError, "read failed: S_IOERR");
  assertEquals(await inside, new Uint8Array(512));
  await resized;
  assertEquals([order, image.sizeBytes, storage.sizeBytes], [["write", "truncate", "read"], MIB / 2, MIB / 2]);
  await machine.close();
});

Deno.test("resize() that the storage refuses changes nothing, and tells nobody", async () => {
  const storage = new FaultStorage(new MemoryStorage(MIB));
  const machine = await Machine.start(new RawImage(storage), { ramBytes: MIB });
  storage.hook = ({ kind }) => {
    if (kind === "truncate") throw new BlockError({ kind: "no-space", path: "disk", operation: "resize" });
  };
  const { interrupts } = machine.transport.counters;
  const error = await assertRejects(() => machine.resize(2 * MIB), BlockError);
  assertEquals(error.message, "resize of 'disk': No space left on device");
  assertEquals([machine.guest.sizeBytes, machine.transport.counters.interrupts], [MIB, interrupts]);
  assertEquals(await machine.guest.read(0, 512), new Uint8Array(512), "and the device goes on");
  await machine.close();
});

Deno.test("close() makes everything stable and closes the image, once requests in flight have ended", async () => {
  const kinds: string[] = [];
  const inner = new MemoryStorage(MIB);
  const storage = new FaultStorage(inner, ({ kind }) => void kinds.push(kind));
  storage.close = () => void kinds.push("close");
  const machine = await Machine.start(new RawImage(storage), { ramBytes: MIB });
  let release = () => {};
  storage.hook = ({ kind }) => {
    kinds.push(kind);
    if (kind === "write") return new Promise((go) => release = go);
  };
  const write = machine.guest.write(0, new Uint8Array(512)).catch((error) => error.message);
  await new Promise((go) => setTimeout(go, 0));
  const closed = machine.close();
  for (let i = 0; i < 3; i++) await new Promise((go) => setTimeout(go, 0));
  assertEquals(kinds, ["write"]);
  release();
  await closed;
  assertEquals(kinds, ["write", "flush", "close"]);
  assertEquals(await write, "write failed: the device was reset, or needs to be");
});

Deno.test("close() of a machine whose last flush fails says so, and closes the image all the same", async () => {
  const storage = new FaultStorage(new MemoryStorage(MIB));
  let closed = 0;
  storage.close = () => void closed++;
  const machine = await Machine.start(new RawImage(storage), { ramBytes: MIB });
  storage.hook = () => {
    throw new BlockError({ kind: "io", path: "disk", operation: "flush" });
  };
  const error = await assertRejects(() => machine.close(), BlockError);
  assertEquals([error.message, closed], ["flush of 'disk': Input/output error", 1]);
});

Deno.test("close() does not flush what was opened for reading", async () => {
  const kinds: string[] = [];
  const storage = new FaultStorage(new MemoryStorage(MIB, { readOnly: true }), ({ kind }) => void kinds.push(kind));
  const machine = await Machine.start(new RawImage(storage), { ramBytes: MIB });
  await machine.close();
  assertEquals(kinds, []);
});

Deno.test("a machine with manual interrupts raises the line and leaves it to the guest", async () => {
  const machine = await start({}, { driver: { manualInterrupts: true } });
  const read = machine.guest.read(0, 512);
  await Promise.resolve();
  assertEquals([machine.transport.counters.interrupts, machine.guest.driver.inFlightCount], [1, 1]);
  assertEquals(machine.transport.read(0x060, 4), 1);
  machine.guest.driver.handleInterrupt();
  assertEquals((await read).length, 512);
  assertEquals(machine.transport.read(0x060, 4), 0);
  await machine.close();
});

Deno.test("two machines share nothing", async () => {
  const [a, b] = [await start(), await start({ packed: true })];
  await Promise.all([a.guest.write(0, new Uint8Array(512).fill(1)), b.guest.write(0, new Uint8Array(512).fill(2))]);
  assertEquals([(await a.guest.read(0, 1))[0], (await b.guest.read(0, 1))[0]], [1, 2]);
  await a.close();
  assertEquals((await b.guest.read(511, 1))[0], 2);
  await b.close();
});

Deno.test("a device with many queues has one when the driver declines MQ (VIRTIO 1.4 §5.2.2)", async () => {
  for (const [decline, count] of [[[], 4], [[12], 1]] as const) {
    const machine = await start({ queues: 4, queueSize: 32 }, { driver: { decline: featureSet(...decline) } });
    assertEquals(machine.guest.queueCount, count);
    const sizes = [0, 1, 2, 3, 4].map((queue) => {
      machine.transport.write(0x030, 4, queue);
      return machine.transport.read(0x034, 4);
    });
    assertEquals(sizes, [0, 1, 2, 3, 4].map((queue) => queue < count ? 32 : 0));
    await machine.close();
  }
});
