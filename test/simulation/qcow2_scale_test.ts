/** Images with a virtual size of 16 TiB open, and are written, at the price of small ones. */

import { assert, assertEquals } from "@std/assert";
import { createQcow2 } from "../../src/image/qcow2/create.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { readBytes } from "../storage/support.ts";

/** What was done to a storage. */
interface Cost {
  operations: number;
  readBytes: number;
  pages: number;
}

const DATA = new Uint8Array(4096).fill(7);

/** Creates an image, then opens it and writes to both ends; the cost of opening alone, and of all. */
async function costsOf(sizeBytes: number, clusterBytes: number): Promise<{ open: Cost; all: Cost }> {
  const memory = new MemoryStorage(0, { name: "disk.qcow2" });
  await createQcow2(memory, { sizeBytes, clusterBytes });
  const cost = { operations: 0, readBytes: 0, pages: 0 };
  const now = () => ({ ...cost, pages: memory.pageCount });
  const storage = new FaultStorage(memory, ({ kind, lengthBytes }) => {
    cost.operations++;
    if (kind === "read") cost.readBytes += lengthBytes;
  });
  const image = await Qcow2Image.open(storage, { readOnly: false });
  const open = now();
  for (const offset of [0, sizeBytes - DATA.byteLength]) {
    await image.write(offset, SegmentList.over(DATA));
    assertEquals(await readBytes(image, offset, DATA.byteLength), DATA);
  }
  await image.discard(0, sizeBytes / 2);
  await image.flush();
  const all = now();
  assertEquals((await readBytes(image, sizeBytes - 512, 512))[0], 7);
  assert(image.l2Cache.usedBytes <= image.l2Cache.limitBytes);
  await image.close();
  return { open, all };
}

for (const [name, clusterBytes, mostBytes] of [["64 KiB", 65536, 1 << 20], ["2 MiB", 2 << 20, 12 << 20]] as const) {
  Deno.test(`an image of 16 TiB with clusters of ${name} opens and is written with as few operations as one of 1 GiB`, async () => {
    const small = await costsOf(2 ** 30, clusterBytes);
    const huge = await costsOf(2 ** 44, clusterBytes);
    // The second end has an L2 table of its own, the L1 table is longer, and a discard looks at all slices of a table.
    assert(huge.open.operations <= small.open.operations + 2, JSON.stringify([small.open, huge.open]));
    assert(huge.all.operations <= small.all.operations + 50, JSON.stringify([small.all, huge.all]));
    assert(huge.open.readBytes <= mostBytes && huge.all.readBytes <= 2 * mostBytes, JSON.stringify(huge));
    assert(huge.all.pages * 4096 <= 4 * mostBytes, JSON.stringify(huge));
  });
}
