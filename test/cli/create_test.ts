/** `vblk create` beside `qemu-img create`: what they print, how they end, and what they make. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { NEEDS_QEMU, start } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder } from "../storage/support.ts";
import { type Ending, runQemuImg, runVblk } from "./qemu_img.ts";

/** What qemu-img says besides: hints, which vblk marks as such. */
const HINTS = /^(?:Could not open backing|Detected format|Optional suffix|and exabytes)/;

/** Runs `create` with both, one after the other, and compares all that can be compared. */
async function sameCreate(args: readonly string[], path: string, data?: string): Promise<Ending> {
  const made: [Ending, string][] = [];
  for (const run of [runQemuImg, runVblk]) {
    for (const file of [path, data]) if (file !== undefined && existsSync(file)) Deno.removeSync(file);
    const { code, out, err } = await run(["create", ...args]);
    // Without its time of making: how much of the disk it takes depends on the file system.
    const info = code === 0 && existsSync(path) ? (await runQemuImg(["info", "-U", "--output=json", path])).out : [];
    const facts = info.filter((line) => !line.includes(`"actual-size"`)).join("\n");
    const files = [path, data].map((file) => file !== undefined && existsSync(file) ? Deno.statSync(file).size : null);
    made.push([{ code, out, err: err.join("\n").split(HINTS)[0].split("\n") }, `${facts}\n${files[1]}`]);
  }
  const [theirs, ours] = made;
  const told = `create ${args.join(" ")}`;
  const clean = (ending: Ending) => ({ ...ending, err: ending.err.filter((line) => !HINTS.test(line)) });
  assertEquals(clean(ours[0]), clean(theirs[0]), told);
  assertEquals(ours[1], theirs[1], told);
  return ours[0];
}

function pickOptions(random: Random, folder: Folder): { args: string[]; data?: string } {
  const old = random.oneIn(4);
  const options = [`compat=${old ? random.pick(["0.10", "v2"]) : random.pick(["1.1", "v3"])}`];
  const extended = !old && random.oneIn(3);
  if (extended) options.push("extended_l2=on");
  options.push(`cluster_size=${2 ** random.between(extended ? 14 : 9, 21)}`);
  const args: string[] = [];
  const backing = random.oneIn(3);
  if (backing) args.push("-b", random.pick(["base.raw", folder.file("base.raw")]), "-F", "raw");
  if (!old && random.oneIn(2)) options.push(`refcount_bits=${2 ** random.below(7)}`);
  if (!old && random.oneIn(3)) options.push(`lazy_refcounts=${random.pick(["on", "off"])}`);
  if (!old && random.oneIn(3)) options.push(`compression_type=${random.pick(["zlib", "zstd"])}`);
  const data = !old && random.oneIn(4) ? folder.file("data") : undefined;
  if (data !== undefined) options.push(`data_file=${data}`, ...backing || random.oneIn(2) ? [] : ["data_file_raw=on"]);
  if ((!backing || extended) && random.oneIn(2)) {
    options.push(`preallocation=${random.pick(["off", "metadata", "falloc", "full"])}`);
  }
  return { args: [...args, "-o", random.shuffle(options).join(",")], data };
}

Deno.test({
  name: "create makes what qemu-img makes, for any options, and prints the same",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    await start("qemu-img", "create", "-q", "-f", "raw", folder.file("base.raw"), "1M");
    for (let seed = 1; seed <= 25; seed++) {
      const random = new Random(seed);
      const { args, data } = pickOptions(random, folder);
      const path = folder.file("disk.qcow2");
      const size = args.includes("-b") && random.oneIn(2) ? [] : [String(random.below(8 << 20))];
      const told = `with seed ${seed}`;
      const { code } = await sameCreate(["-f", "qcow2", ...args, path, ...size], path, data).catch((error) => {
        throw new Error(`${told}: ${error.message}`, { cause: error });
      });
      assertEquals(code, 0, told);
      assertEquals((await runQemuImg(["check", "-q", path])).code, 0, told);
    }
  },
});

Deno.test({
  name: "an image of the usual kind is the same as qemu-img's, byte by byte",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    await start("qemu-img", "create", "-q", "-f", "raw", folder.file("base"), "1M");
    const path = folder.file("disk");
    for (
      const args of [
        [path, "20G"],
        ["-o", "compat=0.10", path, "20G"],
        ["-b", "base", "-F", "raw", path],
        ["-o", "preallocation=metadata", path, "20M"],
        ["-o", "extended_l2=on,compression_type=zstd,lazy_refcounts=on,refcount_bits=1", path, "1G"],
        ["-o", "cluster_size=512", path, "1M"],
      ]
    ) {
      await runQemuImg(["create", "-f", "qcow2", ...args]);
      const theirs = Deno.readFileSync(path);
      await runVblk(["create", "-f", "qcow2", ...args]);
      assertEquals(Deno.readFileSync(path), theirs, args.join(" "));
    }
  },
});

/** Command lines of which most are wrong; DISK stands for the new image. */
const CASES = `
-f qcow2 -o cluster_size=3 DISK 1M
-f qcow2 -o cluster_size=511k DISK 1M
-f qcow2 -o cluster_size=64kk DISK 1M
-f qcow2 -o cluster_size DISK 1M
-f qcow2 -o cluster_size=1.5k DISK 1M
-f qcow2 -o compat=0.11 DISK 1M
-f qcow2 -o foo=1 DISK 1M
-f qcow2 -o lazy_refcounts=maybe DISK 1M
-f qcow2 -o lazy_refcounts DISK 1M
-f qcow2 -o refcount_bits=3 DISK 1M
-f qcow2 -o refcount_bits=x DISK 1M
-f qcow2 -o refcount_bits=-1 DISK 1M
-f qcow2 -o refcount_bits=0x8 DISK 1M
-f qcow2 -o compat=0.10,refcount_bits=8 DISK 1M
-f qcow2 -o compat=0.10,lazy_refcounts=on DISK 1M
-f qcow2 -o compat=0.10,extended_l2=on DISK 1M
-f qcow2 -o compat=0.10,compression_type=zstd DISK 1M
-f qcow2 -o compat=0.10,data_file=dd DISK 1M
-f qcow2 -o extended_l2=on,cluster_size=4k DISK 1M
-f qcow2 -o preallocation=foo DISK 1M
-f qcow2 -o compression_type=lzo DISK 1M
-f qcow2 -o data_file_raw=on DISK 1M
-f qcow2 -o backing_fmt=raw DISK 1M
-f qcow2 -o backing_fmt= DISK 1M
-f qcow2 -o encryption=off DISK 1M
-f qcow2 -o nocow=off,extent_size_hint=1M DISK 1M
-f qcow2 -o size=1k,size=2k DISK
-f qcow2 -o size=2M DISK 1M
-f qcow2 -o cluster_size=4k, DISK 1M
-f qcow2 -o cluster_size=4k -o refcount_bits=8 DISK 1M
-f qcow2 -F raw DISK 1M
-f qcow2 -F foo DISK 1M
-f qcow2 -b BASE DISK 1M
-f qcow2 -b BASE -F foo DISK
-f qcow2 -b BASE -F qcow2 DISK
-f qcow2 -b file:BASE -F raw DISK
-f qcow2 -b BASE -F raw -o preallocation=full DISK
-f qcow2 -b BASE -F raw -o preallocation=falloc,extended_l2=on DISK
-f qcow2 -b BASE -F raw -o data_file=dd,data_file_raw=on DISK
-f qcow2 -b BASE -F raw -o backing_file=other,backing_fmt=qcow2 DISK
-f qcow2 -b nonexist -F raw DISK
-f qcow2 -u -b nonexist -F raw DISK 1M
-f qcow2 -u -b nonexist DISK 1M
-f qcow2 -u -b nonexist -F raw DISK
-f qcow2 -u -b LONG -F raw DISK 1M
-f qcow2 -u -b LONG -F raw -o cluster_size=512 DISK 1M
-f qcow2 -b DISK -F qcow2 DISK 1M
-f qcow2 DISK
-f qcow2 DISK 1M 2M
-f qcow2
-f qcow2 DISK abc
-f qcow2 DISK 1.5M
-f qcow2 DISK -1
-f qcow2 -- DISK -1
-f qcow2 DISK 9E
-f qcow2 DISK 7E
-f qcow2 -o cluster_size=512 DISK 1T
-f qcow2 DISK 1000
-f qcow2 DISK 0
-f qcow2 -q DISK 1M
-f qcow2 /nonexist/x 1M
-f qcow2 / 1M
-f qcow2 -o help
-f qcow2 -o help DISK
-o help
-o help DISK
-f foo -o help
-f foo DISK 1M
DISK 1M
DISK 1000
-f raw -o preallocation=full DISK 1M
-f raw -o preallocation=bar DISK 1M
-f raw -o nocow=off DISK 1M
-f raw -b BASE DISK 1M
-f raw -F raw DISK 1M
-Z DISK 1M
--foo DISK 1M`;

Deno.test({
  name: "create says what qemu-img says, right or wrong",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const base = folder.file("base");
    await start("qemu-img", "create", "-q", "-f", "raw", base, "1M");
    const disk = folder.file("disk");
    const words: Record<string, string> = {
      DISK: disk,
      BASE: base,
      LONG: "a".repeat(1000),
      "file:BASE": `file:${base}`,
    };
    let failed = 0;
    for (const line of CASES.trim().split("\n")) {
      const { code } = await sameCreate(line.split(" ").map((word) => words[word] ?? word), disk);
      if (code !== 0) failed++;
    }
    assert(failed > 40);
  },
});

Deno.test("create refuses by name what vblk has not got", async () => {
  using folder = new Folder();
  const disk = folder.file("disk");
  for (
    const [args, says] of [
      [["-f", "vmdk", disk, "1M"], "Unknown file format 'vmdk'"],
      [["-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s", disk, "1M"], "encrypt.format"],
      [["-f", "qcow2", "-o", "encryption=on", disk, "1M"], "encrypt"],
      [["-f", "qcow2", "--object", "secret,id=s,data=x", disk, "1M"], "--object"],
      [["-f", "qcow2", "nbd:localhost", "1M"], "Unknown protocol 'nbd'"],
    ] as const
  ) {
    const { code, err } = await runVblk(["create", ...args]);
    assertEquals(code, 1);
    assertStringIncludes(err.join("\n"), says);
    assert(!existsSync(disk));
  }
});

Deno.test("create leaves an image alone that somebody uses, and one that it can't replace", async () => {
  using folder = new Folder();
  const disk = folder.file("disk", new Uint8Array(4096).fill(5));
  const used = DenoFileStorage.open(disk);
  const { code, err } = await runVblk(["create", "-q", "-f", "qcow2", disk, "1M"]);
  used.close();
  assertEquals(code, 1);
  assertStringIncludes(err.join("\n"), `Failed to get "write" lock`);
  assertEquals((await runVblk(["create", "-q", "-f", "qcow2", "-o", "cluster_size=3", disk, "1M"])).code, 1);
  assertEquals(Deno.readFileSync(disk), new Uint8Array(4096).fill(5));
});

Deno.test("create does not replace an image that the new one would need, by whatever name", async () => {
  using folder = new Folder();
  const [base, over] = [folder.file("base"), folder.file("over")];
  Deno.symlinkSync(base, folder.file("link"));
  assertEquals((await runVblk(["create", "-q", "-f", "qcow2", base, "1M"])).code, 0);
  assertEquals((await runVblk(["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", over])).code, 0);
  const before = Deno.readFileSync(base);
  for (const backing of ["./base", "link", "over"]) {
    const { code, err } = await runVblk(["create", "-f", "qcow2", "-b", backing, "-F", "qcow2", base]);
    assertEquals(code, 1, backing);
    assertStringIncludes(err.join("\n"), "Trying to create an image with the same filename as the backing file");
  }
  assertEquals(Deno.readFileSync(base), before);
});
