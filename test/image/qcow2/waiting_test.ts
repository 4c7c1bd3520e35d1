/** Storages that take time, or fail: the same bytes, or S_IOERR. And those that do not: nothing waits. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import zlib from "node:zlib";
import { GuestIoError } from "../../../src/guest/guest_error.ts";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { Machine } from "../../../src/machine.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { Random } from "../../random.ts";
import { firstDifference, readBytes } from "../../storage/support.ts";
import { build, type Plan, storageOf } from "./build.ts";

const packed = new Uint8Array(zlib.deflateRawSync(new Uint8Array(512).fill(200)));

/** 300 clusters of 512 bytes: five L2 tables, with everything in them. */
const PLAN: Plan = {
  clusters: Array.from({ length: 300 }, (_, i) => {
    if (i % 7 === 3) return undefined;
    if (i % 7 === 4) return { entry: 1n };
    return i % 7 === 5 ? { data: packed, compressed: true } : { data: 1 + i % 255 };
  }),
};
const EXPECTED = new Uint8Array(300 * 512);
for (let i = 0; i < 300; i++) {
  const kind = i % 7;
  EXPECTED.fill(kind === 3 || kind === 4 ? 0 : kind === 5 ? 200 : 1 + i % 255, i * 512, i * 512 + 512);
}

Deno.test("a storage that takes time gives the same bytes and the same map, with any size of cache", async () => {
  const { bytes } = build(PLAN);
  const sound = await Qcow2Image.open(storageOf(bytes));
  for (const l2CacheBytes of [0, 1024, 32 << 20]) {
    const random = new Random(l2CacheBytes);
    const storage = storageOf(bytes);
    storage.hook = () => new Promise((resolve) => random.oneIn(2) ? queueMicrotask(resolve) : setTimeout(resolve, 0));
    const image = await Qcow2Image.open(storage, { l2CacheBytes });
    // Many at a time, so that they take each other's tables away.
    await Promise.all(Array.from({ length: 40 }, async () => {
      const offset = 512 * random.below(300);
      const length = 512 * random.between(1, Math.min(100, 300 - offset / 512));
      const found = await readBytes(image, offset, length);
      assertEquals(firstDifference(found, EXPECTED.subarray(offset, offset + length)), -1);
    }));
    assertEquals(await image.map(0, image.sizeBytes), await sound.map(0, image.sizeBytes));
    assert(image.l2Cache.usedBytes <= Math.max(512, l2CacheBytes));
    image.close();
  }
});

Deno.test("a lookup that hits the cache reads no table and waits for nothing; neither does its map", async () => {
  const storage = storageOf(build(PLAN).bytes);
  const seen: number[] = [];
  const image = await Qcow2Image.open(storage);
  await readBytes(image, 0, image.sizeBytes);
  const list = SegmentList.over(new Uint8Array(512));
  storage.hook = ({ offset }) => void seen.push(offset);
  for (let i = 0; i < 300; i++) {
    if (i % 7 === 5) continue; // compressed: its data are read again
    seen.length = 0;
    assertEquals(image.read(i * 512, list), undefined);
    // One operation for data, none for the mapping.
    assertEquals(seen.length, i % 7 === 3 || i % 7 === 4 ? 0 : 1, `cluster ${i}`);
  }
  seen.length = 0;
  assert(Array.isArray(image.map(0, image.sizeBytes)));
  assertEquals(seen, []);
});

Deno.test("with too small a cache tables are read again, and no more are held (canary)", async () => {
  const storage = storageOf(build(PLAN).bytes);
  const image = await Qcow2Image.open(storage, { l2CacheBytes: 512 });
  await readBytes(image, 0, image.sizeBytes);
  let count = 0;
  storage.hook = () => void count++;
  image.read(0, SegmentList.over(new Uint8Array(512)));
  assertEquals([count, image.l2Cache], [2, { usedBytes: 512, limitBytes: 512 }]);
});

Deno.test("clusters that follow each other in the file are read with one operation", async () => {
  const storage = storageOf(build({ clusters: Array.from({ length: 60 }, (_, i) => ({ data: i })) }).bytes);
  const image = await Qcow2Image.open(storage);
  const lengths: number[] = [];
  storage.hook = ({ lengthBytes }) => void lengths.push(lengthBytes);
  await readBytes(image, 512, 50 * 512);
  assertEquals(lengths, [512, 50 * 512]);
  assertEquals(await image.map(0, 60 * 512), [
    { guestOffset: 0, lengthBytes: 60 * 512, kind: "data", hostOffset: 2048 },
  ]);
});

for (const when of ["at once", "later"]) {
  Deno.test(`each operation of the storage may fail ${when}: S_IOERR, and the next read has the right bytes`, async () => {
    const { bytes } = build(PLAN);
    for (let failing = 0;; failing++) {
      const storage = storageOf(bytes);
      const image = await Qcow2Image.open(storage);
      const machine = await Machine.start(image, { ramBytes: 4 << 20, device: { readOnly: true } });
      let index = 0;
      storage.hook = ({ offset }) => {
        if (index++ !== failing) return when === "later" ? Promise.resolve() : undefined;
        const error = new BlockError({ kind: "io", path: "disk", operation: "read", offset });
        if (when === "later") return Promise.reject(error);
        throw error;
      };
      const read = () => machine.guest.read(0, 60 * 512 + 65 * 512);
      const operations = () => index;
      try {
        await read();
        await machine.close();
        // There were no more operations than that, and there were many.
        assert(operations() <= failing && failing > 30);
        break;
      } catch (error) {
        assert(error instanceof GuestIoError);
      }
      assertEquals(firstDifference(await read(), EXPECTED.subarray(0, 125 * 512)), -1);
      await machine.close();
    }
  });
}

Deno.test("each operation at opening may fail: the image does not open, and says why", async () => {
  const { bytes } = build(PLAN);
  for (const failing of [0, 1]) {
    const storage = storageOf(bytes);
    storage.hook = ({ index }) => {
      if (index === failing) throw new BlockError({ kind: "io", path: "disk", operation: "read" });
    };
    await assertRejects(() => Qcow2Image.open(storage), BlockError, "Input/output error");
  }
});
