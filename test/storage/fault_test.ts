import { assertEquals } from "@std/assert";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import { FaultStorage, type StorageOperation } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { failureOf, readBytes, writeBytes } from "./support.ts";

Deno.test("FaultStorage shows each operation to its hook, counted, before it happens", async () => {
  const seen: StorageOperation[] = [];
  const inner = new MemoryStorage(4096, { name: "inner" });
  const storage = new FaultStorage(inner, (operation) => {
    seen.push(operation);
    if (operation.kind === "write") assertEquals(inner.pageCount, 0);
  });
  await writeBytes(storage, 512, new Uint8Array(100).fill(1));
  await readBytes(storage, 0, 10);
  await storage.zero(0, 20, false);
  await storage.discard(4, 30);
  await storage.flush();
  await storage.truncate(8192);
  assertEquals(seen, [
    { index: 0, kind: "write", offset: 512, lengthBytes: 100 },
    { index: 1, kind: "read", offset: 0, lengthBytes: 10 },
    { index: 2, kind: "zero", offset: 0, lengthBytes: 20 },
    { index: 3, kind: "discard", offset: 4, lengthBytes: 30 },
    { index: 4, kind: "flush", offset: 0, lengthBytes: 0 },
    { index: 5, kind: "truncate", offset: 0, lengthBytes: 8192 },
  ]);
  assertEquals([storage.name, storage.readOnly, storage.sizeBytes], ["inner", false, 8192]);
});

const FULL = new BlockError({ kind: "no-space", path: "inner", operation: "write", offset: 0 });

for (
  const [how, hook] of [
    ["throws", () => {
      throw FULL;
    }],
    ["rejects", () => Promise.reject(FULL)],
  ] as const
) {
  Deno.test(`FaultStorage fails an operation, and leaves the disk as it was, when its hook ${how}`, async () => {
    const storage = new FaultStorage(new MemoryStorage(512), hook);
    const failure = await failureOf(() => storage.write(0, SegmentList.over(Uint8Array.of(1, 2, 3))));
    assertEquals(failure.kind, "no-space");
    assertEquals(failure.message, "write of 'inner' at offset 0: No space left on device");
    storage.hook = () => {};
    assertEquals([...await readBytes(storage, 0, 3)], [0, 0, 0]);
  });
}

Deno.test("FaultStorage holds an operation back for as long as its hook says", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  const inner = new MemoryStorage(512);
  const storage = new FaultStorage(inner, () => promise);
  const write = writeBytes(storage, 0, Uint8Array.of(5));
  assertEquals([...await readBytes(inner, 0, 1)], [0]);
  resolve();
  await write;
  assertEquals([...await readBytes(inner, 0, 1)], [5]);
});
