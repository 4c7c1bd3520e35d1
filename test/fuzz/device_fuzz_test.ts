/**
 * Chains made of random descriptors against the whole device: whatever a driver writes, the device answers what can
 * be answered, asks for a reset otherwise, and touches nothing but the buffers that it was given.
 */

import { assert, assertEquals } from "@std/assert";
import type { RawDescriptor } from "../../src/guest/driver_queue.ts";
import type { Guest } from "../../src/guest/guest.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import type { TraceEvent } from "../../src/trace/events.ts";
import { forSeedsAsync, type Random } from "../random.ts";

const [NEXT, WRITE, INDIRECT] = [1, 2, 4];
const DISK_BYTES = 16 * 1024;
const RAM_BYTES = 64 * 1024;
const QUEUE_SIZE = 16;
/** Guest-physical, behind the rings: where the chains' buffers are. */
const BUFFERS_BYTES = 16 * 1024;

const TYPES = [0, 1, 4, 8, 10, 11, 13, 14, 15, 16, 26, 255, 0x8000_0000];
const SECTORS = [0n, 1n, 31n, 32n, 33n, 2n ** 44n, 2n ** 53n, 2n ** 55n, 2n ** 63n, 2n ** 64n - 1n];

interface Case {
  readonly descriptors: RawDescriptor[];
  readonly indirect: boolean;
}

/** A chain that is nearly right: a header, data, a status byte, and then some of it spoilt. */
function randomCase(random: Random, buffers: number, memory: (address: number, size: number) => Uint8Array): Case {
  const header = buffers;
  const view = new DataView(new ArrayBuffer(16));
  view.setUint32(0, random.pick(TYPES), true);
  view.setBigUint64(8, random.pick(SECTORS), true);
  memory(header, 16).set(new Uint8Array(view.buffer));
  const descriptors: RawDescriptor[] = [];
  const add = (address: number | bigint, length: number, flags: number) =>
    descriptors.push({ address: BigInt(address), length, flags });
  for (let at = 0; at < 16;) {
    const length = random.oneIn(3) ? random.between(1, 16 - at) : 16 - at;
    add(header + at, length, NEXT);
    at += length;
  }
  for (let count = random.below(5); count > 0; count--) {
    const length = random.pick([0, 1, 16, 20, 511, 512, 512, 1024, 4096]);
    add(buffers + 16 + random.below(BUFFERS_BYTES - 16 - length), length, NEXT | (random.oneIn(2) ? WRITE : 0));
  }
  add(buffers + random.below(BUFFERS_BYTES), 1, WRITE);
  for (let spoils = random.below(3); spoils > 0; spoils--) spoil(random, descriptors, buffers);
  return { descriptors, indirect: random.oneIn(3) };
}

function spoil(random: Random, descriptors: RawDescriptor[], buffers: number): void {
  const i = random.below(descriptors.length);
  const good = descriptors[i];
  const edits: (() => RawDescriptor)[] = [
    () => ({ ...good, address: BigInt.asUintN(64, good.address + random.pick([2n ** 20n, -(2n ** 29n), 2n ** 63n])) }),
    () => ({ ...good, address: 2n ** 64n - 1n, length: 2 }),
    () => ({ ...good, length: random.pick([0, 0xffff_ffff, 0x1_0000, 17]) }),
    () => ({ ...good, flags: good.flags ^ random.pick([NEXT, WRITE]) }),
    () => ({ ...good, flags: random.below(8) }),
    () => ({ ...good, flags: random.next() & 0xffff & ~INDIRECT }),
    () => ({ ...good, next: random.pick([0, 1, QUEUE_SIZE - 1, QUEUE_SIZE, 0xffff]) }),
    () => ({ ...good, flags: INDIRECT, address: BigInt(buffers), length: random.pick([0, 8, 16, 32, 17]) }),
  ];
  descriptors[i] = random.pick(edits)();
}

/** The descriptors in the ring, those of earlier chains too: a spoilt `next` can lead to any of them. */
function ringDescriptors(guest: Guest): RawDescriptor[] {
  const { queues, allocator } = guest.driver;
  const start = queues[0].addresses.desc - allocator.ram.guestAddress;
  return Array.from({ length: QUEUE_SIZE }, (_, i) => {
    const at = start + 16 * i;
    const { view } = allocator.ram;
    return {
      address: view.getBigUint64(at, true),
      length: view.getUint32(at + 8, true),
      flags: view.getUint16(at + 12, true),
    };
  });
}

/** Bytes of RAM that changed, as guest-physical addresses, eight at most. */
function changed(before: Uint8Array, after: Uint8Array, base: number, allowed: (address: number) => boolean): number[] {
  const found: number[] = [];
  for (let i = 0; i < before.length && found.length < 8; i++) {
    if (before[i] !== after[i] && !allowed(base + i)) found.push(base + i);
  }
  return found;
}

async function start(layout: "split" | "packed", events: TraceEvent[]): Promise<Machine> {
  return await Machine.start(new RawImage(new MemoryStorage(DISK_BYTES)), {
    device: {
      packed: layout === "packed",
      queueSize: QUEUE_SIZE,
      secureErase: true,
      lifetime: { preEolInfo: 1, typA: 2, typB: 3 },
    },
    ramBytes: RAM_BYTES,
    trace: (event) => events.push(event),
  });
}

Deno.test("the judge of the fuzz tests sees a byte that changed outside the allowed ranges", () => {
  const before = new Uint8Array(16);
  const after = before.slice();
  after[3] = after[9] = 1;
  assertEquals(changed(before, after, 0x100, (address) => address === 0x109), [0x103]);
});

for (const layout of ["split", "packed"] as const) {
  Deno.test(`${layout} device survives 10,000 random chains and touches only the buffers they name`, async () => {
    const events: TraceEvent[] = [];
    const machine = await start(layout, events);
    const { guest } = machine;
    const ram = guest.driver.allocator.ram;
    const buffers = guest.allocate(BUFFERS_BYTES);
    const before = new Uint8Array(RAM_BYTES);
    let answered = 0;
    let resets = 0;
    await forSeedsAsync(10_000, layout === "split" ? 1 : 1_000_001, async (random) => {
      events.length = 0;
      const { descriptors, indirect } = randomCase(random, buffers, (address, size) => guest.memory(address, size));
      const last = descriptors[descriptors.length - 1];
      before.set(ram.bytes);
      // The driver's own writes (descriptors, indices, tables) come first, so the rings are left out of the picture.
      const sent = guest.chain(descriptors, { indirect });
      await sent.then(({ bytesWritten }) => bytesWritten === null ? resets++ : answered++);
      const named = [...descriptors, ...ringDescriptors(guest)].filter(({ flags }) => flags & WRITE);
      const pointsElsewhere = descriptors.some(({ flags }) => flags & INDIRECT);
      const inBuffers = (address: number) => address >= buffers && address < buffers + BUFFERS_BYTES;
      if (!pointsElsewhere) {
        const wrong = changed(before, ram.bytes, ram.guestAddress, (address) =>
          !inBuffers(address) ||
          named.some(({ address: start, length }) => address >= Number(start) && address < Number(start) + length));
        assertEquals(wrong, [], "bytes changed that no device-writable descriptor names");
      }
      const status = events.findLast((event) => event.event === "status");
      const broke = events.some((event) => event.event === "violation" && event.consequence === "device needs reset");
      assert(status !== undefined || broke, "neither a status nor a reason for a reset");
      if (status?.event === "status" && !pointsElsewhere && last.length === 1 && last.flags === WRITE) {
        assert([0, 1, 2].includes(status.status), `status ${status.status}`);
      }
      assertEquals(guest.driver.needsReset, broke);
      if (broke) await guest.reset();
    });
    // Both ways out were really taken, and often.
    assert(answered > 1000, `only ${answered} were answered`);
    assert(resets > 500, `only ${resets} asked for a reset`);
    // And the device still works.
    await guest.write(0, new Uint8Array(512).fill(0x5a));
    assertEquals((await guest.read(0, 512))[511], 0x5a);
    await machine.close();
  });

  Deno.test(`${layout} device survives 3,000 rings overwritten with random bytes and works after a reset`, async () => {
    const events: TraceEvent[] = [];
    const machine = await start(layout, events);
    const { guest } = machine;
    await forSeedsAsync(3000, layout === "split" ? 2_000_001 : 3_000_001, async (random) => {
      const { desc, driver } = guest.driver.queues[0].addresses;
      const size = layout === "split" ? 6 + 2 * QUEUE_SIZE : 4;
      // Anything but the device's own area, which a driver cannot break for anybody but itself.
      for (let edits = random.between(1, 8); edits > 0; edits--) {
        const [start, length] = random.oneIn(2) ? [desc, 16 * QUEUE_SIZE] : [driver, size];
        guest.memory(start + random.below(length), 1)[0] = random.next();
      }
      guest.driver.notify(0);
      await guest.reset();
      assertEquals(guest.driver.inFlightCount, 0);
    });
    assertEquals((await guest.read(0, 512)).byteLength, 512);
    await machine.close();
  });
}
