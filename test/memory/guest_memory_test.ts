import { assert, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { checkedU64, GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";

/** Two adjacent regions, a hole, and a third one. */
const LAYOUT: [from: number, sizeBytes: number][] = [[4, 6], [10, 3], [16, 8]];
const END = 30;

/** The memory of LAYOUT; each byte holds its own guest address. */
function smallMemory(): GuestMemory {
  const regions = LAYOUT.map(([from, size]) =>
    new MemoryRegion(from, Uint8Array.from({ length: size }, (_, i) => from + i))
  );
  // The order of the arguments does not matter.
  return new GuestMemory([regions[2], regions[0], regions[1]]);
}

/** What an address range is, byte by byte: its addresses, or `null` when one of them is in a hole. */
function bytesOf(from: number, lengthBytes: number): number[] | null {
  const addresses = Array.from({ length: lengthBytes }, (_, i) => from + i);
  return addresses.every((at) => LAYOUT.some(([start, size]) => at >= start && at < start + size)) ? addresses : null;
}

/** The bytes that a list describes, in order. */
function bytesIn(list: SegmentList): number[] {
  return Array.from({ length: list.count }, (_, i) => [...list.viewOf(i)]).flat();
}

/** Calls `visit` with each range that begins and ends below END. */
function eachRange(visit: (from: number, lengthBytes: number) => void): void {
  for (let from = 0; from < END; from++) {
    for (let length = 0; from + length <= END; length++) visit(from, length);
  }
}

Deno.test("GuestMemory refuses no region and overlapping ones, and takes adjacent ones in any order", () => {
  assertThrows(() => new GuestMemory([]), RangeError, "needs at least one region");
  const region = (from: number, size: number) => new MemoryRegion(from, new Uint8Array(size));
  assertThrows(() => new GuestMemory([region(8, 8), region(0, 9)]), RangeError, "overlap at address 0x8");
  const memory = new GuestMemory([region(8, 8), region(0, 8)]);
  assertEquals(memory.regions.map(({ guestAddress }) => guestAddress), [0, 8]);
});

Deno.test("GuestMemory.allocate() makes one zeroed region", () => {
  const memory = GuestMemory.allocate(64, 0x1000);
  assertEquals(memory.regions.map(({ guestAddress, sizeBytes }) => [guestAddress, sizeBytes]), [[0x1000, 64]]);
  assertEquals(memory.regions[0].bytes, new Uint8Array(64));
});

Deno.test("GuestMemory.regionAt() and regionHolding() agree with a byte-by-byte model for every small range", () => {
  const memory = smallMemory();
  eachRange((from, length) => {
    const index = LAYOUT.findIndex(([start, size]) => from >= start && from < start + size);
    const region = index < 0 ? null : memory.regions[index];
    assertStrictEquals(memory.regionAt(from), region, `address ${from}`);
    const holds = region !== null && from + length <= region.guestAddress + region.sizeBytes;
    assertStrictEquals(memory.regionHolding(from, length), holds ? region : null, `${length} bytes at ${from}`);
  });
});

Deno.test("GuestMemory.translate() finds exactly the bytes of every small range, over adjacent regions too", () => {
  const memory = smallMemory();
  eachRange((from, length) => {
    const list = new SegmentList();
    const expected = bytesOf(from, length);
    const what = `${length} bytes at ${from}`;
    assertEquals(memory.translate(list, from, length), expected !== null, what);
    assertEquals(bytesIn(list), expected ?? [], what);
    assertEquals(list.byteLength, expected === null ? 0 : length, what);
  });
});

Deno.test("GuestMemory.translate() leaves the list as it was when a byte is not mapped", () => {
  const memory = smallMemory();
  const list = new SegmentList();
  memory.translate(list, 8, 4);
  for (const [from, length] of [[9, 5], [12, 5], [0, 5], [23, 2], [0, 30]]) {
    assert(!memory.translate(list, from, length));
    assertEquals(bytesIn(list), [8, 9, 10, 11]);
    assertEquals(list.count, 2);
  }
});

Deno.test("GuestMemory maps no address of 2^53 and more, and no length makes an address wrap", () => {
  const top = Number.MAX_SAFE_INTEGER;
  const memory = new GuestMemory([
    new MemoryRegion(0, new Uint8Array(16)),
    new MemoryRegion(top - 16, new Uint8Array(16)),
  ]);
  const list = new SegmentList();
  for (const length of [1, 2, 16, 0xffffffff]) {
    assert(!memory.translate(list, Infinity, length));
    assert(!memory.translate(list, top, length));
    assert(!memory.read(Infinity, new Uint8Array(Math.min(length, 16))));
    assertEquals(memory.regionHolding(Infinity, length), null);
  }
  // The last byte is there; one more would be 2^53 - 1, and 2^32 - 1 more would be above 2^53.
  assert(memory.translate(list, top - 1, 1));
  assert(!memory.translate(list, top - 1, 2));
  assert(!memory.translate(list, top - 16, 0xffffffff));
  assertEquals(list.byteLength, 1);
});

Deno.test("GuestMemory: a range of no bytes is mapped wherever it is, and is no segment", () => {
  const memory = smallMemory();
  const list = new SegmentList();
  for (const address of [0, 4, 13, 23, 1e15, Infinity]) assert(memory.translate(list, address, 0));
  assertEquals([list.count, list.byteLength], [0, 0]);
});

Deno.test("GuestMemory.read() and write() move exactly the bytes of every small range, and write() all or none", () => {
  eachRange((from, length) => {
    const memory = smallMemory();
    const what = `${length} bytes at ${from}`;
    const expected = bytesOf(from, length);
    const target = new Uint8Array(length);
    assertEquals(memory.read(from, target), expected !== null, what);
    if (expected !== null) assertEquals([...target], expected, what);
    const source = Uint8Array.from({ length }, (_, i) => 200 + i);
    assertEquals(memory.write(from, source), expected !== null, what);
    for (const region of memory.regions) {
      const bytes = [...region.bytes].map((_, i) => {
        const at = region.guestAddress + i;
        return expected !== null && at >= from && at < from + length ? 200 + at - from : at;
      });
      assertEquals([...region.bytes], bytes, what);
    }
  });
});

Deno.test("checkedU64() joins the halves up to 2^53 - 1, and makes everything above Infinity", () => {
  const cases: [low: number, high: number, value: number][] = [
    [0, 0, 0],
    [0xffffffff, 0, 0xffffffff],
    [0, 1, 2 ** 32],
    [0xffffffff, 0x1fffff, Number.MAX_SAFE_INTEGER],
    [0, 0x200000, Infinity],
    [0, 0x80000000, Infinity],
    [0xffffffff, 0xffffffff, Infinity],
  ];
  for (const [low, high, value] of cases) assertStrictEquals(checkedU64(low, high), value);
});
