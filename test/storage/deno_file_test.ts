import { assert, assertEquals } from "@std/assert";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { failureOf, Folder, readBytes, sameBytes, writeBytes } from "./support.ts";

const MIB = 1 << 20;

/** Bytes of disk space that a file takes. */
function allocated(path: string): number {
  // 0 where the system does not say; the first test below makes sure that here it does.
  return (Deno.statSync(path).blocks ?? 0) * 512;
}

/** A sparse file of 4 MiB with the letters of `data` in it, each in a block of 4 KiB of its own. */
function sparseFile(folder: Folder, data: Record<number, number> = {}): string {
  const path = folder.file("disk", new Uint8Array());
  using file = Deno.openSync(path, { write: true });
  file.truncateSync(4 * MIB);
  for (const [offset, value] of Object.entries(data)) {
    file.seekSync(Number(offset), Deno.SeekMode.Start);
    file.writeSync(new Uint8Array(4096).fill(value));
  }
  return path;
}

Deno.test("the test of sparseness sees a file grow (canary)", () => {
  using folder = new Folder();
  const path = sparseFile(folder);
  assertEquals(allocated(path), 0);
  Deno.writeFileSync(path, new Uint8Array(MIB));
  assert(allocated(path) >= MIB);
});

Deno.test("DenoFileStorage keeps a sparse file sparse under read, zero, discard and a longer truncate", async () => {
  using folder = new Folder();
  const path = sparseFile(folder);
  const storage = DenoFileStorage.open(path, { portable: true });
  await readBytes(storage, 0, 4 * MIB);
  storage.zero(100, 3 * MIB);
  storage.discard(0, 4 * MIB);
  storage.truncate(64 * MIB);
  storage.zero(64 * MIB, MIB);
  assertEquals(storage.sizeBytes, 65 * MIB);
  storage.close();
  assertEquals(allocated(path), 0);
});

Deno.test("DenoFileStorage.zero() writes only where the file does not read as zeros", async () => {
  using folder = new Folder();
  const blocks = { 0: 1, [MIB - 4096]: 2, [MIB + 8192]: 3, [3 * MIB]: 4 };
  const path = sparseFile(folder, blocks);
  const before = allocated(path);
  const storage = DenoFileStorage.open(path, { portable: true });
  // Not at a border of blocks, and across the pieces in which it works.
  storage.zero(100, 3 * MIB - 200);
  const bytes = await readBytes(storage, 0, 4 * MIB);
  storage.close();
  const expected = new Uint8Array(4 * MIB);
  expected.fill(1, 0, 100);
  expected.fill(4, 3 * MIB, 3 * MIB + 4096);
  assert(sameBytes(bytes, expected));
  assertEquals(allocated(path), before);
});

Deno.test("DenoFileStorage.zero() and write() beyond the end make the file longer, discard() does not", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(1000).fill(7));
  const storage = DenoFileStorage.open(path);
  storage.discard(900, 5000);
  assertEquals(storage.sizeBytes, 1000);
  storage.discard(1000, 5000);
  storage.discard(70_000, 5000);
  assertEquals(storage.sizeBytes, 1000);
  storage.zero(990, 100);
  assertEquals(storage.sizeBytes, 1090);
  await writeBytes(storage, 2000, Uint8Array.of(9));
  assertEquals(storage.sizeBytes, 2001);
  storage.close();
  const expected = new Uint8Array(2001).fill(7, 0, 900);
  expected[2000] = 9;
  assert(sameBytes(Deno.readFileSync(path), expected));
});

Deno.test("DenoFileStorage asks the file for its size each time", () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(1024));
  const storage = DenoFileStorage.open(path);
  assertEquals(storage.sizeBytes, 1024);
  Deno.truncateSync(path, 512);
  assertEquals(storage.sizeBytes, 512);
  Deno.truncateSync(path, 4096);
  assertEquals(storage.sizeBytes, 4096);
  storage.close();
});

Deno.test("DenoFileStorage opens an empty file: size 0, and it can grow", async () => {
  using folder = new Folder();
  const storage = DenoFileStorage.open(folder.file("disk", new Uint8Array()));
  assertEquals(storage.sizeBytes, 0);
  assertEquals(await readBytes(storage, 0, 0), new Uint8Array());
  await writeBytes(storage, 0, Uint8Array.of(1, 2, 3));
  assertEquals([...await readBytes(storage, 0, 3)], [1, 2, 3]);
  storage.close();
});

/** A file in which every 512 bytes hold their own number. */
function numbered(folder: Folder): string {
  const bytes = new Uint8Array(16 * 512);
  for (let i = 0; i < 16; i++) bytes.fill(i + 1, i * 512, (i + 1) * 512);
  return folder.file("disk", bytes);
}

/** The number in the 512 bytes at an index. */
async function numberAt(storage: DenoFileStorage, index: number): Promise<number> {
  return (await readBytes(storage, index * 512, 512))[0];
}

/** What can stand between two reads that follow each other in the file, and must not move the second. */
const BETWEEN: Record<string, (storage: DenoFileStorage, path: string) => unknown> = {
  "nothing": () => {},
  "a question for the size": (storage) => storage.sizeBytes,
  "a write elsewhere": (storage) => writeBytes(storage, 9 * 512, new Uint8Array(512).fill(10)),
  "a flush": (storage) => storage.flush(),
  "a zero of nothing": (storage) => storage.zero(8 * 512, 0),
  "a discard behind the end": (storage) => storage.discard(99 * 512, 512),
  "a zero elsewhere": (storage) => storage.zero(15 * 512, 512),
  "a truncate": (storage) => storage.truncate(12 * 512),
  "a read of nothing": (storage) => readBytes(storage, 5 * 512, 0),
  "a read that fails half way": (storage) => failureOf(() => readBytes(storage, 15 * 512, 4 * 512)),
  "a read that fails at once": (storage) => failureOf(() => readBytes(storage, 99 * 512, 512)),
};

for (const [name, between] of Object.entries(BETWEEN)) {
  Deno.test(`DenoFileStorage reads on in the right place after ${name}`, async () => {
    using folder = new Folder();
    const path = numbered(folder);
    const storage = DenoFileStorage.open(path);
    assertEquals(await numberAt(storage, 3), 4);
    await between(storage, path);
    assertEquals(await numberAt(storage, 4), 5);
    await between(storage, path);
    assertEquals(await numberAt(storage, 4), 5);
    storage.close();
  });
}

Deno.test("DenoFileStorage reads and writes in the right place where a read has just failed half way", async () => {
  using folder = new Folder();
  const path = numbered(folder);
  const storage = DenoFileStorage.open(path);
  const fail = () => failureOf(() => readBytes(storage, 15 * 512, 2 * 512));
  assertEquals((await fail()).kind, "truncated");
  assertEquals(await numberAt(storage, 15), 16);
  assertEquals((await fail()).kind, "truncated");
  await writeBytes(storage, 15 * 512, new Uint8Array(512).fill(99));
  storage.close();
  assertEquals(Deno.statSync(path).size, 16 * 512);
  assertEquals(Deno.readFileSync(path)[15 * 512], 99);
});

Deno.test("DenoFileStorage writes on in the right place after a write that failed", async () => {
  using folder = new Folder();
  const path = numbered(folder);
  const reader = DenoFileStorage.open(path, { readOnly: true });
  assertEquals(await numberAt(reader, 3), 4);
  // Opened for reading only, as nobody but a test would write to it.
  const failure = await failureOf(() => reader.write(4 * 512, SegmentList.over(new Uint8Array(512))));
  assertEquals(failure.kind, "io");
  assertEquals(await numberAt(reader, 4), 5);
  reader.close();
});

Deno.test("a read behind the end of a file that was cut off fails as truncated, and works again when it is longer", async () => {
  using folder = new Folder();
  const path = numbered(folder);
  const storage = DenoFileStorage.open(path);
  Deno.truncateSync(path, 700);
  for (const offset of [512, 1024]) {
    assertEquals(await failureOf(() => readBytes(storage, offset, 512)), {
      kind: "truncated",
      message: `read of '${path}' at offset ${offset}: The file is shorter than it was when it was opened`,
      hint: undefined,
    });
  }
  assertEquals(await numberAt(storage, 0), 1);
  Deno.truncateSync(path, 16 * 512);
  assertEquals(await numberAt(storage, 1), 2);
  assertEquals(await numberAt(storage, 2), 0);
  storage.close();
});

/** Every operation, on a storage that is closed. */
const AFTER_CLOSE: readonly (readonly [what: string, (storage: DenoFileStorage) => unknown])[] = [
  ["read of '%' at offset 5", (storage) => storage.read(5, SegmentList.over(new Uint8Array(1)))],
  ["write of '%' at offset 5", (storage) => storage.write(5, SegmentList.over(new Uint8Array(1)))],
  ["flush of '%'", (storage) => storage.flush()],
  ["zero of '%' at offset 5", (storage) => storage.zero(5, 1)],
  ["discard of '%' at offset 5", (storage) => storage.discard(5, 1)],
  ["resize of '%'", (storage) => storage.truncate(5)],
  ["probe of '%' at offset 0", (storage) => storage.sizeBytes],
];

for (const [what, act] of AFTER_CLOSE) {
  Deno.test(`DenoFileStorage refuses what comes after close(): ${what}`, async () => {
    using folder = new Folder();
    const path = numbered(folder);
    const storage = DenoFileStorage.open(path);
    storage.close();
    storage.close();
    const message = `${what.replace("%", path)}: The image was closed`;
    assertEquals(await failureOf(() => act(storage)), { kind: "closed", message, hint: undefined });
  });
}
