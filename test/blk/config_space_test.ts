/** The configuration space (VIRTIO 1.4 §5.2.4), read and written through the registers. */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { CONFIG_FIELDS } from "../../src/blk/blk_layout.ts";
import type { BlkOptions } from "../../src/blk/options.ts";
import { PolicyImage } from "../../src/image/policy.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { OverlayStorage } from "../../src/storage/overlay.ts";
import { concat, header, type Rig, rig, SECTOR, send } from "./rig.ts";

const CONFIG = 0x100;
const CONFIG_GENERATION = 0x0fc;
const WRITEBACK = 32;

const FULL: Partial<BlkOptions> = {
  queues: 3,
  sizeMax: 65536,
  segMax: 77,
  blockSize: 1024,
  physicalBlockSize: 4096,
  minIoSize: 8192,
  optIoSize: 1 << 20,
  maxRanges: 5,
  maxRangeSectors: 0x12345,
  geometry: true,
  secureErase: true,
  lifetime: { preEolInfo: 1, typA: 1, typB: 1 },
};

/** The layout of §5.2.4 written out a second time, with the values of a disk of 8257536 bytes and the options above. */
const EXPECTED = concat(
  le(8, 16128), // capacity: 16 cylinders of 16 heads of 63 sectors
  le(4, 65536), // size_max
  le(4, 77), // seg_max
  le(2, 16), // cylinders
  le(1, 16), // heads
  le(1, 63), // sectors
  le(4, 1024), // blk_size
  le(1, 2), // physical_block_exp
  le(1, 0), // alignment_offset
  le(2, 8), // min_io_size
  le(4, 1024), // opt_io_size
  le(1, 1), // writeback
  le(1, 0), // unused0
  le(2, 3), // num_queues
  le(4, 0x12345), // max_discard_sectors
  le(4, 5), // max_discard_seg
  le(4, 2), // discard_sector_alignment
  le(4, 0x12345), // max_write_zeroes_sectors
  le(4, 5), // max_write_zeroes_seg
  le(1, 1), // write_zeroes_may_unmap
  le(3, 0), // unused1
  le(4, 0x12345), // max_secure_erase_sectors
  le(4, 5), // max_secure_erase_seg
  le(4, 2), // secure_erase_sector_alignment
);
const DISK_BYTES = 16128 * SECTOR;

function le(width: number, value: number): Uint8Array {
  return Uint8Array.from({ length: width }, (_, i) => Math.floor(value / 256 ** i) & 0xff);
}

/** `count` bytes of the configuration space, read with accesses of one width. */
function readConfig({ machine }: Rig, offset: number, count: number, width: 1 | 2 | 4 = 1): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let at = offset; at < offset + count; at += width) {
    parts.push(le(width, machine.transport.read(CONFIG + at, width)));
  }
  return concat(...parts);
}

Deno.test("the configuration space has every field at its place, read at every width and alignment (VIRTIO 1.4 §5.2.4)", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  assertEquals(EXPECTED.byteLength, 72);
  for (const width of [1, 2, 4] as const) assertEquals(readConfig(made, 0, 72, width), EXPECTED);
  // Byte alignment: any offset at any width.
  for (const width of [2, 4] as const) {
    for (let at = 0; at + width <= 72; at++) {
      assertEquals(readConfig(made, at, width, width), EXPECTED.slice(at, at + width));
    }
  }
  await made.machine.close();
});

Deno.test("the padding bytes unused0 and unused1 read as zeros, and cannot be written (VIRTIO 1.4 §5.2.5.2)", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  for (const at of [33, 57, 58, 59]) {
    made.machine.transport.write(CONFIG + at, 1, 0xff);
    assertEquals(readConfig(made, at, 1), Uint8Array.of(0));
  }
  await made.machine.close();
});

Deno.test("what lies behind the configuration space reads as zeros and takes no writes", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  const { transport } = made.machine;
  for (const at of [72, 73, 96, 1000, 0x7fff_0000]) {
    transport.write(CONFIG + at, 4, 0xffffffff);
    assertEquals(transport.read(CONFIG + at, 4), 0);
  }
  // Half inside, half outside.
  assertEquals(readConfig(made, 70, 4, 4), Uint8Array.of(0, 0, 0, 0));
  assertEquals(readConfig(made, 68, 4, 4), EXPECTED.slice(68));
  // Whatever the reader's buffer held.
  for (const [offset, length] of [[70, 8], [72, 4], [1000, 3]]) {
    const target = new Uint8Array(length).fill(0xff);
    made.machine.device.readConfig(offset, target);
    assertEquals(target, concat(EXPECTED.subarray(offset, offset + length), new Uint8Array(8)).slice(0, length));
  }
  await made.machine.close();
});

Deno.test("a field is there when its feature is offered, negotiated or not, and reads as zeros when not (VIRTIO 1.4 §2.5.2)", async () => {
  const bare: Partial<BlkOptions> = {
    flush: false,
    discard: false,
    writeZeroes: false,
    topology: false,
    segMaxOffered: false,
    blkSizeOffered: false,
  };
  const nothing = await rig({ sizeBytes: DISK_BYTES, device: bare });
  assertEquals(readConfig(nothing, 0, 72), concat(EXPECTED.subarray(0, 8), new Uint8Array(64)));
  assertEquals(Object.keys(nothing.machine.guest.config()), ["capacity"]);
  await nothing.machine.close();
  // Offered and declined: still to be read.
  const bits = CONFIG_FIELDS.flatMap((field) => "feature" in field ? [field.feature] : []);
  const declined = await rig({ sizeBytes: DISK_BYTES, device: FULL, driver: { decline: bits } });
  assertEquals(readConfig(declined, 0, 72), EXPECTED);
  assertEquals(Object.keys(declined.machine.guest.config()), ["capacity"]);
  await declined.machine.close();
});

Deno.test("every field of the configuration space can be read before FEATURES_OK (VIRTIO 1.4 §2.5.2)", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  made.machine.transport.write(0x070, 4, 0);
  assertEquals(made.machine.transport.status, 0);
  assertEquals(readConfig(made, 0, 72), EXPECTED);
  await made.machine.guest.reset();
  await made.machine.close();
});

Deno.test("the driver's view of the configuration has each field by name", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  const { guest } = made.machine;
  const config = guest.config();
  assertEquals(Object.keys(config), CONFIG_FIELDS.map(({ name }) => name));
  assertEquals(config.capacity, 16128);
  assertEquals(config.max_secure_erase_sectors, 0x12345);
  assertEquals([guest.sizeBytes, guest.blockSize, guest.queueCount, guest.readOnly], [DISK_BYTES, 1024, 3, false]);
  await made.machine.close();
});

Deno.test("write_zeroes_may_unmap says whether a write zeroes request can give space back (VIRTIO 1.4 §5.2.6.2)", async () => {
  const memory = new RawImage(new MemoryStorage(4096));
  const overlay = new RawImage(new OverlayStorage(new MemoryStorage(4096)));
  for (
    const [image, mayUnmap] of [[memory, 1], [new PolicyImage(memory, { ignoreDiscard: true }), 0], [
      overlay,
      0,
    ]] as const
  ) {
    const machine = await Machine.start(image);
    assertEquals(machine.guest.config().write_zeroes_may_unmap, mayUnmap);
    await machine.close();
  }
});

Deno.test("geometry has 16 heads, 63 sectors and as many cylinders as there are, within ATA's limit", async () => {
  for (
    const [sectors, cylinders] of [[1, 2], [16 * 63 * 5 + 7, 5], [16 * 63 * 16383, 16383], [16 * 63 * 20000, 16383]]
  ) {
    const made = await rig({ sizeBytes: 512, device: { geometry: true } });
    await made.machine.resize(sectors * SECTOR);
    const config = made.machine.guest.config();
    assertEquals([config.cylinders, config.heads, config.sectors], [cylinders, 16, 63]);
    await made.machine.close();
  }
});

Deno.test("a live resize changes capacity and ConfigGeneration and interrupts; the driver looks again (VIRTIO 1.4 §5.2.6.2, §4.2.2.1)", async () => {
  const made = await rig({ sizeBytes: 65536 });
  const { machine } = made;
  const generation = () => machine.transport.read(CONFIG_GENERATION, 4);
  const seen = [generation()];
  for (const sizeBytes of [131072, 512, 65536 + 300]) {
    const interrupts = machine.transport.counters.interrupts;
    await machine.resize(sizeBytes);
    assertEquals(machine.transport.counters.interrupts, interrupts + 1);
    const event = made.events.findLast(({ event }) => event === "interrupt");
    assertEquals(event, { event: "interrupt", usedBuffer: false, configChange: true });
    assertEquals(machine.guest.sizeBytes, Math.ceil(sizeBytes / SECTOR) * SECTOR);
    assert(!seen.includes(generation()), "each state of the configuration has its own generation");
    seen.push(generation());
  }
  // The last sector that exists now, and the first that does not.
  assertEquals((await send(made, header(0, 128), 513)).status, 0);
  assertEquals((await send(made, header(0, 129), 513)).status, 1);
  await machine.close();
});

Deno.test("ConfigGeneration stays while nothing changes (VIRTIO 1.4 §2.5)", async () => {
  const made = await rig();
  const before = made.machine.transport.read(CONFIG_GENERATION, 4);
  await made.machine.guest.write(0, new Uint8Array(1024));
  assertEquals(made.machine.transport.read(CONFIG_GENERATION, 4), before);
  await made.machine.close();
});

Deno.test("a resize before DRIVER_OK is not announced but seen (VIRTIO 1.4 §2.1.2)", async () => {
  const made = await rig();
  const { machine } = made;
  await machine.guest.driver.stop();
  const { interrupts } = machine.transport.counters;
  const generation = machine.transport.read(CONFIG_GENERATION, 4);
  await machine.resize(1 << 20);
  assertEquals(machine.transport.counters.interrupts, interrupts);
  assertEquals(machine.transport.read(0x060, 4), 0);
  assertNotEquals(machine.transport.read(CONFIG_GENERATION, 4), generation);
  await machine.guest.reset();
  assertEquals(machine.guest.sizeBytes, 1 << 20);
  await machine.close();
});

Deno.test("any width reaches writeback, any value but 0 means 1, and no other byte changes", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  const { transport, device } = made.machine;
  const writes: [offset: number, width: 1 | 2 | 4, value: number, writeback: number][] = [
    [WRITEBACK, 1, 0, 0],
    [WRITEBACK, 1, 0xff, 1],
    [WRITEBACK, 4, 0xffffff00, 0],
    [WRITEBACK, 2, 0x0001, 1],
    [WRITEBACK - 1, 2, 0x00ff, 0],
    [WRITEBACK - 3, 4, 0x02000000, 1],
    [WRITEBACK - 1, 1, 0, 1],
    [WRITEBACK + 1, 4, 0, 1],
    [WRITEBACK - 4, 4, 0, 1],
    [WRITEBACK, 1, 0, 0],
    [WRITEBACK - 1, 1, 0xff, 0],
    [WRITEBACK + 1, 1, 0xff, 0],
    [WRITEBACK - 2, 2, 0xffff, 0],
    [WRITEBACK - 4, 4, 0xffffffff, 0],
  ];
  for (const [offset, width, value, writeback] of writes) {
    transport.write(CONFIG + offset, width, value);
    const expected = EXPECTED.slice();
    expected[WRITEBACK] = writeback;
    assertEquals(readConfig(made, 0, 72), expected);
    assertEquals(device.writethrough, writeback === 0);
  }
  await made.machine.close();
});

Deno.test("only writeback can be written: every other byte of the configuration stays as it is", async () => {
  const made = await rig({ sizeBytes: DISK_BYTES, device: FULL });
  for (let at = 0; at < 80; at++) {
    if (at === WRITEBACK) continue;
    for (const value of [0, 0xff, 0x5a]) made.machine.transport.write(CONFIG + at, 1, value);
  }
  assertEquals(readConfig(made, 0, 72), EXPECTED);
  await made.machine.close();
});

Deno.test("the configuration is not written before FEATURES_OK (VIRTIO 1.4 §3.1.1)", async () => {
  const made = await rig();
  const { transport } = made.machine;
  transport.write(0x070, 4, 0);
  transport.write(CONFIG + WRITEBACK, 1, 0);
  assertEquals(transport.read(CONFIG + WRITEBACK, 1), 1);
  assertEquals(made.rules(), ["config-early"]);
  await made.machine.guest.reset();
  await made.machine.close();
});
