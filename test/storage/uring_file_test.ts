import { assert, assertEquals } from "@std/assert";
import { HostError } from "../../src/host/errno.ts";
import { openDescriptors } from "../host/support.ts";
import { Mapping } from "../../src/host/mapping.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { MOST_IOVECS } from "../../src/storage/uring_iovecs.ts";
import { failure } from "../../src/storage/uring_transfer.ts";
import { UringEngine } from "../../src/storage/uring_engine.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { forSeedsAsync } from "../random.ts";
import { failureOf, firstDifference, Folder, randomBytes, readBytes, requiresMount, SmallDisk } from "./support.ts";
import { requiresUring } from "./uring_support.ts";

/** A test that must leave the same descriptors open as it found. */
function test(name: string, fn: (folder: Folder) => Promise<void> | void): void {
  Deno.test({
    name,
    ...requiresUring(),
    async fn() {
      using folder = new Folder();
      const before = openDescriptors();
      await fn(folder);
      assertEquals(openDescriptors(), before, "descriptors leaked");
    },
  });
}

const KINDS = [{ direct: false, what: "" }, { direct: true, what: " past the page cache" }];

for (const { direct, what } of KINDS) {
  test(`operations that overlap in time${what} end as if each had been alone`, async (folder) => {
    await forSeedsAsync(4, 1, async (random) => {
      const model = randomBytes(random, 200_000);
      const path = folder.file(`disk${random.below(1e9)}`, model);
      const storage = UringFileStorage.open(path, { direct });
      for (let round = 0; round < 12; round++) {
        const waiting: (void | Promise<void>)[] = [];
        const reads: { found: Uint8Array; offset: number }[] = [];
        // Slices of the disk that do not touch: each operation has one, of any length, at any offset.
        const width = 4000 + random.below(9000);
        for (let at = 0; at + width < 230_000; at += width) {
          const offset = at + random.below(600);
          const length = 1 + random.below(width - 600);
          const kind = random.below(5);
          if (kind < 2 && offset + length <= storage.sizeBytes) {
            const found = new Uint8Array(length);
            reads.push({ found, offset });
            waiting.push(storage.read(offset, SegmentList.over(found)));
          } else if (kind < 4 && offset + length <= model.length) {
            const data = randomBytes(random, length);
            model.set(data, offset);
            waiting.push(storage.write(offset, SegmentList.over(data)));
          } else if (offset + length <= model.length) {
            model.fill(0, offset, offset + length);
            waiting.push(kind === 4 ? storage.zero(offset, length, random.below(2) === 0) : storage.flush());
            if (kind !== 4) waiting.push(storage.zero(offset, length));
          }
        }
        const before = model.slice();
        await Promise.all(waiting);
        for (const { found, offset } of reads) {
          assertEquals(firstDifference(found, before.subarray(offset, offset + found.length)), -1);
        }
      }
      assertEquals(firstDifference(await readBytes(storage, 0, model.length), model), -1);
      assertEquals(storage.sizeBytes, model.length);
      storage.close();
      assertEquals(firstDifference(Deno.readFileSync(path), model), -1);
    });
  });

  test(`parts of one block that are written at the same time${what} are all there`, async (folder) => {
    const path = folder.file("disk", new Uint8Array(4096));
    const storage = UringFileStorage.open(path, { direct });
    const writes = Array.from({ length: 64 }, (_, i) => {
      return storage.write(i * 64, SegmentList.over(new Uint8Array(64).fill(i + 1)));
    });
    await Promise.all(writes);
    storage.close();
    assertEquals(Deno.readFileSync(path), Uint8Array.from({ length: 4096 }, (_, i) => (i >> 6) + 1));
  });

  test(`a list of more segments than one call takes${what} is moved whole`, async (folder) => {
    const count = 3 * MOST_IOVECS + 7;
    const data = new Uint8Array(2 * count);
    for (let i = 0; i < data.length; i++) data[i] = i * 7;
    const region = new MemoryRegion(0, data);
    const odd = new SegmentList();
    for (let i = 0; i < count; i++) odd.append(region, 2 * i, 1);
    const storage = UringFileStorage.open(folder.file("disk", new Uint8Array(10)), { direct });
    await storage.write(3, odd);
    const found = await readBytes(storage, 3, count);
    assertEquals([...found], Array.from({ length: count }, (_, i) => data[2 * i]));
    assertEquals(storage.sizeBytes, count + 3);
    storage.close();
  });

  test(`a file that was cut from outside${what} is noticed where it ends`, async (folder) => {
    const path = folder.file("disk", new Uint8Array(10_000).fill(1));
    const storage = UringFileStorage.open(path, { direct });
    Deno.truncateSync(path, 5000);
    const { kind, message } = await failureOf(() => readBytes(storage, 4096, 2000));
    assertEquals([kind, message], [
      "truncated",
      `read of '${path}' at offset 4096: The file is shorter than it was when it was opened`,
    ]);
    if (!direct) assertEquals(storage.sizeBytes, 5000);
    assertEquals((await readBytes(storage, 0, 5000))[4999], 1);
    Deno.truncateSync(path, 20_000);
    assertEquals([storage.refreshSize(), (await readBytes(storage, 19_999, 1))[0]], [20_000, 0]);
    storage.close();
  });
}

test("past the page cache, a list that is aligned is moved as it is, and one that is not through buffers", async (folder) => {
  const path = folder.file("disk", new Uint8Array(1 << 20));
  const storage = UringFileStorage.open(path, { direct: true });
  using memory = Mapping.anonymous(16_384);
  const region = new MemoryRegion(0, memory.bytes);
  const list = (offset: number, length: number) => {
    const list = new SegmentList();
    list.append(region, offset, length);
    return list;
  };
  const [offsets, addresses, lengths] = [[0, 4096, 1, 511, 8000], [0, 4096, 512, 3], [4096, 8192, 100, 4097]];
  for (const offset of offsets) {
    for (const address of addresses) {
      for (const length of lengths) {
        memory.bytes.fill(5);
        await storage.write(offset, list(address, length));
        memory.bytes.fill(0);
        await storage.read(offset, list(address, length));
        const wrong = memory.bytes.findIndex((byte, i) => byte !== (i >= address && i < address + length ? 5 : 0));
        assertEquals(wrong, -1, `${offset} ${address} ${length}`);
        await storage.zero(offset, length);
      }
    }
  }
  storage.close();
  assertEquals(Deno.statSync(path).size, 1 << 20);
});

test("past the page cache, what lies between the old end of a file and a write behind it is zeros", async (folder) => {
  const storage = UringFileStorage.open(folder.file("disk", new Uint8Array(10)), { direct: true });
  await storage.write(0, SegmentList.over(new Uint8Array(3000).fill(0xaa)));
  await storage.truncate(10);
  await storage.write(2001, SegmentList.over(Uint8Array.of(1)));
  const expected = new Uint8Array(2002).fill(0xaa, 0, 10);
  expected[2001] = 1;
  assertEquals(await readBytes(storage, 0, 2002), expected);
  storage.close();
});

test("a request of megabytes goes through buffers in pieces", async (folder) => {
  const storage = UringFileStorage.open(folder.file("disk", new Uint8Array(0)), { direct: true });
  const data = new Uint8Array((3 << 20) + 12_345);
  for (let i = 0; i < data.length; i++) data[i] = i ^ (i >> 8) ^ (i >> 16);
  await storage.write(777, SegmentList.over(data));
  assertEquals(storage.sizeBytes, data.length + 777);
  assertEquals(firstDifference(await readBytes(storage, 777, data.length), data), -1);
  storage.close();
});

test("holes are punched, and a zero that keeps its space keeps it", async (folder) => {
  const storage = UringFileStorage.open(folder.file("disk", new Uint8Array(1 << 20).fill(1)));
  await storage.flush();
  const full = storage.allocatedBytes;
  assertEquals(storage.canUnmap, true);
  await storage.discard(0, 256 << 10);
  await storage.zero(256 << 10, 256 << 10, true);
  assertEquals(storage.allocatedBytes <= full - (512 << 10), true);
  const after = storage.allocatedBytes;
  await storage.zero(512 << 10, 256 << 10);
  assertEquals(storage.allocatedBytes, after);
  await storage.zero((1 << 20) - 10, 100, true);
  assertEquals(storage.sizeBytes, (1 << 20) + 90);
  await storage.zero((1 << 20) + 50, 100);
  assertEquals(storage.sizeBytes, (1 << 20) + 150);
  storage.close();
});

test("a write that comes after a change of size is not cut by it", async (folder) => {
  const path = folder.file("disk", new Uint8Array(100));
  const storage = UringFileStorage.open(path);
  const write = () => storage.write(1000, SegmentList.over(Uint8Array.of(9)));
  await Promise.all([storage.zero(0, 10), storage.truncate(50), write()]);
  assertEquals([storage.sizeBytes, Deno.statSync(path).size], [1001, 1001]);
  storage.close();
});

test("a zero that makes the file longer does not cut one that a write makes longer still", async (folder) => {
  for (let i = 0; i < 20; i++) {
    const path = folder.file(`disk${i}`, new Uint8Array(100));
    const storage = UringFileStorage.open(path);
    const write = storage.write(500_000, SegmentList.over(Uint8Array.of(9)));
    await Promise.all([storage.zero(50, 1000, true), write, storage.zero(0, 2000 + i, true)]);
    assertEquals([storage.sizeBytes, Deno.statSync(path).size], [500_001, 500_001]);
    storage.close();
  }
});

test("a storage closed while the kernel works on it leaves memory alone, and nothing open", async (folder) => {
  const path = folder.file("disk", new Uint8Array(1 << 20).fill(3));
  for (const direct of [false, true]) {
    const storage = UringFileStorage.open(path, { direct });
    const memory = new Uint8Array(1 << 20);
    const ended = Promise.allSettled([
      storage.read(0, SegmentList.over(memory)),
      storage.read(1, SegmentList.over(memory.slice(1))),
      storage.flush(),
      storage.zero(10, 100),
    ]);
    storage.close();
    storage.close();
    // What goes through buffers takes several steps, and is finished later.
    if (direct) await ended;
    assertEquals(memory.every((byte, i) => byte === 3 || (i >= 10 && i < 110)), true);
    await ended;
    assertEquals((await failureOf(() => storage.read(0, SegmentList.over(memory)))).kind, "closed");
  }
});

test("what is opened for reading only can't be written, and says so", async (folder) => {
  const path = folder.file("disk", new Uint8Array(512));
  const storage = UringFileStorage.open(path, { readOnly: true });
  assertEquals([storage.readOnly, storage.canUnmap], [true, false]);
  const failures = [
    await failureOf(() => storage.write(0, SegmentList.over(new Uint8Array(1)))),
    await failureOf(() => storage.zero(0, 10)),
    await failureOf(() => storage.truncate(10)),
  ];
  assertEquals(failures.map(({ kind }) => kind), ["io", "io", "invalid"]);
  storage.close();
});

test("a refused open says why, and leaves nothing open", async (folder) => {
  const path = folder.file("disk", new Uint8Array(512));
  Deno.mkdirSync(folder.file("folder"));
  const cases: [string, string, string][] = [
    ["", "invalid", "A file name is required"],
    [folder.file("nothing"), "not-found", "No such file or directory"],
    [folder.file("folder"), "is-directory", "Is a directory"],
    ["/dev/null", "unsupported", "Neither a regular file nor a block device"],
  ];
  for (const [name, kind, reason] of cases) {
    const found = await failureOf(() => UringFileStorage.open(name, { readOnly: true }));
    // Deno gives what is under /dev only to those who may do everything.
    if (found.kind === "not-capable" && name.startsWith("/dev")) continue;
    assertEquals([found.kind, found.message], [kind, `Could not open '${name}': ${reason}`]);
  }
  const holder = DenoFileStorage.open(path);
  assertEquals((await failureOf(() => UringFileStorage.open(path))).kind, "locked");
  assertEquals((await failureOf(() => UringFileStorage.open(path, { readOnly: true }))).kind, "locked");
  holder.close();
  const uring = UringFileStorage.open(path);
  assertEquals((await failureOf(() => DenoFileStorage.open(path))).kind, "locked");
  const portable = DenoFileStorage.open(path, { share: true, readOnly: true });
  assertEquals(uring.identity, portable.identity);
  portable.close();
  uring.close();
});

test("the kernel's numbers become the errors that everybody else has", () => {
  const of = (result: number) => failure("disk", "write", 5, "write", result);
  assertEquals([of(-28).kind, of(-28).message], [
    "no-space",
    "write of 'disk' at offset 5: No space left on device",
  ]);
  assertEquals(of(-5).message, "write of 'disk' at offset 5: Input/output error (write: Input/output error)");
  assertEquals([of(-30).kind, of(-30).reason], ["not-permitted", "Read-only file system"]);
  assert(of(-5) instanceof BlockError && of(-5).cause instanceof HostError);
});

Deno.test({
  name: "a full disk is a failure of the write that finds it, and of nothing else",
  ...requiresMount(),
  async fn() {
    if (requiresUring().ignore) return;
    using disk = new SmallDisk();
    const path = disk.folder.file("disk", new Uint8Array(4096).fill(1));
    const storage = UringFileStorage.open(path);
    const { kind } = await failureOf(() => storage.write(4096, SegmentList.over(new Uint8Array(1 << 20))));
    assertEquals(kind, "no-space");
    assertEquals((await readBytes(storage, 0, 4096)).every((byte) => byte === 1), true);
    await storage.flush();
    storage.close();
  },
});

test("storages share an engine, and it ends when the last of them is closed", async (folder) => {
  const storages = [1, 2, 3].map((i) => UringFileStorage.open(folder.file(`disk${i}`, new Uint8Array(100).fill(i))));
  const engine = UringEngine.shared();
  const found = await Promise.all(storages.map((storage) => readBytes(storage, 0, 100)));
  assertEquals(found.map((bytes) => bytes[99]), [1, 2, 3]);
  for (const storage of storages) {
    assertEquals(UringEngine.shared(), engine);
    storage.close();
  }
});
