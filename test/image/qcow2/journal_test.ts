/** A process that is killed, and another that goes on: what was written is there, flushed or not. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { checkQcow2 } from "../../../src/image/qcow2/check.ts";
import type { Qcow2CreateOptions } from "../../../src/image/qcow2/create.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import type { JournalStore } from "../../../src/image/qcow2/journal.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { forSeedsAsync, type Random } from "../../random.ts";
import { failureOf, firstDifference, readBytes } from "../../storage/support.ts";
import { filled, make } from "./write_support.ts";

/** A journal in memory, which survives what is called a kill here. */
class KeptJournal implements JournalStore {
  bytes = new Uint8Array(0);

  read(): Uint8Array {
    return this.bytes;
  }

  append(bytes: Uint8Array): void {
    this.bytes = Uint8Array.from([...this.bytes, ...bytes]);
  }

  clear(): void {
    this.bytes = new Uint8Array(0);
  }
}

const SHAPES: readonly Omit<Qcow2CreateOptions, "sizeBytes">[] = [
  { clusterBytes: 512 },
  { clusterBytes: 4096 },
  { clusterBytes: 16384, extendedL2: true },
  { clusterBytes: 512, version: 2 },
  { clusterBytes: 1024, lazyRefcounts: true },
  { clusterBytes: 512, refcountBits: 64 },
];

async function step(image: Qcow2Image, model: Uint8Array, random: Random, clusterBytes: number): Promise<void> {
  const offset = 512 * random.below(model.byteLength / 512);
  const length = Math.min(512 * random.between(1, 40), model.byteLength - offset);
  const end = offset + length;
  switch (random.below(8)) {
    case 0:
      model.fill(0, offset, end);
      return await image.writeZeroes(offset, length, random.oneIn(2));
    case 1: {
      const start = Math.ceil(offset / clusterBytes) * clusterBytes;
      const stop = end === model.byteLength ? end : end - end % clusterBytes;
      if (start < stop) model.fill(0, start, stop);
      return await image.discard(offset, length);
    }
    case 2: {
      const start = offset - offset % clusterBytes;
      const whole = Math.min(clusterBytes, model.byteLength - start);
      const value = random.below(256);
      model.fill(value, start, start + whole);
      return await image.writeCompressed(start, filled(value, whole));
    }
    case 3:
      return random.oneIn(3) ? await image.flush() : undefined;
    case 4:
      if (random.oneIn(6)) await image.createSnapshot("s");
      return;
    default: {
      const value = random.between(1, 255);
      model.fill(value, offset, end);
      return await image.write(offset, filled(value, length));
    }
  }
}

Deno.test("an image whose process is killed again and again holds every write that had ended", async () => {
  await forSeedsAsync(60, 1, async (random) => {
    const shape = SHAPES[random.below(SHAPES.length)];
    const clusterBytes = shape.clusterBytes!;
    const made = await make({ ...shape, sizeBytes: 512 * random.between(64, 1024) });
    const journal = new KeptJournal();
    let image = await made.open({ journal });
    const model = new Uint8Array(image.sizeBytes);
    for (let life = 0; life < 4; life++) {
      for (let i = random.below(25); i > 0; i--) await step(image, model, random, clusterBytes);
      // Killed: nothing of the process is left but the file and the journal.
      image = await made.open({ journal });
      assertEquals(firstDifference(await readBytes(image, 0, model.byteLength), model), -1, `life ${life}`);
    }
    await image.close();
    assertEquals(journal.bytes.byteLength, 0);
    const { corruptions } = await checkQcow2(made.memory, await readHeader(made.memory));
    assertEquals(corruptions, 0);
    const reader = await made.open({ readOnly: true });
    assertEquals(firstDifference(await readBytes(reader, 0, model.byteLength), model), -1);
  });
});

Deno.test("a journal that is full, or that can't be written, gives way to a flush: it has a bound, and nothing is lost", async () => {
  for (const breaks of [false, true]) {
    const made = await make({ sizeBytes: 64 * 512, clusterBytes: 512 });
    const sizes: number[] = [];
    let keptBytes = 0;
    const journal: JournalStore = {
      read: () => new Uint8Array(0),
      append: ({ byteLength }) => {
        if (breaks) throw new BlockError({ kind: "no-space", path: "journal", operation: "write" });
        keptBytes += byteLength;
        sizes.push(keptBytes);
      },
      clear: () => keptBytes = 0,
    };
    const image = await made.open({ journal });
    // A note of 16 bytes for each; more than the bound in all.
    const changes = breaks ? 20 : 40_000;
    for (let i = 0; i < changes; i++) {
      await image.writeZeroes(0, 32 * 512, i % 2 === 0);
      if (breaks) await image.write(0, filled(i + 1, 512));
    }
    if (breaks) assertEquals((await readBytes(await made.open(), 0, 512))[0], changes);
    else assert(Math.max(...sizes.slice(-20_000)) <= (8 << 20) + 512, "it is bounded");
    assert(breaks || sizes.length === changes);
  }
});

Deno.test("without a journal the same loses what was not flushed (canary)", async () => {
  const made = await make({ sizeBytes: 64 * 4096, clusterBytes: 4096 });
  const image = await made.open();
  await image.write(0, filled(7, 4096));
  assertEquals((await readBytes(await made.open(), 0, 512))[0], 0);
});

Deno.test("a journal is not believed when somebody else has opened the image for writing in between", async () => {
  const made = await make({ sizeBytes: 64 * 4096, clusterBytes: 4096 });
  const journal = new KeptJournal();
  const image = await made.open({ journal });
  await image.write(0, filled(7, 4096));
  await (await made.open()).close();
  const after = await made.open({ journal });
  assertEquals((await readBytes(after, 0, 512))[0], 0);
  assertEquals(journal.bytes.byteLength, 0);
  await after.close();
});

Deno.test("a journal that does not fit is refused by name, and the image is not changed; half a note is no note", async () => {
  const made = await make({ sizeBytes: 64 * 4096, clusterBytes: 4096 });
  const journal = new KeptJournal();
  const image = await made.open({ journal });
  await image.write(0, filled(7, 4096));
  const note = journal.bytes.slice();
  const changes: readonly (readonly [at: number, value: number, says: string])[] = [
    [6, 0x01, "offset 256"],
    [1, 0xff, "offset"],
    [8 + 1, 0x7f, "an entry"],
    [15, 0x02, "an entry has reserved bits set"],
  ];
  for (const [at, value, says] of changes) {
    made.setU64(72, 1n);
    journal.bytes = note.slice();
    journal.bytes[at] = value;
    if (at === 6) journal.bytes[7] = 0;
    assertStringIncludes((await failureOf(() => made.open({ journal }))).message, says);
  }
  made.setU64(72, 1n);
  journal.bytes = note.slice(0, 15);
  const opened = await made.open({ journal });
  assertEquals((await readBytes(opened, 0, 512))[0], 0);
  opened.read(0, SegmentList.over(new Uint8Array(512)));
  await opened.close();
});
