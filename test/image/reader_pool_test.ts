import { assert, assertEquals, assertRejects } from "@std/assert";
import { COPY_CHUNK_BYTES, copyImages } from "../../src/image/copy.ts";
import { ReaderPool } from "../../src/image/reader_pool.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { Random } from "../random.ts";
import { firstDifference, Folder, readBytes, writeBytes } from "../storage/support.ts";

Deno.test("a pool reads on several threads what the image holds, in whatever order it is asked", async () => {
  using folder = new Folder();
  const random = new Random(1);
  const bytes = random.bytes(3 << 20);
  const path = folder.file("disk", bytes);
  const pool = (await ReaderPool.start(path, "raw", 2))!;
  try {
    const wanted = Array.from({ length: 20 }, () => {
      const offset = random.below(bytes.byteLength - COPY_CHUNK_BYTES);
      return { offset, lengthBytes: random.between(1, COPY_CHUNK_BYTES) };
    });
    await Promise.all(wanted.map(async ({ offset, lengthBytes }) => {
      const read = await pool.read(offset, lengthBytes);
      assertEquals(firstDifference(read, bytes.subarray(offset, offset + lengthBytes)), -1);
      pool.recycle(read);
    }));
    Deno.truncateSync(path, 1 << 20);
    await assertRejects(() => pool.read(2 << 20, 512));
  } finally {
    pool.close();
  }
});

Deno.test("there is no pool for what cannot be opened again", async () => {
  using folder = new Folder();
  assertEquals(await ReaderPool.start(folder.file("nothing"), "raw", 2), null);
});

Deno.test("a copy that is read ahead is written in order, and reads again what the reader could not", async () => {
  const random = new Random(2);
  const source = new RawImage(new MemoryStorage(20 << 20));
  await writeBytes(source, 0, random.bytes(20 << 20));
  const target = new RawImage(new MemoryStorage(20 << 20));
  let underWay = 0;
  const reader = {
    depth: 2,
    read: async (offset: number, lengthBytes: number) => {
      assert(++underWay <= 3);
      for (let turns = random.below(4); turns > 0; turns--) await new Promise((resolve) => setTimeout(resolve, 0));
      if (random.oneIn(3)) {
        underWay--;
        throw new Error("can't");
      }
      return await readBytes(source, offset, lengthBytes);
    },
    recycle: () => underWay--,
  };
  const done: number[] = [];
  const onProgress = (bytes: number) => done.push(bytes);
  await copyImages([source], target, { sparseBytes: 4096, targetIsZero: true, reader, onProgress });
  assertEquals(done, Array.from({ length: 10 }, (_, i) => (i + 1) * COPY_CHUNK_BYTES));
  assertEquals(firstDifference(await readBytes(target, 0, 20 << 20), await readBytes(source, 0, 20 << 20)), -1);
});
