import { assert, assertEquals } from "@std/assert";
import { attach } from "../../src/attach.ts";
import { openImage } from "../../src/image/open.ts";
import { requires } from "../requires.ts";
import { failureOf, Folder, readBytes, run, sameBytes, writeBytes } from "../storage/support.ts";

/** Disks in memory, and their sizes. */
const MEMORY_SIZES = [["mem:0", 0], ["mem:1M", 1 << 20], ["mem:1.5k", 1536], ["mem:0x200", 512], ["mem:1000", 1024]];

for (const [name, size] of MEMORY_SIZES) {
  Deno.test(`openImage("${name}") is a disk of ${size} bytes that reads as zeros`, async () => {
    const image = await openImage(String(name));
    assertEquals([image.name, image.format, image.readOnly, image.sizeBytes], [name, "raw", false, size]);
    assert((await readBytes(image, 0, Number(size))).every((byte) => byte === 0));
    image.close();
  });
}

Deno.test("openImage() of a disk in memory as large as can be works at its end", async () => {
  const image = await openImage(`mem:${2 ** 44 - 4096}`);
  await writeBytes(image, image.sizeBytes - 512, new Uint8Array(512).fill(1));
  assertEquals((await readBytes(image, image.sizeBytes - 1, 1))[0], 1);
  await image.resize(512);
  assertEquals((await failureOf(() => image.resize(2 ** 44))).kind, "invalid");
  image.close();
});

const HINT = "write it as in mem:64M";
const BAD_SIZES = [
  ["mem:", "The size is not a number"],
  ["mem:lots", "The size is not a number"],
  ["mem:-1", "The size is not a number"],
  ["mem:1.5", "The size is not a number"],
  ["mem:16T", "The size is too large: it must be below 16 TiB"],
  ["mem:8E", "The size is too large: it must be below 16 TiB"],
];

for (const [name, reason] of BAD_SIZES) {
  Deno.test(`openImage("${name}") is refused: ${reason}`, async () => {
    const message = `Could not open '${name}': ${reason}`;
    assertEquals(await failureOf(() => openImage(name)), { kind: "invalid", message, hint: HINT });
  });
}

const CONVERT = "convert it with 'qemu-img convert -O raw', or give -f raw to see its bytes as they are";

/** Images that `qemu-img create` makes, by format. */
const FORMATS = ["qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"];

/**
 * Images of which no tool at hand makes one: their first bytes, by the text of their formats. qemu-img could make one of
 * luks, but measures the processor to do so, and fails by chance.
 */
const MAGICS: readonly (readonly [format: string, start: string])[] = [
  ["vmdk", "# Disk DescriptorFile\nversion=1\n"],
  ["vmdk", "COWD\x01\0\0\0"],
  ["parallels", "WithouFreSpacExt\x02\0\0\0"],
  ["luks", "LUKS\xba\xbe\0\x01"],
  ["bochs", "Bochs Virtual HD Image\0"],
];

/** What must be said of an image whose format is not read. */
async function assertRefused(path: string, format: string): Promise<void> {
  assertEquals(await failureOf(() => openImage(path)), {
    kind: "unsupported",
    message: `Could not open '${path}': The image's format is ${format}, which vblk does not read`,
    hint: CONVERT,
  });
  // It is not left locked, and its bytes can be had.
  const image = await openImage(path, { format: "raw" });
  const start = Math.min(512, Deno.statSync(path).size);
  assert(sameBytes(await readBytes(image, 0, start), Deno.readFileSync(path).subarray(0, start)));
  image.close();
}

for (const format of FORMATS) {
  Deno.test({
    name: `openImage() refuses an image made by 'qemu-img create -f ${format}' by name, but not with format raw`,
    ...requires("qemu-img"),
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      run("qemu-img", "create", "-q", "-f", format, path, "1M");
      await assertRefused(path, format);
    },
  });
}

for (const [format, start] of MAGICS) {
  Deno.test(`openImage() refuses an image that starts with ${JSON.stringify(start)} as ${format}`, async () => {
    using folder = new Folder();
    const bytes = new Uint8Array(1024);
    bytes.set(Uint8Array.from(start, (character) => character.charCodeAt(0)));
    await assertRefused(folder.file("disk", bytes), format);
  });
}

/** Files that are nothing but bytes, however short, and however near to a magic number. */
const RAW_FILES: readonly (readonly [what: string, bytes: Uint8Array])[] = [
  ["an empty file", new Uint8Array()],
  ["one byte of a magic number", Uint8Array.of(0x51)],
  ["all but the last byte of a magic number", Uint8Array.of(0x51, 0x46, 0x49)],
  ["a magic number in the wrong place", Uint8Array.of(0, 0x51, 0x46, 0x49, 0xfb)],
  ["zeros", new Uint8Array(4096)],
];

for (const [what, bytes] of RAW_FILES) {
  Deno.test(`openImage() takes ${what} for raw`, async () => {
    using folder = new Folder();
    const image = await openImage(folder.file("disk", bytes));
    assertEquals([image.format, image.sizeBytes], ["raw", Math.ceil(bytes.byteLength / 512) * 512]);
    image.close();
  });
}

Deno.test("openImage() with the name of no format says so as QEMU does", async () => {
  assertEquals(await failureOf(() => openImage("disk.img", { format: "foo" })), {
    kind: "unsupported",
    message: "Could not open 'disk.img': Unknown driver 'foo'",
    hint: "vblk reads raw and qcow2 images: give -f raw, or convert it with 'qemu-img convert -O raw'",
  });
});

Deno.test("openImage() with the name of a format that is not read refuses before it looks at the file", async () => {
  assertEquals(await failureOf(() => openImage("missing", { format: "vmdk" })), {
    kind: "unsupported",
    message: "Could not open 'missing': The image's format is vmdk, which vblk does not read",
    hint: "vblk reads raw and qcow2 images: give -f raw, or convert it with 'qemu-img convert -O raw'",
  });
});

Deno.test("an empty image is a disk of no sectors: it can be attached, and flushed, and grown", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array());
  const machine = await attach(path);
  assertEquals(machine.guest.sizeBytes, 0);
  await machine.guest.flush();
  await machine.resize(4096);
  await machine.guest.write(0, new Uint8Array(512).fill(1));
  await machine.close();
  assertEquals(Deno.statSync(path).size, 4096);
});

Deno.test("a snapshot takes writes, and a file that may not be written, and forgets them", async () => {
  using folder = new Folder();
  const contents = new Uint8Array(1000).fill(7);
  const path = folder.file("disk", contents);
  Deno.chmodSync(path, 0o444);
  const machine = await attach(path, { format: "raw", snapshot: true });
  await machine.guest.write(0, new Uint8Array(1024).fill(1));
  await machine.guest.flush();
  assertEquals((await machine.guest.read(512, 512))[0], 1);
  await machine.close();
  assert(sameBytes(Deno.readFileSync(path), contents));
});

Deno.test("a snapshot that is opened for reading only is read-only", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  for (const readOnly of [true, false]) {
    const image = await openImage(path, { format: "raw", snapshot: true, readOnly });
    assertEquals(image.readOnly, readOnly);
    image.close();
  }
});
