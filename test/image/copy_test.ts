import { assert, assertEquals } from "@std/assert";
import { copyImages, type CopyOptions } from "../../src/image/copy.ts";
import { CopyError } from "../../src/image/copy_source.ts";
import { type CompressedTarget, copyCompressed, wholeClusters } from "../../src/image/copy_compressed.ts";
import { BlockError, type Extent, type Image } from "../../src/image/image.ts";
import { compressBatch } from "../../src/image/qcow2/compress_batch.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { RateLimit } from "../../src/image/rate_limit.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { forSeedsAsync, type Random } from "../random.ts";
import { firstDifference, readBytes, writeBytes } from "../storage/support.ts";

const SPARSE: CopyOptions = { sparseBytes: 4096, targetIsZero: true };

/** A disk in memory that remembers which ranges were written, and zeroed. */
class Recorder extends RawImage {
  readonly log: string[] = [];

  constructor(sizeBytes: number) {
    super(new MemoryStorage(sizeBytes));
  }

  override write(offset: number, from: SegmentList) {
    this.log.push(`write ${offset} ${from.byteLength}`);
    return super.write(offset, from);
  }

  override writeZeroes(offset: number, lengthBytes: number, mayUnmap: boolean) {
    this.log.push(`zero ${offset} ${lengthBytes}`);
    return super.writeZeroes(offset, lengthBytes, mayUnmap);
  }
}

/** A disk with runs of data and zeros of all lengths. */
async function patchy(random: Random, sizeBytes: number): Promise<RawImage> {
  const image = new RawImage(new MemoryStorage(sizeBytes));
  for (let at = 0; at < sizeBytes;) {
    const length = Math.min(random.pick([1, 512, 4096, 5000, 65536, 300_000]), sizeBytes - at);
    if (random.oneIn(2)) await writeBytes(image, at, random.bytes(length));
    at += length;
  }
  return image;
}

Deno.test("a copy of one or several disks holds what they hold, whatever is left out", async () => {
  await forSeedsAsync(15, 1, async (random) => {
    const sources: Image[] = [];
    for (let i = random.between(1, 3); i > 0; i--) sources.push(await patchy(random, 512 * random.between(1, 6000)));
    const total = sources.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const target = new Recorder(total);
    const targetIsZero = random.oneIn(2);
    if (!targetIsZero) await writeBytes(target, 0, random.bytes(total));
    await copyImages(sources, target, {
      sparseBytes: random.pick([0, 512, 4096, 65536, 1 << 20]),
      targetIsZero,
      unitBytes: random.pick([undefined, 512, 65536, 2 << 20]),
    });
    let start = 0;
    for (const source of sources) {
      const [a, b] = [await readBytes(source, 0, source.sizeBytes), await readBytes(target, start, source.sizeBytes)];
      assertEquals(firstDifference(a, b), -1);
      start += source.sizeBytes;
    }
  });
});

Deno.test("so many zeros in a row as -S says are left out, fewer are written, and with 0 everything is", async () => {
  const source = new RawImage(new MemoryStorage(1 << 20));
  await writeBytes(source, 0, new Uint8Array(4096).fill(1));
  await writeBytes(source, 16384, new Uint8Array(4096).fill(2));
  const cases: [sparseBytes: number, log: string[]][] = [
    [4096, ["write 0 4096", "write 16384 4096"]],
    [12288, ["write 0 4096", "write 16384 4096"]],
    [16384, ["write 0 20480"]],
    [0, ["write 0 1048576"]],
  ];
  for (const [sparseBytes, log] of cases) {
    const target = new Recorder(1 << 20);
    await copyImages([source], target, { sparseBytes, targetIsZero: true });
    assertEquals(target.log, log);
  }
});

Deno.test("a target that holds something gets its zeros", async () => {
  const source = new RawImage(new MemoryStorage(1 << 20));
  await writeBytes(source, 4096, new Uint8Array(4096).fill(1));
  const target = new Recorder(1 << 20);
  await copyImages([source], target, { sparseBytes: 4096, targetIsZero: false });
  assertEquals(target.log, ["zero 0 4096", "write 4096 4096", "zero 8192 1040384"]);
});

Deno.test("data are written in whole units of the target", async () => {
  const source = new RawImage(new MemoryStorage(1 << 20));
  await writeBytes(source, 70_000, new Uint8Array(100).fill(1));
  const target = new Recorder(1 << 20);
  await copyImages([source], target, { ...SPARSE, unitBytes: 65536 });
  assertEquals(target.log, ["write 65536 65536"]);
});

/** A disk that cannot be read at some sectors, or not be written. */
function broken(kind: "read" | "write", at: number): Image {
  return new RawImage(
    new FaultStorage(new MemoryStorage(1 << 20), ({ kind: what, offset, lengthBytes }) => {
      if (what === kind && offset <= at && at < offset + lengthBytes) {
        throw new BlockError({ kind: "io", path: "disk", operation: kind });
      }
    }),
  );
}

async function copyFailure(action: () => Promise<void>): Promise<[string, number]> {
  try {
    await action();
  } catch (error) {
    if (error instanceof CopyError) return [error.side, error.offset];
    throw error;
  }
  throw new Error("nothing failed");
}

Deno.test("a failure says on which side it was, and where on the target's disk", async () => {
  const good = new RawImage(new MemoryStorage(1 << 20));
  await writeBytes(good, 0, new Uint8Array(1 << 20).fill(1));
  assertEquals(
    await copyFailure(() => copyImages([good, broken("read", 5000)], new Recorder(2 << 20), SPARSE)),
    ["read", 1 << 20],
  );
  assertEquals(await copyFailure(() => copyImages([good], broken("write", 5000), SPARSE)), ["write", 0]);
});

Deno.test("salvaging makes zeros of just the sectors that cannot be read, and tells of each", async () => {
  const source = broken("read", 5000);
  await writeBytes(source, 0, new Uint8Array(1 << 20).fill(7));
  const target = new Recorder(1 << 20);
  const told: number[] = [];
  await copyImages([source], target, { ...SPARSE, onUnreadable: (offset) => told.push(offset) });
  assertEquals(told, [4608]);
  const expected = new Uint8Array(1 << 20).fill(7).fill(0, 4608, 5120);
  assertEquals(firstDifference(await readBytes(target, 0, 1 << 20), expected), -1);
});

/** A target with clusters that remembers what it was given, in order. */
class CompressedRecorder extends Recorder implements CompressedTarget {
  readonly data = new Map<number, Uint8Array>();

  writeCompressedCluster(guestOffset: number, data: Uint8Array): void {
    this.log.push(`compressed ${guestOffset}`);
    this.data.set(guestOffset, data.slice());
  }
}

Deno.test("batches that are compressed out of order are written in order, and only so many are under way", async () => {
  const clusterBytes = 65536;
  await forSeedsAsync(10, 1, async (random) => {
    const source = await patchy(random, 512 * random.between(1, 20_000));
    const target = new CompressedRecorder(source.sizeBytes);
    let underWay = 0;
    let most = 0;
    const compressor = {
      depth: 3,
      compress: async (batch: Parameters<typeof compressBatch>[0]) => {
        most = Math.max(most, ++underWay);
        for (let turns = random.below(5); turns > 0; turns--) await new Promise((resolve) => setTimeout(resolve, 0));
        underWay--;
        // Stands for a compressor: clusters that begin with an even byte get smaller, by a byte.
        return compressBatch(batch, (cluster) => cluster[0] % 2 === 0 ? cluster.slice(1) : null);
      },
    };
    await copyCompressed([source], target, clusterBytes, compressor, SPARSE);
    assert(most <= 4);
    const offsets = target.log.map((line) => Number(line.split(" ")[1]));
    assertEquals(offsets, offsets.toSorted((a, b) => a - b));
    for (let at = 0; at < source.sizeBytes; at += clusterBytes) {
      const length = Math.min(clusterBytes, source.sizeBytes - at);
      const cluster = await readBytes(source, at, length);
      const data = target.data.get(at);
      if (data !== undefined) {
        const padded = new Uint8Array(clusterBytes);
        padded.set(cluster);
        assertEquals(firstDifference(data, padded.subarray(1)), -1);
      } else assertEquals(firstDifference(await readBytes(target, at, length), cluster), -1);
    }
  });
});

Deno.test("clusters with something of several kinds are data as a whole", async () => {
  const kinds = ["data", "zero", "behind"] as const;
  await forSeedsAsync(200, 1, async (random) => {
    const total = random.between(1, 60);
    const cells = Array.from({ length: total }, (_, i) => kinds[i % 3]);
    for (let i = 1; i < total; i++) if (!random.oneIn(4)) cells[i] = cells[i - 1];
    async function* runs() {
      for (let from = 0; from < total;) {
        let to = from + 1;
        while (to < total && cells[to] === cells[from]) to++;
        yield { offset: from, lengthBytes: to - from, kind: cells[from] };
        from = to;
      }
    }
    const found: string[] = [];
    for await (const { offset, lengthBytes, kind } of wholeClusters(runs(), 4, total)) {
      assertEquals([offset % 4, offset], [0, found.length]);
      for (let i = 0; i < lengthBytes; i++) found.push(kind);
    }
    const expected = cells.map((_, i) => {
      const cluster = new Set(cells.slice(i - i % 4, i - i % 4 + 4));
      return cluster.size === 1 ? cells[i] : "data";
    });
    assertEquals(found, expected);
  });
});

Deno.test("a rate limit lets as much time pass as the bytes take", async () => {
  const clock = { time: 0, slept: [] as number[] };
  const rate = new RateLimit(1000, {
    now: () => clock.time,
    sleep: (milliseconds) => {
      clock.slept.push(milliseconds);
      clock.time += milliseconds;
      return Promise.resolve();
    },
  });
  await rate.spend(500);
  clock.time += 2000;
  await rate.spend(500);
  await rate.spend(2000);
  assertEquals(clock.slept, [500, 500]);
});

Deno.test("a map that cannot be had fails a copy, and not a salvage", async () => {
  class Unmapped extends RawImage {
    override map(offset: number, lengthBytes: number): Extent[] {
      if (offset === 0 && lengthBytes > 0) throw new BlockError({ kind: "corrupt", path: "disk", operation: "read" });
      return [];
    }
  }
  const source = new Unmapped(new MemoryStorage(1 << 20));
  await writeBytes(source, 0, new Uint8Array(1 << 20).fill(1));
  const target = new Recorder(1 << 20);
  assertEquals(await copyFailure(() => copyImages([source], target, SPARSE)), ["map", 0]);
  await copyImages([source], target, { ...SPARSE, onUnreadable: () => {} });
  assertEquals(firstDifference(await readBytes(target, 0, 1 << 20), await readBytes(source, 0, 1 << 20)), -1);
});
