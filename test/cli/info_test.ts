/** `vblk info` beside `qemu-img info`. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { readHeader } from "../../src/image/qcow2/header.ts";
import { build, storageOf } from "../image/qcow2/build.ts";
import { makeImage, NEEDS_QEMU, pattern, start, writePatternFile } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder } from "../storage/support.ts";
import { type Ending, runQemuImg, runVblk } from "./qemu_img.ts";

const CACHE_LINE = /^l2 cache: .* at most, .* for the whole disk$/;

/** Runs both; what only vblk prints must be there, once for each qcow2 image, and is left out. */
async function sameInfo(args: readonly string[], told = args.join(" ")): Promise<Ending> {
  const [theirs, ours] = [await runQemuImg(["info", ...args]), await runVblk(["info", ...args])];
  const text = ours.out.join("\n");
  const own = /,\n *"vblk": \{\n *"l2-cache-size": 33554432,\n *"l2-tables-size": \d+\n *\}/g;
  const out = text.replace(own, "").split("\n").filter((line) => !CACHE_LINE.test(line));
  const images = theirs.out.filter((line) => /^file format: qcow2|"format": "qcow2"/.test(line)).length;
  const added = ours.out.filter((line) => CACHE_LINE.test(line)).length + (text.match(own)?.length ?? 0);
  assertEquals(added, images, told);
  assertEquals({ ...ours, out: ours.out.length === 0 ? [] : out }, theirs, told);
  return ours;
}

Deno.test({
  name: "info prints what qemu-img prints, in both forms, for any image that QEMU makes",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    let [snapshots, bitmaps] = [0, 0];
    for (let seed = 2000; seed < 2010; seed++) {
      const random = new Random(seed);
      const { path, story } = await makeImage(folder, `disk-${seed}`, random);
      for (let i = random.below(3); i > 0; i--) {
        const add = ["bitmap", "--add", ...random.oneIn(2) ? ["--disable"] : [], path, `b${i}-${"ü".repeat(i)}`];
        // Version 2 has none, and small clusters no room.
        if ((await runQemuImg(add)).code === 0) bitmaps++;
      }
      for (const args of [[], ["--output=json"], ["--backing-chain"], ["--backing-chain", "--output=json"]]) {
        const { out } = await sameInfo([...args, path], `with seed ${seed}: ${story.join("\n")}`);
        if (out.includes("Snapshot list:")) snapshots++;
      }
    }
    assert(snapshots > 4 && bitmaps > 4, `${snapshots} ${bitmaps}`);
  },
});

Deno.test({
  name: "info prints what qemu-img prints about what is special",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const at = (name: string) => folder.file(name);
    Deno.mkdirSync(at("sub"));
    Deno.writeFileSync(at("odd"), new Uint8Array(100));
    Deno.writeFileSync(at("empty"), new Uint8Array());
    const create = (name: string, ...args: string[]) =>
      start("qemu-img", "create", "-q", ...args, at(name), "1234567k");
    await create("base", "-f", "raw");
    await create("sub/up", "-f", "qcow2", "-b", "../base", "-F", "raw");
    await create("lost", "-f", "qcow2", "-u", "-b", "not-there", "-F", "raw");
    await create("net", "-f", "qcow2", "-u", "-b", "nbd://localhost/x", "-F", "raw");
    await create("old", "-f", "qcow2", "-o", "compat=0.10");
    await create("named", "-f", "qcow2");
    await start("qemu-img", "snapshot", "-c", "a name that is longer than its column", at("named"));
    await start("qemu-img", "snapshot", "-c", "ünïcode", at("named"));
    await create("dirty", "-f", "qcow2", "-o", "lazy_refcounts=on");
    setBits(at("dirty"), 79, 1);
    await create("broken", "-f", "qcow2");
    setBits(at("broken"), 79, 2);
    await create("data", "-f", "qcow2", "-o", `data_file=${at("raw")},data_file_raw=on`);
    Deno.removeSync(at("raw"));
    for (const name of ["odd", "empty", "base", "sub/up", "lost", "net", "old", "named", "dirty", "broken", "data"]) {
      await sameInfo([at(name)]);
      await sameInfo(["--output=json", at(name)]);
    }
    const wrong = [[], ["a", "b"], ["--output=xml", at("base")], ["--limits", at("base")], ["-f", "foo", at("base")]];
    const right = [["--image-opts", `driver=qcow2,file.filename=${at("old")}`], [`file:${at("base")}`]];
    for (
      const args of [
        ...wrong,
        ...right,
        [at("none")],
        ["-f", "qcow2", at("base")],
        ["-U", "-f", "raw", at("old")],
        ["--backing-chain", at("sub/up")],
        ["--backing-chain", at("lost")],
        [`json:{"driver":"raw","file":{"driver":"file","filename":"${at("old")}"}}`],
      ]
    ) await sameInfo(args);
  },
});

function setBits(path: string, at: number, bits: number): void {
  const bytes = Deno.readFileSync(path);
  bytes[at] |= bits;
  Deno.writeFileSync(path, bytes);
}

Deno.test("info opens nothing but the image, and the chain only as far as the formats are recorded", async () => {
  using folder = new Folder();
  const hidden = folder.file("hidden", new Uint8Array(4096));
  // Without a format: what a guest could have written to its raw disk.
  const guest = folder.file("guest", build({ backing: hidden }).bytes);
  const top = folder.file("top", build({ backing: guest }).bytes);
  const alone = await runVblk(["info", folder.file("lost", build({ backing: "/not/there" }).bytes)]);
  assertEquals([alone.code, alone.err], [0, []]);
  const chain = await runVblk(["info", "--backing-chain", top]);
  assertEquals([chain.code, chain.out], [1, []]);
  assertStringIncludes(chain.err.join("\n"), `The backing file of '${guest}' is not opened`);
});

Deno.test("info finds a chain that leads back into itself, by any name", async () => {
  using folder = new Folder();
  const top = folder.file("top", build({ backing: "./top" }).bytes);
  const { code, err } = await runVblk(["info", "--backing-chain", top]);
  assertEquals(code, 1);
  assertStringIncludes(err.join("\n"), "creates an infinite loop.");
});

Deno.test({
  name: "info of a damaged image ends in facts or in a clear error",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk");
    await start("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1M");
    for (const name of ["one", "two"]) await start("qemu-img", "snapshot", "-c", name, path);
    for (const name of ["three", "four"]) await start("qemu-img", "bitmap", "--add", path, name);
    const whole = Deno.readFileSync(path);
    const view = new DataView(whole.buffer);
    const header = await readHeader(storageOf(whole));
    const regions = [[0, 300], [header.snapshotsOffset, 160], [header.bitmaps!.offset, header.bitmaps!.lengthBytes]];
    const counts = [0, 0];
    for (let seed = 1; seed <= 1500; seed++) {
      const random = new Random(seed);
      const bytes = whole.slice();
      const damaged = new DataView(bytes.buffer);
      for (let i = random.between(1, 3); i > 0; i--) {
        const [offset, length] = random.pick(regions);
        const at = offset + random.below(length - 4);
        if (random.oneIn(2)) bytes[at] = random.next();
        else damaged.setUint32(at, random.pick([0, 1, 0xffffffff, 0x7fffffff, view.getUint32(at) + 1]));
      }
      Deno.writeFileSync(path, random.oneIn(10) ? bytes.subarray(0, random.below(bytes.byteLength)) : bytes);
      const args = random.oneIn(2) ? ["--output=json"] : [];
      const { code, out, err } = await runVblk(["info", "-f", "qcow2", ...args, path]);
      counts[code]++;
      assertEquals(code === 0 ? err.length : out.length, 0, `with seed ${seed}`);
      if (code === 0 && args.length > 0) JSON.parse(out.join("\n"));
      if (code === 1) assertStringIncludes(err[0], `'${path}'`, `with seed ${seed}`);
    }
    assert(counts[0] > 100 && counts[1] > 100, `${counts}`);
  },
});
