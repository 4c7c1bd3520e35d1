import { assert, assertEquals } from "@std/assert";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { attach } from "../../src/attach.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import {
  firstDifference,
  Folder,
  randomBytes,
  readBytes,
  run,
  sameBytes,
  scatter,
  tryRun,
  writeBytes,
} from "../storage/support.ts";

/** Files around the borders of sectors and pages. */
const FILE_SIZES = [0, 1, 100, 511, 512, 513, 1000, 3000, 4095, 4096, 4097];

function openRaw(path: string): RawImage {
  return new RawImage(DenoFileStorage.open(path));
}

/** Contents without zeros, so that zeros behind the end show. */
function contentsOf(sizeBytes: number): Uint8Array {
  return Uint8Array.from({ length: sizeBytes }, (_, i) => 1 + i % 255);
}

/** The bytes that `read -v` of qemu-io shows; `null` when it refuses the range. */
function qemuRead(path: string, offset: number, lengthBytes: number): Uint8Array | null {
  const { success, text } = tryRun("qemu-io", "-f", "raw", "-r", "-c", `read -v ${offset} ${lengthBytes}`, path);
  if (!success) return null;
  // Lines like: 00000bb8:  01 02 03 ..  abc
  const lines = text.split("\n").filter((line) => /^[0-9a-f]{8,}: /.test(line));
  const bytes = lines.flatMap((line) => line.slice(line.indexOf(":") + 1).trim().split("  ")[0].trim().split(" "));
  return Uint8Array.from(bytes, (byte) => parseInt(byte, 16));
}

/** Ranges around the end of the file and of the disk: any that starts and ends at a place of interest. */
function rangesAround(fileBytes: number, diskBytes: number): [offset: number, lengthBytes: number][] {
  const places = [0, diskBytes - 512, fileBytes - 1, fileBytes, fileBytes + 1, diskBytes - 1, diskBytes]
    .filter((place) => place >= 0 && place <= diskBytes);
  const unique = [...new Set(places)].sort((a, b) => a - b);
  return unique.flatMap((start) =>
    unique.filter((end) => end > start).map((end): [number, number] => [start, end - start])
  );
}

for (const size of FILE_SIZES) {
  Deno.test({
    name: `a raw file of ${size} bytes is as long a disk, with the same bytes around its end, as in qemu-io`,
    ...requires("qemu-io"),
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk", contentsOf(size));
      const image = openRaw(path);
      const disk = Math.ceil(size / 512) * 512;
      assertEquals(image.sizeBytes, disk);
      // Its `length` rounds; a last byte that can be read, and none behind it, is exact.
      assertEquals(qemuRead(path, disk, 1), null);
      for (const [offset, length] of rangesAround(size, disk)) {
        const found = await readBytes(image, offset, length);
        assertEquals(found, qemuRead(path, offset, length) as Uint8Array<ArrayBuffer>, `read ${offset} ${length}`);
      }
      image.close();
      assertEquals(Deno.statSync(path).size, size);
    },
  });
}

Deno.test({
  name: "reading with qemu-io shows the bytes of a file, and refuses those behind the disk (canary)",
  ...requires("qemu-io"),
  fn() {
    using folder = new Folder();
    const path = folder.file("disk", contentsOf(40));
    assertEquals(qemuRead(path, 20, 20), contentsOf(40).slice(20));
    assertEquals(qemuRead(path, 500, 13), null);
  },
});

/** The same operation, on an image and as qemu-io's command. */
interface Operation {
  command: (offset: number, lengthBytes: number) => string;
  run: (image: RawImage, offset: number, lengthBytes: number) => unknown;
}

const OPERATIONS: Record<string, Operation> = {
  "write": {
    command: (offset, length) => `write -P 0xab ${offset} ${length}`,
    run: (image, offset, length) => writeBytes(image, offset, new Uint8Array(length).fill(0xab)),
  },
  "write zeroes": {
    command: (offset, length) => `write -z ${offset} ${length}`,
    run: (image, offset, length) => image.writeZeroes(offset, length, false),
  },
  "write zeroes and unmap": {
    command: (offset, length) => `write -z -u ${offset} ${length}`,
    run: (image, offset, length) => image.writeZeroes(offset, length, true),
  },
};

for (const [name, operation] of Object.entries(OPERATIONS)) {
  for (const size of [1, 511, 1000, 4097]) {
    Deno.test({
      name: `${name} around the end of a raw file of ${size} bytes leaves the file that qemu-io leaves`,
      ...requires("qemu-io"),
      async fn() {
        using folder = new Folder();
        const disk = Math.ceil(size / 512) * 512;
        for (const [offset, length] of rangesAround(size, disk)) {
          const ours = folder.file("ours", contentsOf(size));
          const theirs = folder.file("theirs", contentsOf(size));
          const image = openRaw(ours);
          await operation.run(image, offset, length);
          const after = await readBytes(image, 0, disk);
          image.close();
          const command = operation.command(offset, length);
          run("qemu-io", "-f", "raw", "-c", command, theirs);
          const [found, expected] = [ours, theirs].map((path) => Deno.readFileSync(path));
          assertEquals(firstDifference(found, expected), -1, command);
          assertEquals(firstDifference(after.subarray(0, expected.byteLength), expected), -1, command);
        }
      },
    });
  }
}

Deno.test("a guest's write to the last, incomplete sector makes the file end with the sector", async () => {
  using folder = new Folder();
  const path = folder.file("disk", contentsOf(1000));
  const machine = await attach(path, { format: "raw" });
  assertEquals(machine.guest.sizeBytes, 1024);
  await machine.guest.write(1010, Uint8Array.of(9));
  await machine.close();
  const expected = new Uint8Array(1024);
  expected.set(contentsOf(1000));
  expected[1010] = 9;
  assert(sameBytes(Deno.readFileSync(path), expected));
});

Deno.test("discard over the end of a raw file reads as zeros and leaves its length", async () => {
  using folder = new Folder();
  const path = folder.file("disk", contentsOf(1000));
  const image = openRaw(path);
  await image.discard(512, 512);
  assertEquals(await readBytes(image, 512, 512), new Uint8Array(512));
  image.close();
  assertEquals(Deno.statSync(path).size, 1000);
});

for (const [before, after] of [[1000, 3000], [3000, 1000], [1024, 0], [0, 700], [4096, 8192]]) {
  Deno.test({
    name: `resize of a raw image from ${before} to ${after} bytes leaves the file that qemu-io's truncate leaves`,
    ...requires("qemu-io"),
    async fn() {
      using folder = new Folder();
      const [ours, theirs] = ["ours", "theirs"].map((name) => folder.file(name, contentsOf(before)));
      const image = openRaw(ours);
      await image.resize(after);
      assertEquals(image.sizeBytes, Math.ceil(after / 512) * 512);
      const bytes = await readBytes(image, 0, image.sizeBytes);
      image.close();
      run("qemu-io", "-f", "raw", "-c", `truncate ${after}`, theirs);
      const expected = Deno.readFileSync(theirs);
      assertEquals(expected.byteLength, after);
      assert(sameBytes(Deno.readFileSync(ours), expected));
      assert(sameBytes(bytes.subarray(0, after), expected));
      assertEquals(bytes.subarray(after).every((byte) => byte === 0), true);
    },
  });
}

Deno.test("RawImage.map() says of every range that it is data at the same place of the file", () => {
  const image = new RawImage(new MemoryStorage(1000));
  assertEquals(image.map(0, 1024), [{ guestOffset: 0, lengthBytes: 1024, kind: "data", hostOffset: 0 }]);
  assertEquals(image.map(512, 512), [{ guestOffset: 512, lengthBytes: 512, kind: "data", hostOffset: 512 }]);
  assertEquals(image.map(512, 0), []);
});

Deno.test("RawImage has its storage's name and is as read-only", () => {
  const image = new RawImage(new MemoryStorage(512, { name: "disk.img", readOnly: true }));
  assertEquals([image.name, image.readOnly, image.format], ["disk.img", true, "raw"]);
});

for (const [name, hook] of [["at once", () => {}], ["later", () => Promise.resolve()]] as const) {
  Deno.test(`RawImage on a storage that ends its operations ${name} is an array of bytes, to its last sector`, async () => {
    const random = new Random(5);
    const storage = new FaultStorage(new MemoryStorage(10_000), hook);
    const image = new RawImage(storage);
    const model = new Uint8Array(image.sizeBytes);
    for (let i = 0; i < 300; i++) {
      const offset = random.below(20) * 512;
      const length = (1 + random.below(20 - offset / 512)) * 512;
      if (random.below(2) === 0) {
        const data = randomBytes(random, length);
        await image.write(offset, scatter(data, random));
        model.set(data, offset);
      } else if (random.below(4) === 0) {
        await image.writeZeroes(offset, length, true);
        model.fill(0, offset, offset + length);
      }
      const where = firstDifference(await readBytes(image, offset, length), model.subarray(offset, offset + length));
      assertEquals(where, -1, `step ${i}`);
    }
    assertEquals(storage.sizeBytes, image.sizeBytes);
  });
}
