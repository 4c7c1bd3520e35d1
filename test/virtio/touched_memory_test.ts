/**
 * What the whole device, block requests and all, touches of guest memory. A read leaves no trace in memory; but what
 * was in device-writable buffers beforehand must make no difference, and that can be seen.
 */

import { assert, assertEquals } from "@std/assert";
import type { RequestSlot } from "../../src/guest/request_slot.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { MmioTransport } from "../../src/transport/mmio/mmio_transport.ts";
import { packedSizes } from "../../src/virtio/virtqueue/packed_layout.ts";
import { splitSizes, USED_IDX } from "../../src/virtio/virtqueue/split_layout.ts";

const [IN, OUT, FLUSH, GET_ID, GET_LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE] = [0, 1, 4, 8, 10, 11, 13, 14];
const RAM_BYTES = 1 << 18;

/** A request: its type, where, and the bytes of data, cut in two elements. */
interface Request {
  name: string;
  type: number;
  sector?: number;
  /** Device-readable data. */
  out?: Uint8Array;
  /** Bytes of device-writable data. */
  inBytes?: number;
}

const range = Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0);
const REQUESTS: Request[] = [
  { name: "read", type: IN, sector: 1, inBytes: 1024 },
  { name: "write", type: OUT, sector: 1, out: Uint8Array.from({ length: 1024 }, (_, i) => i * 5) },
  { name: "flush", type: FLUSH },
  { name: "get id", type: GET_ID, inBytes: 20 },
  { name: "get lifetime", type: GET_LIFETIME, inBytes: 20 },
  { name: "discard", type: DISCARD, out: range },
  { name: "write zeroes", type: WRITE_ZEROES, out: range },
  { name: "secure erase", type: SECURE_ERASE, out: range },
  { name: "unknown", type: 99, inBytes: 64 },
  { name: "read past the end", type: IN, sector: 1e6, inBytes: 1024 },
  { name: "read of half a sector", type: IN, inBytes: 256 },
  { name: "write past the end", type: OUT, sector: 1e6, out: new Uint8Array(512) },
  { name: "discard with half a range", type: DISCARD, out: range.subarray(0, 8) },
];

interface Result {
  /** Guest addresses that changed while the device ran. */
  changed: number[];
  /** The device-writable bytes afterwards, the status last. */
  writable: number[];
  /** The same bytes when the used index or flags were stored. */
  whenShown: number[];
  usedLength: number;
  disk: Uint8Array;
  /** Where the device may write. */
  allowed: [number, number][];
}

/** Sends one request to a fresh machine whose writable buffers hold `prior`; looks at memory around the notification. */
async function send(request: Request, packed: boolean, prior: number): Promise<Result> {
  const storage = new MemoryStorage(1 << 16);
  const machine = await Machine.start(new RawImage(storage), {
    device: { packed, secureErase: true, lifetime: { preEolInfo: 1, typA: 2, typB: 3 } },
    driver: { queueSize: 8, manualInterrupts: true, useIndirect: false },
    ramBytes: RAM_BYTES,
  });
  await machine.image.write(0, SegmentList.over(Uint8Array.from({ length: 8192 }, (_, i) => 1 + i % 251)));
  const { driver } = machine.guest;
  const { allocator } = driver;
  const slot = driver.take();
  driver.begin(slot, request.type, request.sector ?? 0);
  const { out, inBytes = 0 } = request;
  const writable: [number, number][] = [];
  const place = (lengthBytes: number, isWritable: boolean) => {
    // Two elements with other memory between them.
    for (const length of [Math.floor(lengthBytes / 3), lengthBytes - Math.floor(lengthBytes / 3)]) {
      const address = allocator.allocate(length);
      slot.addElement(address, length, isWritable);
      if (isWritable) writable.push([address, length]);
      else allocator.bytes(address, length).set(out!.subarray(0, length));
    }
  };
  if (out !== undefined) {
    const at = slot.count;
    place(out.byteLength, false);
    const third = slot.elements[at].length;
    allocator.bytes(slot.elements[at + 1].address, out.byteLength - third).set(out.subarray(third));
  }
  if (inBytes > 0) place(inBytes, true);
  driver.end(slot);
  writable.push([slot.statusAddress, 1]);
  const fill = () => writable.forEach(([address, length]) => allocator.bytes(address, length).fill(prior));
  const read = () => writable.flatMap(([address, length]) => [...allocator.bytes(address, length)]);

  const { ram } = allocator;
  let changed: number[] = [];
  let whenShown: number[] = [];
  const [queue] = driver.queues;
  const { desc, driver: driverArea, device } = queue.addresses;
  const shows = packed ? desc + 14 : device + USED_IDX;
  // The notification is where the driver ends and the device begins: it runs inside this write.
  machine.transport.write = (offset, width, value) => {
    fill();
    const before = ram.bytes.slice();
    const { store } = Atomics;
    Object.assign(Atomics, {
      store: (words: Uint16Array, index: number, word: number) => {
        if (ram.guestAddress + 2 * index === shows) whenShown = read();
        return store(words, index, word);
      },
    });
    try {
      MmioTransport.prototype.write.call(machine.transport, offset, width, value);
    } finally {
      Object.assign(Atomics, { store });
    }
    changed = [...before.entries()].filter(([i, byte]) => ram.bytes[i] !== byte).map(([i]) => ram.guestAddress + i);
  };
  let done: RequestSlot | undefined;
  driver.submit(slot, 0, (finished) => done = finished);
  driver.kick(0);
  machine.transport.write = MmioTransport.prototype.write;
  driver.poll();
  assert(done !== undefined, `${request.name}: the request is not done`);
  assert(driverArea > 0);
  const rings: [number, number][] = packed
    ? [[desc, 16], [device, packedSizes(8).device]]
    : [[device, splitSizes(8).device]];
  const disk = new Uint8Array(1 << 16);
  await storage.read(0, SegmentList.over(disk));
  const result = { changed, writable: read(), whenShown, usedLength: done.usedLength, disk };
  await machine.close();
  return { ...result, allowed: [...rings, ...writable] };
}

/** The addresses among `changed` that lie in none of the ranges. */
function outside(changed: readonly number[], ranges: readonly [number, number][]): number[] {
  return changed.filter((at) => !ranges.some(([from, length]) => at >= from && at < from + length));
}

for (const layout of ["split", "packed"] as const) {
  for (const request of REQUESTS) {
    Deno.test(`${layout} device: a ${request.name} request writes device-writable buffers, used buffers and the device area, and no other byte (VIRTIO 1.4 §2.7.5.1, §2.8.15)`, async () => {
      const { changed, allowed } = await send(request, layout === "packed", 0x5a);
      assert(changed.length > 0, "the comparison sees the used ring");
      assertEquals(outside(changed, allowed), []);
    });

    Deno.test(`${layout} device: a ${request.name} request writes all bytes of its used length, before the driver can see it used, whatever the buffer held (VIRTIO 1.4 §2.7.5.1, §2.7.8.2, §2.8.15)`, async () => {
      const [zeros, ones] = [
        await send(request, layout === "packed", 0),
        await send(request, layout === "packed", 0xff),
      ];
      assertEquals(zeros.usedLength, ones.usedLength);
      assert(zeros.usedLength >= 1 && zeros.usedLength <= zeros.writable.length, `used length ${zeros.usedLength}`);
      // A byte that was not written would be 0 in one run and 0xff in the other; one that depends on what the
      // device found there would differ too.
      const { usedLength } = zeros;
      assertEquals(zeros.writable.slice(0, usedLength), ones.writable.slice(0, usedLength));
      assertEquals(zeros.disk, ones.disk);
      for (const { whenShown, writable } of [zeros, ones]) {
        assertEquals(whenShown.slice(0, usedLength), writable.slice(0, usedLength));
      }
    });
  }
}

Deno.test("canary: a byte that changed outside the allowed ranges is seen", () => {
  assertEquals(outside([1, 5, 9, 10], [[0, 2], [9, 1]]), [5, 10]);
});
