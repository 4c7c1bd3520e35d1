import { assert, assertEquals } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { openImage, openImageOptions, probeWarning } from "../../src/image/open.ts";
import { formatOf } from "../../src/image/probe.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { requires } from "../requires.ts";
import { Capture, maskTimes } from "../script/capture.ts";
import { failureOf, Folder, readBytes, sameBytes, writeBytes } from "../storage/support.ts";

const bytesOf = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

function sector(text: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(512);
  bytes.set(bytesOf(text));
  return bytes;
}

/** First sectors, and whether a guest may write them to an image that was probed. */
const SECTORS: readonly (readonly [start: string, allowed: boolean])[] = [
  ["QFI\xfb\0\0\0\x03", false],
  ["QFI\xfb\0\0\0\x01", false],
  ["QED\0", false],
  ["KDMV", false],
  ["# a comment\n  \nversion=1\n", false],
  ["version=3\r\n", false],
  ["vhdxfile", false],
  ["conectix", false],
  ["LUKS\xba\xbe\0\x01", false],
  ["#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n", false],
  [`${"\0".repeat(64)}\x7f\x10\xda\xbe`, false],
  ["", true],
  ["QFI", true],
  ["\0QFI\xfb\0\0\0\x03", true],
  ["version=4\n", true],
  ["#version=1", true],
];

for (const [start, allowed] of SECTORS) {
  Deno.test({
    name: `a guest ${allowed ? "may" : "may not"} write ${JSON.stringify(start)} to a probed image, as in qemu-io`,
    ...requires("qemu-io"),
    async fn() {
      using folder = new Folder();
      const pattern = folder.file("pattern", sector(start));
      const lines = ["-c", `write -s ${pattern} 0 512`, "-c", "read -v 0 512"];
      const [theirs, ours] = ["theirs", "ours"].map((name) => folder.file(name, new Uint8Array(4096)));
      const { code, stdout } = new Deno.Command("qemu-io", { args: [...lines, theirs], stdin: "null" }).outputSync();
      const capture = new Capture();
      assertEquals(await main(["attach", ...lines, ours], capture), code);
      assertEquals(code, allowed ? 0 : 1);
      const out = capture.lines.filter((line) => !line.startsWith("2> ")).map(maskTimes).filter((line) => line !== "");
      const expected = new TextDecoder().decode(stdout).split("\n").map(maskTimes).filter((line) => line !== "");
      // The guest of vblk hears nothing but that it failed.
      assertEquals(out, expected.map((line) => line.replace("Operation not permitted", "Input/output error")));
      assertEquals(Deno.readFileSync(ours), Deno.readFileSync(theirs));
      if (!allowed) assertEquals(formatOf(Deno.readFileSync(ours)), "raw");
      // Whoever names the format may write anything.
      assertEquals(await main(["attach", "-f", "raw", ...lines, ours], capture), 0);
    },
  });
}

const HINT = "the image's format was guessed; give -f raw, and the guest may write what it likes to the first sector";

Deno.test("a write that completes a magic number byte by byte is refused at the byte that would", async () => {
  const image = new RawImage(new MemoryStorage(4096, { name: "disk" }), { probed: true });
  await writeBytes(image, 1, bytesOf("FI\xfb"));
  assertEquals(await failureOf(() => writeBytes(image, 0, bytesOf("Q"))), {
    kind: "not-permitted",
    message: "write of 'disk' at offset 0: It would make the image look like qcow2: Operation not permitted",
    hint: HINT,
  });
  await writeBytes(image, 0, bytesOf("q"));
  // What begins before the end of the sector and goes on behind it is written as a whole or not at all.
  const long = new Uint8Array(1024).fill(5);
  await writeBytes(image, 100, long);
  assert(sameBytes(await readBytes(image, 100, 1024), long));
  const bad = new Uint8Array(1024).fill(6);
  bad.set(bytesOf("QFI\xfb"));
  assertEquals((await failureOf(() => writeBytes(image, 0, bad))).kind, "not-permitted");
  assertEquals((await readBytes(image, 600, 1))[0], 5);
});

Deno.test("zeros and discards of a part of the first sector can't complete a magic number either", async () => {
  const storage = new MemoryStorage(4096);
  await writeBytes(storage, 0, bytesOf("QEDx"));
  const image = new RawImage(storage, { probed: true });
  assertEquals((await failureOf(() => image.writeZeroes(3, 1, true))).kind, "not-permitted");
  await image.discard(3, 1);
  assertEquals(formatOf(await readBytes(image, 0, 512)), "raw");
  await image.writeZeroes(0, 4096, true);
  assertEquals(await readBytes(image, 0, 4096), new Uint8Array(4096));
});

Deno.test("writes that go on at the same time can't complete a magic number together", async () => {
  const inner = new MemoryStorage(4096);
  const storage = new FaultStorage(inner, () => new Promise((resolve) => setTimeout(resolve, 0)));
  const image = new RawImage(storage, { probed: true });
  const both = await Promise.allSettled([
    writeBytes(image, 0, bytesOf("QF")),
    writeBytes(image, 2, bytesOf("I\xfb")),
    writeBytes(image, 0, sector("qFI")),
  ]);
  assertEquals(both.map(({ status }) => status), ["fulfilled", "rejected", "fulfilled"]);
  assertEquals(String.fromCharCode(...await readBytes(inner, 0, 4)), "qFI\0");
});

Deno.test("what was looked at is written, whatever the guest does to its buffer meanwhile", async () => {
  const inner = new MemoryStorage(4096);
  const bytes = sector("QFI");
  const storage = new FaultStorage(inner, ({ kind }) => {
    if (kind === "write") bytes[3] = 0xfb;
  });
  await new RawImage(storage, { probed: true }).write(0, SegmentList.over(bytes));
  assertEquals(formatOf(await readBytes(inner, 0, 512)), "raw");
});

Deno.test("only an image that was probed, and stays, is guarded, and warned of", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(4096));
  const cases = [
    [() => openImage(path), true],
    [() => openImage(path, { format: "raw" }), false],
    [() => openImage(path, { snapshot: true }), false],
    [() => openImage("mem:1M"), false],
    [() => openImageOptions(`file.filename=${path}`), true],
    [() => openImageOptions(`file.filename=${path},detect-zeroes=on`), true],
    [() => openImageOptions(`driver=raw,file.filename=${path}`), false],
    [() => openImageOptions("file.driver=mem,file.size=1M"), false],
  ] as const;
  for (const [opening, guarded] of cases) {
    const image = await opening();
    assertEquals(probeWarning(image).length, guarded ? 3 : 0);
    const writing = () => writeBytes(image, 0, sector("QFI\xfb\0\0\0\x03"));
    if (guarded) assertEquals((await failureOf(writing)).kind, "not-permitted");
    else await writing();
    await image.close();
    Deno.writeFileSync(path, new Uint8Array(4096));
  }
  const readOnly = await openImage(path, { readOnly: true });
  assertEquals(probeWarning(readOnly), []);
  await readOnly.close();
});
