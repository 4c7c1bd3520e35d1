import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestAllocator, GuestMemoryError } from "../../src/guest/allocator.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { forSeeds } from "../random.ts";

const RAM_AT = 0x4_0000;
const RAM_BYTES = 0x1_0000;

function allocator(reserved?: number): GuestAllocator {
  return new GuestAllocator(new MemoryRegion(RAM_AT, new Uint8Array(RAM_BYTES).fill(0xa5)), reserved);
}

Deno.test("GuestAllocator never hands out the reserved start, nor a byte behind the end", () => {
  for (const reserved of [0, 64, 4096]) {
    const memory = allocator(reserved);
    assertEquals(memory.freeBytes, RAM_BYTES - reserved);
    const all = memory.allocate(RAM_BYTES - reserved);
    assertEquals([all, memory.freeBytes], [RAM_AT + reserved, 0]);
    assertThrows(() => memory.allocate(1), GuestMemoryError, "no 1 bytes of memory left (0 free); give it more RAM");
    memory.free(all);
    assertEquals(memory.freeBytes, RAM_BYTES - reserved);
  }
});

Deno.test("GuestAllocator.allocate() says how much is free when a piece is too large, and takes nothing", () => {
  const memory = allocator();
  const before = memory.freeBytes;
  assertThrows(() => memory.allocate(before + 1), GuestMemoryError, `(${before} free)`);
  assertEquals(memory.freeBytes, before);
});

Deno.test("GuestAllocator.free() refuses what was not allocated, and what was freed", () => {
  const memory = allocator();
  const address = memory.allocate(100);
  for (const wrong of [address + 1, address + 64, RAM_AT, 0]) {
    assertThrows(() => memory.free(wrong), RangeError, `guest address 0x${wrong.toString(16)} was not allocated`);
  }
  memory.free(address);
  assertThrows(() => memory.free(address), RangeError, "was not allocated");
});

Deno.test("GuestAllocator.allocateZeroed() clears what was there, and bytes() is the memory itself", () => {
  const memory = allocator();
  const address = memory.allocateZeroed(100);
  assertEquals(memory.bytes(address, 100), new Uint8Array(100));
  assertEquals(memory.bytes(address + 100, 1)[0], 0xa5);
  memory.bytes(address, 100)[5] = 7;
  assertEquals(memory.ram.bytes[address - RAM_AT + 5], 7);
});

Deno.test("GuestAllocator: pieces are aligned, never overlap, and merge back into one, over seeded runs", () => {
  forSeeds(20, 1, (random) => {
    const memory = allocator();
    const total = memory.freeBytes;
    const pieces: { address: number; lengthBytes: number }[] = [];
    // By byte of RAM: whether a piece holds it.
    const held = new Uint8Array(RAM_BYTES).fill(1, 0, 4096);
    for (let step = 0; step < 600; step++) {
      if (random.oneIn(2)) {
        const lengthBytes = random.pick([0, 1, 16, 63, 64, 65, random.below(9000)]);
        const alignment = random.pick([1, 2, 4, 16, 64, 128, 512, 4096]);
        let address: number;
        try {
          address = memory.allocate(lengthBytes, alignment);
        } catch (error) {
          assert(error instanceof GuestMemoryError);
          continue;
        }
        if (address % alignment !== 0) throw new Error(`0x${address.toString(16)} is not aligned to ${alignment}`);
        const from = address - RAM_AT;
        if (from + lengthBytes > RAM_BYTES) throw new Error("behind the end");
        if (held.subarray(from, from + lengthBytes).some((byte) => byte !== 0)) throw new Error("pieces overlap");
        held.fill(1, from, from + lengthBytes);
        pieces.push({ address, lengthBytes });
      } else if (pieces.length > 0) {
        const { address, lengthBytes } = pieces.splice(random.below(pieces.length), 1)[0];
        memory.free(address);
        held.fill(0, address - RAM_AT, address - RAM_AT + lengthBytes);
      }
    }
    for (const { address } of random.shuffle(pieces)) memory.free(address);
    assertEquals(memory.freeBytes, total);
    // One piece again: everything can be had at once.
    assertEquals(memory.allocate(total), RAM_AT + 4096);
  });
});
