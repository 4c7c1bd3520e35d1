import { assertEquals } from "@std/assert";
import { MemoryStorage, PAGE_BYTES } from "../../src/storage/memory.ts";
import { failureOf, readBytes, writeBytes } from "./support.ts";

const TIB = 2 ** 40;

/** A storage of 8 TiB with one byte in each of six pages. */
async function large(): Promise<MemoryStorage> {
  const storage = new MemoryStorage(8 * TIB);
  for (const offset of [0, 5 * PAGE_BYTES, TIB, TIB + 9, 2 * TIB + PAGE_BYTES, 4 * TIB, 8 * TIB - 1]) {
    await writeBytes(storage, offset, Uint8Array.of(1));
  }
  return storage;
}

/** Operations on it, and how many of its six pages they leave. */
const CASES: readonly (readonly [what: string, act: (storage: MemoryStorage) => unknown, pages: number])[] = [
  ["nothing", () => {}, 6],
  ["discard of one page", (storage) => storage.discard(5 * PAGE_BYTES, PAGE_BYTES), 5],
  ["discard of a part of a page", (storage) => storage.discard(TIB, 100), 6],
  ["discard of terabytes in the middle", (storage) => storage.discard(TIB, 3 * TIB), 4],
  ["zero up to the end", (storage) => storage.zero(TIB + 1, 7 * TIB - 1), 3],
  ["zero of everything", (storage) => storage.zero(0, 8 * TIB), 0],
  ["truncate to a part of a page", (storage) => storage.truncate(TIB + 1), 3],
  ["truncate to nothing", (storage) => storage.truncate(0), 0],
  ["truncate to more", (storage) => storage.truncate(9 * TIB), 6],
];

for (const [what, act, pages] of CASES) {
  Deno.test(`MemoryStorage gives back the pages that nobody needs, at once: ${what}`, async () => {
    const storage = await large();
    await act(storage);
    assertEquals(storage.pageCount, pages);
  });
}

Deno.test("MemoryStorage reads as zeros what a truncation cut off", async () => {
  const storage = await large();
  storage.truncate(TIB + 1);
  storage.truncate(8 * TIB);
  assertEquals([...await readBytes(storage, TIB, 10)], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  assertEquals([...await readBytes(storage, 8 * TIB - 1, 1)], [0]);
});

Deno.test("MemoryStorage makes no pages for what is only read, zeroed or discarded", async () => {
  const storage = new MemoryStorage(1 << 20);
  await readBytes(storage, 0, 1 << 20);
  storage.zero(100, 500_000);
  storage.discard(0, 1 << 20);
  assertEquals(storage.pageCount, 0);
});

Deno.test("MemoryStorage refuses to grow beyond what it can count", async () => {
  assertEquals(await failureOf(() => new MemoryStorage(512, { name: "mem:512" }).truncate(16 * TIB)), {
    kind: "invalid",
    message: "resize of 'mem:512': A disk in memory must be below 16 TiB",
    hint: undefined,
  });
});

Deno.test("MemoryStorage.cover() makes pages exist that are all one page of zeros until they are written", async () => {
  const storage = new MemoryStorage(8 * PAGE_BYTES);
  await writeBytes(storage, 0, new Uint8Array(8 * PAGE_BYTES).fill(1));
  storage.cover(PAGE_BYTES - 1, 3 * PAGE_BYTES + 2);
  await writeBytes(storage, 2 * PAGE_BYTES, Uint8Array.of(9));
  const expected = new Uint8Array(8 * PAGE_BYTES).fill(1).fill(0, PAGE_BYTES - 1, 4 * PAGE_BYTES + 1);
  expected[2 * PAGE_BYTES] = 9;
  assertEquals(await readBytes(storage, 0, 8 * PAGE_BYTES), expected);
  assertEquals(storage.pageCount, 8);
  storage.discard(0, 8 * PAGE_BYTES);
  storage.cover(8 * PAGE_BYTES + 100, PAGE_BYTES);
  assertEquals([storage.pageCount, storage.sizeBytes], [0, 9 * PAGE_BYTES + 100]);
});
