import { assertEquals } from "@std/assert";
import { close, ftruncate, memfdCreate, pageSizeBytes, pread, pwrite } from "../../src/host/libc.ts";
import { addressOf, Mapping } from "../../src/host/mapping.ts";
import { errorOf, openDescriptors, requiresLibc } from "./support.ts";

const test = (name: string, fn: () => void) => Deno.test({ name, ...requiresLibc(), fn });

/** A file in memory of which byte n is n. */
function counting(sizeBytes: number): number {
  const descriptor = memfdCreate("vblk-test", sizeBytes);
  pwrite(descriptor, Uint8Array.from({ length: sizeBytes }, (_, i) => i), 0);
  return descriptor;
}

test("a mapping shows the bytes of the file, and the file what is written there", () => {
  const descriptor = counting(10_000);
  using mapping = Mapping.ofFile(descriptor, { lengthBytes: 10_000 });
  assertEquals([...mapping.bytes.subarray(254, 258)], [254, 255, 0, 1]);
  mapping.bytes[9_999] = 77;
  const found = new Uint8Array(1);
  pread(descriptor, found, 9_999);
  assertEquals(found[0], 77);
  close(descriptor);
});

test("any offset and any length can be mapped: not of a page, not of 8 bytes", () => {
  const page = pageSizeBytes();
  const descriptor = counting(3 * page + 5);
  for (const offset of [0, 1, 7, page - 1, page, page + 3, 3 * page + 4]) {
    for (const lengthBytes of [1, 3, 8, page - 1, page + 1, 2 * page]) {
      if (offset + lengthBytes > 3 * page + 5) continue;
      using mapping = Mapping.ofFile(descriptor, { offset, lengthBytes });
      assertEquals(mapping.byteLength, lengthBytes);
      assertEquals([mapping.bytes[0], mapping.bytes[lengthBytes - 1]], [
        offset % 256,
        (offset + lengthBytes - 1) % 256,
      ]);
      assertEquals(mapping.address % page, offset % page);
    }
  }
  close(descriptor);
});

test("a range that does not lie in the file is refused, and nothing is mapped or left open", () => {
  const descriptor = counting(4096);
  const before = openDescriptors();
  const ranges = [[0, 4097], [4096, 1], [1, 4096], [2 ** 52, 1], [0, 0], [-1, 2], [0, 2 ** 53], [0.5, 1], [0, NaN]];
  for (const [offset, lengthBytes] of ranges) {
    const error = errorOf(() => Mapping.ofFile(descriptor, { offset, lengthBytes }));
    assertEquals(error instanceof RangeError, true, `${offset} ${lengthBytes}: ${error}`);
  }
  assertEquals(
    errorOf(() => Mapping.ofFile(descriptor, { lengthBytes: 4097 })).message,
    "cannot map 4097 bytes at offset 0 of a file that has 4096 bytes",
  );
  assertEquals(openDescriptors(), before);
  close(descriptor);
});

test("an unmapped mapping has no bytes, however many hold views of it", () => {
  const mapping = Mapping.anonymous(8192);
  const view = new Uint32Array(mapping.bytes.buffer);
  const part = mapping.bytes.subarray(100, 200);
  view[3] = 9;
  mapping.unmap();
  mapping.unmap();
  assertEquals([mapping.isMapped, mapping.byteLength, view.length, part.length, view[3]], [
    false,
    0,
    0,
    0,
    undefined as unknown as number,
  ]);
});

test("mapping and unmapping ten thousand times takes no memory", () => {
  const descriptor = memfdCreate("vblk-test", 1 << 20);
  const mapsBefore = mappings();
  for (let i = 0; i < 10_000; i++) {
    using mapping = Mapping.ofFile(descriptor, { lengthBytes: 1 << 20 });
    if (i % 1000 === 0) mapping.bytes[i] = 1;
  }
  // One for each would be 10000 more.
  const more = mappings() - mapsBefore;
  assertEquals(more < 100, true, `${more} more mappings`);
  close(descriptor);
});

/** How many mappings the process has. */
function mappings(): number {
  const { stdout } = new Deno.Command("cat", { args: [`/proc/${Deno.pid}/maps`] }).outputSync();
  return new TextDecoder().decode(stdout).split("\n").length;
}

test("the address of a buffer is where its bytes are, for small typed arrays too", () => {
  for (const sizeBytes of [1, 16, 64, 100, 100_000]) {
    const bytes = new Uint8Array(sizeBytes).fill(7);
    const address = addressOf(bytes.buffer);
    const pointer = Deno.UnsafePointer.create(BigInt(address))!;
    bytes[sizeBytes - 1] = 99;
    assertEquals(new Deno.UnsafePointerView(pointer).getUint8(sizeBytes - 1), 99);
    assertEquals(addressOf(bytes.buffer), address);
  }
});

test("a file that is cut after it was mapped is not mapped again where it ended", () => {
  const descriptor = counting(8192);
  ftruncate(descriptor, 4096);
  assertEquals(errorOf(() => Mapping.ofFile(descriptor, { lengthBytes: 8192 })) instanceof RangeError, true);
  close(descriptor);
});
