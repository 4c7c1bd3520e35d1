import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { MemoryRegion } from "../../src/memory/region.ts";
import { forSeeds } from "../random.ts";

Deno.test("MemoryRegion refuses addresses that a number cannot hold exactly, and bytes that words cannot cover", () => {
  const bytes = new Uint8Array(16);
  for (const address of [-1, 0.5, 2 ** 53, NaN, Infinity]) {
    assertThrows(() => new MemoryRegion(address, bytes), RangeError, "not a whole number below 2^53");
  }
  assertThrows(() => new MemoryRegion(2 ** 53 - 8, bytes), RangeError, "16 bytes at 9007199254740984 end above 2^53");
  assertThrows(() => new MemoryRegion(0, bytes.subarray(1)), RangeError, "even offset");
});

Deno.test("MemoryRegion: bytes, view and words are the same memory, at an offset of the buffer too", () => {
  const buffer = new Uint8Array(32);
  const region = new MemoryRegion(0x1000, buffer.subarray(6, 17));
  assertEquals([region.sizeBytes, region.words.length], [11, 5]);
  region.words[1] = 0x1234;
  assertEquals(region.view.getUint16(2, true), 0x1234);
  assertEquals([...region.bytes.subarray(2, 4)], [0x34, 0x12]);
  assertEquals([...buffer.subarray(8, 10)], [0x34, 0x12]);
});

Deno.test("MemoryRegion: words reach the end of a region of more than 4 GiB", () => {
  // Untouched pages of a zeroed buffer cost nothing, so this needs address space, not memory.
  const sizeBytes = 5 * 2 ** 30;
  const region = new MemoryRegion(0, new Uint8Array(sizeBytes));
  assertEquals(region.words.length, sizeBytes / 2);
  Atomics.store(region.words, sizeBytes / 2 - 1, 0xabcd);
  assertEquals(region.view.getUint16(sizeBytes - 2, true), 0xabcd);
  assertEquals([...region.slice(sizeBytes - 2, 2)], [0xcd, 0xab]);
});

Deno.test("MemoryRegion.slice() gives the range that was asked for, whatever its cache holds", () => {
  const region = new MemoryRegion(0, new Uint8Array(1 << 20));
  forSeeds(4, 1, (random) => {
    // Few offsets that share cache slots, with several lengths each, so that hits, misses and near-hits all occur.
    const offsets = Array.from({ length: 40 }, () => random.below(200) * random.pick([1, 32, 4096]));
    const lengths = [0, 1, 16, 512, 4096, random.below(9000)];
    for (let i = 0; i < 20_000; i++) {
      const [offset, length] = [random.pick(offsets), random.pick(lengths)];
      const view = region.slice(offset, length);
      if (view.byteOffset !== offset || view.byteLength !== length || view.buffer !== region.bytes.buffer) {
        throw new Error(`slice(${offset}, ${length}) is ${view.byteLength} bytes at ${view.byteOffset}`);
      }
    }
  });
});

Deno.test("MemoryRegion.slice() makes no new view when the same range is asked for again", () => {
  const region = new MemoryRegion(0, new Uint8Array(8192));
  assertStrictEquals(region.slice(4096, 512), region.slice(4096, 512));
});
