/** Persistent bitmaps: what they note, when the file says so, and what becomes of those that break the format. */

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { Bitmap } from "../../../src/image/qcow2/bitmap.ts";
import { newEntry } from "../../../src/image/qcow2/bitmap_directory.ts";
import { PersistentBitmaps } from "../../../src/image/qcow2/bitmaps.ts";
import { checkQcow2 } from "../../../src/image/qcow2/check.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import { forSeedsAsync } from "../../random.ts";
import { failureOf } from "../../storage/support.ts";
import { filled, l2OffsetOf, type Made, make } from "./write_support.ts";

const K4 = 4096;
const IN_USE = 1;
const AUTO = 2;

/** An image of 64 clusters with an enabled bitmap `on` and a disabled one `off`. */
async function withBitmaps(sizeBytes = 64 * K4): Promise<Made> {
  const made = await make({ sizeBytes, clusterBytes: K4 });
  await edit(made, (bitmaps) => void bitmaps.add("off", 512, false));
  await edit(made, (bitmaps) => void bitmaps.add("on", 512));
  return made;
}

async function edit(made: Made, action: (bitmaps: PersistentBitmaps) => void): Promise<void> {
  await writing(made, (image) => image.editBitmaps(action));
}

async function writing(made: Made, action: (image: Qcow2Image) => unknown): Promise<void> {
  const image = await made.open();
  try {
    await action(image);
  } finally {
    await image.close();
  }
}

function bytesOf({ memory }: Made): Uint8Array {
  const bytes = new Uint8Array(memory.sizeBytes);
  memory.read(0, SegmentList.over(bytes));
  return bytes;
}

/** Where the entries of the directory are in the file: here none is longer than 32 bytes. */
async function entryOffsets({ memory }: Made): Promise<{ off: number; on: number }> {
  const { bitmaps } = await readHeader(memory);
  return { off: bitmaps!.offset, on: bitmaps!.offset + 32 };
}

async function flagsOf(made: Made): Promise<{ off: number; on: number }> {
  const { off, on } = await entryOffsets(made);
  const flags = (offset: number) => Number(made.u64(offset + 8) & 0xffff_ffffn);
  return { off: flags(off), on: flags(on) };
}

/** Ranges that a bitmap in the file has noted. */
async function noted({ memory }: Made, name = "on"): Promise<[offset: number, lengthBytes: number][]> {
  const bitmaps = await PersistentBitmaps.open(memory, await readHeader(memory));
  const ranges: [number, number][] = [];
  for await (const { offset, lengthBytes } of bitmaps.use(name).ranges()) ranges.push([offset, lengthBytes]);
  return ranges;
}

async function isClean({ memory }: Made): Promise<void> {
  const { leaks, corruptions, failure, findings } = await checkQcow2(memory, await readHeader(memory));
  assertEquals([leaks, corruptions, failure], [0, 0, null], findings.join("\n"));
}

Deno.test("an image that is opened for writing and not written keeps its bitmaps as they are", async () => {
  const made = await withBitmaps();
  const before = bytesOf(made);
  await writing(made, (image) => image.flush());
  assertEquals(bytesOf(made), before);
});

Deno.test("an enabled bitmap is in use from the first write to the end, and then has noted all of them", async () => {
  const made = await withBitmaps();
  await writing(made, async (image) => {
    await image.write(K4, filled(1, K4));
    assertEquals(await flagsOf(made), { off: 0, on: AUTO | IN_USE });
    await image.flush();
    assertEquals(await flagsOf(made), { off: 0, on: AUTO | IN_USE });
    await image.writeZeroes(8 * K4, 512, true);
    await image.discard(10 * K4, K4);
    await image.writeCompressed(20 * K4, filled(7, K4));
  });
  assertEquals(await flagsOf(made), { off: 0, on: AUTO });
  assertEquals(await noted(made), [[K4, K4], [8 * K4, 512], [10 * K4, K4], [20 * K4, K4]]);
  assertEquals(await noted(made, "off"), []);
  await isClean(made);
});

Deno.test("a disabled bitmap stays as and where it is, until the size of the disk changes", async () => {
  const made = await withBitmaps();
  await writing(made, (image) => image.write(0, filled(1, K4)));
  await edit(made, (bitmaps) => bitmaps.enable("off", true));
  await writing(made, (image) => image.write(0, filled(1, 512)));
  await edit(made, (bitmaps) => bitmaps.enable("off", false));
  const place = made.u64((await entryOffsets(made)).off);
  await writing(made, (image) => image.write(K4, filled(1, K4)));
  assertEquals(made.u64((await entryOffsets(made)).off), place);
  assertEquals(await noted(made, "off"), [[0, 512]]);
  await writing(made, (image) => image.resize(4096 * K4));
  assertEquals(await noted(made, "off"), [[0, 512]]);
  await writing(made, (image) => image.resize(512));
  assertEquals([await noted(made, "off"), await noted(made)], [[[0, 512]], [[0, 512]]]);
  await isClean(made);
});

Deno.test("a bitmap that was in use when the image was opened is kept as it is, and can't be used", async () => {
  const made = await withBitmaps();
  const { on } = await entryOffsets(made);
  made.setU64(on + 8, 1n << 32n | BigInt(AUTO | IN_USE));
  const before = bytesOf(made).subarray(on, on + 32).slice();
  await writing(made, (image) => image.write(0, filled(1, 512)));
  await edit(made, (bitmaps) => bitmaps.clear("off"));
  assertEquals(bytesOf(made).subarray((await entryOffsets(made)).on).subarray(0, 32), before);
  const { message } = await failureOf(() => edit(made, (bitmaps) => bitmaps.clear("on")));
  assertStringIncludes(message, "Bitmap 'on' is inconsistent and cannot be used");
  await writing(made, (image) => image.resize(8 * K4));
  assertEquals((await flagsOf(made)).on, AUTO | IN_USE);
  await edit(made, (bitmaps) => bitmaps.remove("on"));
  await edit(made, (bitmaps) => bitmaps.remove("off"));
  assertEquals((await readHeader(made.memory)).bitmaps, null);
  await isClean(made);
});

Deno.test("bitmaps that a program without them has left behind are forgotten by whoever writes, as in QEMU", async () => {
  const made = await withBitmaps();
  made.setU64(88, 0n);
  const readable = await made.open({ readOnly: true });
  await readable.close();
  assertEquals((await readHeader(made.memory)).extensions.length, 1);
  await writing(made, () => {});
  const header = await readHeader(made.memory);
  assertEquals([header.extensions.length, header.autoclear], [0, 0n]);
  assert((await checkQcow2(made.memory, header)).leaks > 0);
});

Deno.test("a snapshot that is applied changes all of the disk", async () => {
  const made = await withBitmaps();
  await writing(made, (image) => image.createSnapshot("s"));
  assertEquals(await noted(made), []);
  await writing(made, async (image) => {
    await image.write(0, filled(1, 512));
    await image.resize(16 * K4);
  });
  await writing(made, (image) => image.applySnapshot("s"));
  assertEquals(await noted(made), [[0, 64 * K4]]);
  assertEquals(await noted(made, "off"), []);
  await isClean(made);
});

Deno.test("a bitmap of a disk of 16 TiB that is written from end to end takes no space for what is all ones", async () => {
  const made = await make({ sizeBytes: 2 ** 44, clusterBytes: 65536 });
  await edit(made, (bitmaps) => void bitmaps.add("on", 65536));
  const before = made.memory.sizeBytes;
  await writing(made, (image) => image.discard(65536, 2 ** 44 - 65536));
  assertEquals(await noted(made), [[65536, 2 ** 44 - 65536]]);
  assert(made.memory.sizeBytes - before < 10 * 65536);
  await isClean(made);
});

Deno.test("what is written while bitmaps are changed is noted, or was there before", async () => {
  const made = await withBitmaps();
  await writing(made, async (image) => {
    await image.write(0, filled(1, 64 * K4));
    for (let i = 0; i < 20; i++) {
      const writes = [image.editBitmaps((bitmaps) => bitmaps.clear("on")), image.write(i * K4, filled(i, 512))];
      await Promise.all(i % 2 === 0 ? writes : writes.reverse());
    }
    await image.write(63 * K4, filled(1, 512));
  });
  // The last write came after the last time that the bitmap was cleared, or together with it.
  const ranges = await noted(made);
  assert(ranges.some(([offset]) => offset === 63 * K4));
  await isClean(made);
});

Deno.test("a write that waits while a bitmap is cleared is noted behind that", async () => {
  const made = await withBitmaps();
  const image = await made.open();
  await image.write(0, filled(1, 64 * K4));
  const entered = Promise.withResolvers<void>();
  const clear = Promise.withResolvers<void>();
  const cleared = image.editBitmaps(async (bitmaps) => {
    entered.resolve();
    await clear.promise;
    bitmaps.clear("on");
  });
  await entered.promise;
  const inPlace = image.write(5 * K4, filled(2, 512));
  const another = image.discard(6 * K4, K4);
  clear.resolve();
  await Promise.all([cleared, inPlace, another]);
  await image.close();
  assertEquals(await noted(made), [[5 * K4, 512], [6 * K4, K4]]);
});

Deno.test("bitmaps that can't be stored stay in use; the data are written, and nothing is lost but the bitmap", async () => {
  let failed = 0;
  for (let failing = 0; failing < 60; failing++) {
    const made = await withBitmaps();
    const image = await made.open();
    await image.write(K4, filled(9, K4));
    await image.flush();
    let count = 0;
    made.storage.hook = ({ kind, offset }) => {
      if (kind === "read" || count++ !== failing) return;
      throw new BlockError({ kind: "io", path: "disk", operation: "write", offset });
    };
    let error: unknown = null;
    try {
      await image.close();
    } catch (thrown) {
      error = thrown;
      failed++;
    }
    made.storage.hook = () => {};
    const header = await readHeader(made.memory);
    const { corruptions } = await checkQcow2(made.memory, header);
    assertEquals(corruptions, 0, `failing ${failing}`);
    const { on } = await flagsOf(made);
    assert(on === AUTO || (on === (AUTO | IN_USE) && error !== null), `failing ${failing}: flags ${on}`);
    if (on === AUTO) assertEquals(await noted(made), [[K4, K4]]);
    const again = await made.open();
    const data = new Uint8Array(K4);
    await again.read(K4, SegmentList.over(data));
    assertEquals(data, new Uint8Array(K4).fill(9));
    await again.close();
  }
  assert(failed > 8, `${failed}`);
});

Deno.test("a guest's write to where the directory is is refused", async () => {
  const made = await withBitmaps();
  await writing(made, (image) => image.write(0, filled(1, K4)));
  const { off } = await entryOffsets(made);
  made.setU64(l2OffsetOf(made), 1n << 63n | BigInt(off));
  const image = await made.open();
  const { message } = await failureOf(() => image.write(0, filled(2, K4)));
  assertStringIncludes(message, "overlaps with bitmap directory");
  await image.close();
});

/** What a directory or a table may say, and how opening the image for writing ends. */
const BROKEN: readonly (readonly [what: string, says: string, change: (made: Made, entry: number) => void])[] = [
  ["a table of no size", "doesn't satisfy the constraints", (made, at) => made.setU64(at + 8, 2n)],
  [
    "a table that is too large",
    "doesn't satisfy the constraints",
    (made, at) => made.setU64(at + 8, 0xffffffffn << 32n | 2n),
  ],
  ["a table at an odd place", "doesn't satisfy the constraints", (made, at) => made.setU64(at, 513n)],
  ["a table behind the end", "Could not read bitmap_table", (made, at) => made.setU64(at, 1n << 40n)],
  [
    "a table that is not as long as the disk",
    "its size is not that",
    (made, at) => made.setU64(at + 8, 2n << 32n | 2n),
  ],
  ["unknown flags", "doesn't satisfy the constraints", (made, at) => made.setU64(at + 8, 1n << 32n | 10n)],
  ["another type", "doesn't satisfy the constraints", (made, at) => made.setU64(at + 16, 0x0209_0002_0000_0000n)],
  [
    "a small granularity",
    "doesn't satisfy the constraints",
    (made, at) => made.setU64(at + 16, 0x0108_0002_0000_0000n),
  ],
  ["no name", "doesn't satisfy the constraints", (made, at) => made.setU64(at + 16, 0x0109_0000_0000_0002n)],
  [
    "a name that goes on behind the end",
    "Broken bitmap directory",
    (made, at) => made.setU64(at + 16, 0x0109_0402_0000_0000n),
  ],
  ["extra data that must be understood", "has extra data", (made, at) => {
    made.setU64(at + 16, 0x0109_0002_0000_0002n);
    made.setU64(at + 24, 0x7878_6f6e_0000_0000n);
  }],
  ["the name of another one", "already exists: off", (made, at) => {
    made.setU64(at + 16, 0x0109_0003_0000_0000n);
    made.setU64(at + 24, 0x6f66_6600_0000_0000n);
  }],
  [
    "an entry of the table with reserved bits",
    "Could not read bitmap_table",
    (made, at) => made.setU64(Number(made.u64(at)), 2n),
  ],
  [
    "an entry behind the end",
    "Could not read bitmap_table",
    (made, at) => made.setU64(Number(made.u64(at)), 1n << 40n),
  ],
  [
    "an offset that is all ones too",
    "Could not read bitmap_table",
    (made, at) => made.setU64(Number(made.u64(at)), 4097n),
  ],
];

for (const [what, says, change] of BROKEN) {
  Deno.test(`an image with a bitmap that has ${what} is not written, and read as any other`, async () => {
    const made = await withBitmaps();
    const { on } = await entryOffsets(made);
    change(made, on);
    const { message, kind } = await failureOf(() => made.open());
    assertStringIncludes(message, says);
    assert(kind === "corrupt" || kind === "unsupported");
    await (await made.open({ readOnly: true })).close();
  });
}

Deno.test("whatever the directory and the tables say, an image is written and closed, or refused (seeded)", async () => {
  const made = await withBitmaps();
  await writing(made, (image) => image.write(K4, filled(1, K4)));
  const sound = bytesOf(made);
  const { on, off } = await entryOffsets(made);
  const extension = new Uint8Array(sound.buffer).findIndex((_, at) => {
    return at % 8 === 0 && at < 512 && new DataView(sound.buffer).getUint32(at) === 0x23852875;
  });
  const seen = { written: 0, refused: 0 };
  await forSeedsAsync(600, 1, async (random) => {
    const memory = new MemoryStorage(0, { name: "disk.qcow2" });
    memory.write(0, SegmentList.over(sound));
    memory.close = () => {};
    for (let i = random.between(1, 3); i > 0; i--) {
      const table = Number(new DataView(sound.buffer).getBigUint64(random.pick([on, off])));
      const place = random.pick([off, on, on, table, extension]) + random.below(32);
      const value = random.pick([0, 1, 2, 0xff, random.below(256)]);
      memory.write(place, SegmentList.over(new Uint8Array([value])));
    }
    try {
      const image = await Qcow2Image.open(memory);
      try {
        await image.write(0, filled(2, 512));
        await image.editBitmaps((bitmaps) => bitmaps.slots.length > 0 && bitmaps.remove(bitmaps.slots[0].entry.name));
        await image.resize(8 * K4);
      } finally {
        await image.close();
      }
      seen.written++;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      seen.refused++;
    }
  });
  assert(seen.written > 100 && seen.refused > 100, JSON.stringify(seen));
});

Deno.test("extra data that need not be understood are kept with their bitmap", async () => {
  const made = await withBitmaps();
  const { on } = await entryOffsets(made);
  made.setU64(on + 8, 1n << 32n | BigInt(AUTO | 4));
  made.setU64(on + 16, 0x0109_0002_0000_0003n);
  made.setU64(on + 24, 0x787a_796f_6e00_0000n);
  await writing(made, (image) => image.write(0, filled(1, 512)));
  const { on: after } = await entryOffsets(made);
  assertEquals(made.u64(after + 8), 1n << 32n | BigInt(AUTO | 4));
  assertEquals([made.u64(after + 16), made.u64(after + 24)], [0x0109_0002_0000_0003n, 0x787a_796f_6e00_0000n]);
});

Deno.test("enabled bitmaps that would take more than 1 GiB of memory are refused, and so is a size that is too large", async () => {
  const made = await make({ sizeBytes: 2 ** 40, clusterBytes: 65536 });
  const image = await made.open();
  const { message } = await failureOf(() =>
    image.editBitmaps((bitmaps) => {
      for (let i = 0; i < 10; i++) bitmaps.add(`b${i}`, 1024);
    })
  );
  assertStringIncludes(message, "bytes of memory");
  await assertRejects(() => image.resize(2 ** 43), BlockError, "Too much space will be occupied by the bitmap");
  await image.close();
  const readable = await made.open({ readOnly: true });
  assertEquals(readable.sizeBytes, 2 ** 40);
  await readable.close();
});

Deno.test("a bitmap is what was set in it, whatever else was done to it (seeded)", async () => {
  await forSeedsAsync(40, 1, async (random) => {
    const granule = 512;
    let disk = 512 * random.between(1, 20_000);
    const bitmap = new Bitmap(new MemoryStorage(0), newEntry("b", 9, AUTO), 512, disk);
    let model = new Uint8Array(disk / granule);
    for (let i = 0; i < 30; i++) {
      const offset = random.below(disk);
      const length = Math.min(random.between(0, random.pick([600, 60_000, 3_000_000])), disk - offset);
      switch (random.below(8)) {
        case 0:
          bitmap.setAll();
          model.fill(1);
          break;
        case 1:
          bitmap.clear();
          model.fill(0);
          break;
        case 2: {
          disk = 512 * random.between(1, 20_000);
          bitmap.resize(disk);
          const next = new Uint8Array(disk / granule);
          next.set(model.subarray(0, next.length));
          model = next;
          break;
        }
        default:
          bitmap.set(offset, length);
          if (length > 0) model.fill(1, Math.floor(offset / granule), Math.ceil((offset + length) / granule));
      }
    }
    const found = new Uint8Array(model.length);
    for await (const { offset, lengthBytes } of bitmap.ranges()) {
      found.fill(1, offset / granule, Math.ceil((offset + lengthBytes) / granule));
    }
    assertEquals(found, model);
  });
});
