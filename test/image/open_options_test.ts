import { assert, assertEquals, assertRejects } from "@std/assert";
import { parseJsonName, parseOptionText } from "../../src/image/block_options.ts";
import { blockOptionsHelp } from "../../src/image/block_drivers.ts";
import { openImage, openImageOptions } from "../../src/image/open.ts";
import { BlockOptionError } from "../../src/storage/block_error.ts";
import { requires } from "../requires.ts";
import { failureOf, Folder, readBytes, run, sameBytes, writeBytes } from "../storage/support.ts";

const TEXTS: readonly (readonly [text: string, options: Record<string, string>])[] = [
  ["", {}],
  ["a=b", { a: "b" }],
  ["a=b,c=d", { a: "b", c: "d" }],
  ["a=b,,c,d=e", { a: "b,c", d: "e" }],
  ["a=,,,b=c", { a: ",", b: "c" }],
  ["a=b=c", { a: "b=c" }],
  ["a=,b=", { a: "", b: "" }],
  ["a,nob,c=d", { a: "on", b: "off", c: "d" }],
  ["a=1,a=2", { a: "2" }],
  ["id=x,a=1,", { a: "1" }],
];

for (const [text, options] of TEXTS) {
  Deno.test(`the option text "${text}" is ${JSON.stringify(options)}`, () => {
    assertEquals(Object.fromEntries(parseOptionText(text)), options);
  });
}

Deno.test("json: names may be nested, dotted, and in single quotes", () => {
  const options = parseJsonName(`json:{'driver': "raw", "file": {"a.b": 1, 'c': [{"d": true}, null]}, 'e"': 'it\\'s'}`);
  assertEquals(Object.fromEntries(options), {
    driver: "raw",
    "file.a.b": 1,
    "file.c.0.d": true,
    "file.c.1": null,
    'e"': "it's",
  });
});

Deno.test("json: names nested deeper than anybody needs are refused", async () => {
  for (const depth of [100, 100_000]) {
    const name = `json:${'{"file":'.repeat(depth)}1${"}".repeat(depth)}`;
    await assertRejects(() => openImage(name), BlockOptionError);
  }
});

Deno.test("the help names every driver", () => {
  const help = blockOptionsHelp().join("\n");
  for (const name of ["raw", "qcow2", "file", "null-co", "blkdebug"]) assert(help.includes(`\n${name} (`), name);
});

const QEMU = requires("qemu-img", "qemu-io");

Deno.test({
  name: "a name in an image is a path and never a set of options, even where the folder looks like a protocol",
  ...QEMU,
  async fn() {
    using folder = new Folder();
    folder.file("base", new Uint8Array(65536).fill(3));
    for (const name of ["json:{'driver':'null-co'}", "null-co://", "blkdebug::base", "mem:64k", "file:base"]) {
      const path = folder.file("image");
      run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", name, path, "64k");
      const { message } = await failureOf(() => openImage(path, { readOnly: true }));
      assert(message.includes("vblk opens only files by their path"), message);
    }
    // Relative to an image that the options name by a path with a colon.
    const odd = "null-co:";
    Deno.mkdirSync(folder.file(odd));
    folder.file(`${odd}/base`, new Uint8Array(65536).fill(3));
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", folder.file(`${odd}/image`), "64k");
    const image = await openImageOptions(`driver=qcow2,file.filename=${folder.path}/${odd}/image`, { readOnly: true });
    assertEquals((await readBytes(image, 0, 1))[0], 3);
    await image.close();
  },
});

Deno.test({
  name: "a snapshot of a qcow2 image takes writes and forgets them, those to its data file too",
  ...QEMU,
  async fn() {
    using folder = new Folder();
    for (const extra of [[], ["-o", `data_file=${folder.file("data")}`]]) {
      const path = folder.file("disk");
      run("qemu-img", "create", "-q", "-f", "qcow2", ...extra, path, "1M");
      run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 128k", path);
      const files = extra.length === 0 ? [path] : [path, folder.file("data")];
      const before = files.map((file) => Deno.readFileSync(file));
      const image = await openImage(path, { snapshot: true });
      await writeBytes(image, 60_000, new Uint8Array(200_000).fill(9));
      await image.flush();
      assertEquals((await readBytes(image, 200_000, 1))[0], 9);
      assertEquals((await readBytes(image, 59_999, 1))[0], 7);
      await image.close();
      files.forEach((file, i) => assert(sameBytes(Deno.readFileSync(file), before[i]), file));
    }
  },
});

Deno.test({
  name: "the data file and the backing image can be others than those in the image",
  ...QEMU,
  async fn() {
    using folder = new Folder();
    const [data, path] = ["data", "disk"].map((name) => folder.file(name));
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", `data_file=${data}`, path, "64k");
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", path);
    Deno.renameSync(data, folder.file("moved"));
    const image = await openImageOptions(
      `driver=qcow2,file.filename=${path},data-file.filename=${folder.file("moved")}`,
      { readOnly: true },
    );
    assertEquals((await readBytes(image, 100, 1))[0], 7);
    await image.close();
    const overlay = folder.file("overlay");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "missing", overlay, "64k");
    folder.file("base", new Uint8Array(65536).fill(4));
    const other = await openImageOptions(
      `driver=qcow2,file.filename=${overlay},backing.driver=raw,backing.file.filename=${folder.file("base")}`,
      { readOnly: true },
    );
    assertEquals((await readBytes(other, 100, 1))[0], 4);
    await other.close();
  },
});

Deno.test("options of the whole image change what openImageOptions() returns", async () => {
  const bytes = new Uint8Array(4096);
  const open = (text: string) => openImageOptions(`driver=raw,file.driver=blkdebug,file.image.driver=mem,` + text);
  // A rule that fails what must not get through.
  const fails = (ioType: string) =>
    `file.image.size=1M,file.inject-error.event=none,file.inject-error.iotype=${ioType},`;
  const cases = [
    ["flush", "cache.no-flush=on", "cache.no-flush=off"],
    ["discard", "discard=ignore", "discard=unmap"],
    ["write", "detect-zeroes=on", "detect-zeroes=off"],
  ] as const;
  for (const [ioType, kept, passed] of cases) {
    for (const [option, throughs] of [[kept, false], [passed, true]] as const) {
      const image = await open(fails(ioType) + option);
      const actions = {
        flush: async () => {
          await writeBytes(image, 0, bytes);
          await image.flush();
        },
        discard: async () => await image.discard(0, 4096),
        write: async () => await writeBytes(image, 0, bytes),
      };
      if (throughs) assertEquals((await failureOf(actions[ioType])).kind, "io");
      else await actions[ioType]();
      await image.close();
    }
  }
});
