/** From an image to the files that it names. */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { openImage } from "../../../src/image/open.ts";
import { failureOf, Folder, readBytes } from "../../storage/support.ts";
import { build, type Plan } from "./build.ts";

const format = (name: string): [number, Uint8Array] => [0xe2792aca, new TextEncoder().encode(name)];
const over = (backing: string, kind?: string): Plan => ({
  backing,
  extensions: kind === undefined ? [] : [format(kind)],
  clusters: [undefined, { data: 1 }],
});
const open = (path: string) => openImage(path, { readOnly: true });

/** Writes images by name; opens the first. */
function files(folder: Folder, plans: Record<string, Plan | Uint8Array>): string {
  for (const [name, plan] of Object.entries(plans)) {
    folder.file(name, plan instanceof Uint8Array ? plan : build(plan).bytes);
  }
  return folder.file(Object.keys(plans)[0]);
}

Deno.test("openImage() of a qcow2 image: for reading as it is; for writing only with refcounts that can be believed", async () => {
  using folder = new Folder();
  // Made by hand, without refcounts.
  const path = files(folder, { disk: { clusters: [{ data: 1 }] } });
  const image = await open(path);
  assertEquals([image.format, image.readOnly, (await readBytes(image, 0, 512))[0]], ["qcow2", true, 1]);
  for (const action of [() => image.discard(0, 512), () => image.resize(0), () => image.writeZeroes(0, 512, true)]) {
    assertEquals((await failureOf(action)).kind, "not-permitted");
  }
  await image.close();
  const raw = await openImage(path, { format: "raw" });
  assertEquals(new TextDecoder().decode(await readBytes(raw, 0, 3)), "QFI");
  await raw.close();
  folder.file("zeros", new Uint8Array(512));
  const { message } = await failureOf(() => openImage(folder.file("zeros"), { format: "qcow2", readOnly: true }));
  assertStringIncludes(message, "Image is not in qcow2 format");
});

Deno.test("a backing name is relative to the image's folder, and its format is the one recorded", async () => {
  using folder = new Folder();
  Deno.mkdirSync(folder.file("sub"));
  const base = build({ clusters: [{ data: 9 }, { data: 9 }] }).bytes;
  const path = files(folder, { "sub/top": over("../base", "qcow2"), "sub/asraw": over("../base", "raw"), base });
  for (const [name, first] of [[path, 9], [folder.file("sub/asraw"), 0x51]] as const) {
    const image = await open(name);
    const found = await readBytes(image, 0, 1024);
    assertEquals([found[0], found[512]], [first, 1]);
    image.close();
  }
});

Deno.test("a backing file whose format is not recorded is probed, but leads to no other file", async () => {
  using folder = new Folder();
  const base = new Uint8Array(512).fill(7);
  const path = files(folder, { top: over("raw"), raw: base, two: over("mid"), mid: over("raw", "raw") });
  const image = await open(path);
  assertEquals((await readBytes(image, 0, 512))[0], 7);
  image.close();
  const { message } = await failureOf(() => open(folder.file("two")));
  assertStringIncludes(message, "Its backing file 'raw' is not opened: the image before it does not record");
});

const NAMES = ["json:{}", "nbd://localhost/x", "https://example.org/a", "file:base", "mem:1M", "fat:."];
for (const name of NAMES) {
  Deno.test(`a backing or data file called '${name}' is refused by name`, async () => {
    using folder = new Folder();
    const data: [number, Uint8Array] = [0x44415441, new TextEncoder().encode(name)];
    const path = files(folder, { top: over(name, "raw"), data: { incompatible: 4n, extensions: [data] } });
    const says = [`Its backing file is '${name}'`, `Its data file is '${name}'`];
    for (const [i, file] of [path, folder.file("data")].entries()) {
      const { kind, message } = await failureOf(() => open(file));
      assertEquals(kind, "unsupported");
      assertStringIncludes(message, says[i]);
    }
  });
}

Deno.test("what a missing backing file is needed by is said, through the chain", async () => {
  using folder = new Folder();
  const path = files(folder, { top: over("mid", "qcow2"), mid: over("gone", "raw") });
  const { kind, message } = await failureOf(() => open(path));
  assertEquals(kind, "not-found");
  const [mid, gone] = ["mid", "gone"].map((name) => folder.file(name));
  const inner =
    `Could not open '${mid}': Could not open backing file: Could not open '${gone}': No such file or directory`;
  assertEquals(message, `Could not open '${path}': Could not open backing file: ${inner}`);
});

Deno.test("a chain that leads back into itself is refused, by whatever name", async () => {
  using folder = new Folder();
  files(folder, { self: over("self", "qcow2"), a: over("link", "qcow2"), b: over("./a", "qcow2") });
  Deno.linkSync(folder.file("b"), folder.file("link"));
  for (const name of ["self", "a"]) {
    const { kind, message } = await failureOf(() => open(folder.file(name)));
    assertEquals(kind, "unsupported");
    assertStringIncludes(message, "leads back to an image that is in it");
  }
});

Deno.test("a chain of 200 images is read through, and shares the memory for tables; one of 201 is refused", async () => {
  using folder = new Folder();
  for (let i = 0; i <= 200; i++) folder.file(`d${i}`, build(over(`d${i + 1}`, i === 199 ? "raw" : "qcow2")).bytes);
  folder.file("d200", new Uint8Array(512).fill(42));
  // d1 to d199 are qcow2, d200 is raw.
  const image = await open(folder.file("d1"));
  assertEquals((await readBytes(image, 0, 512))[0], 42);
  image.close();
  folder.file("d200", build(over("d201", "raw")).bytes);
  folder.file("d199", build(over("d200", "qcow2")).bytes);
  folder.file("d201", new Uint8Array(512));
  assertStringIncludes((await failureOf(() => open(folder.file("d0")))).message, "More than 200 images");
});

Deno.test("a backing image shorter than the disk reads as zeros behind its end", async () => {
  using folder = new Folder();
  const plan = { ...over("base", "raw"), clusters: [], sizeBytes: 2048 };
  const image = await open(files(folder, { top: plan, base: new Uint8Array(700).fill(5) }));
  const expected = new Uint8Array(2048);
  expected.fill(5, 0, 700);
  assertEquals(await readBytes(image, 0, 2048), expected);
  image.close();
});

Deno.test("the files of an image are closed when it does not open, and locked for writers while it is", async () => {
  using folder = new Folder();
  const path = files(folder, { top: over("base", "raw"), base: new Uint8Array(512) });
  const image = await open(path);
  assertEquals((await failureOf(() => openImage(folder.file("base"), { format: "raw" }))).kind, "locked");
  image.close();
  (await openImage(folder.file("base"), { format: "raw" })).close();
});
