import { assert, assertEquals, assertMatch } from "@std/assert";
import { makeImage, NEEDS_QEMU, pattern, writePatternFile } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import { runQemuImg, runVblk, sameAsQemuImg } from "./qemu_img.ts";
import { vblk } from "./vblk.ts";

/** Fails unless qemu-img says that the two hold the same disk, and that a qcow2 image is clean. */
function checkTarget(target: string, format: string, source: string, told: string): void {
  const same = tryRun("qemu-img", "compare", "-F", format, source, target);
  assert(same.success, `${same.text}${told}`);
  if (format !== "qcow2") return;
  const clean = tryRun("qemu-img", "check", "-f", "qcow2", target);
  assert(clean.success, `${clean.text}${told}`);
}

const QCOW2_OPTIONS = [
  "cluster_size=512",
  "cluster_size=4096,compat=0.10",
  "cluster_size=65536",
  "cluster_size=2M",
  "extended_l2=on,cluster_size=16k",
  "compression_type=zstd,cluster_size=64k",
  "lazy_refcounts=on,refcount_bits=64",
];

Deno.test({
  name: "convert makes of any image that QEMU makes one that qemu-img compare finds the same, and check clean",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    for (let seed = 1; seed <= 14; seed++) {
      const random = new Random(seed);
      const { path, story } = await makeImage(folder, `disk-${seed}`, random);
      // Once in a thousand QEMU 7.2 damages its image so that it can't read it itself.
      if (!tryRun("qemu-img", "convert", path, folder.file("probe")).success) continue;
      const target = folder.file("target");
      const format = random.pick(["raw", "qcow2", "qcow2", "qcow2"]);
      const args = ["convert", "-O", format];
      if (format === "qcow2") args.push("-o", random.pick(QCOW2_OPTIONS));
      if (format === "qcow2" && random.oneIn(2)) args.push("-c");
      if (random.oneIn(3)) args.push("-S", random.pick(["0", "512", "64k"]));
      const told = `with seed ${seed}: ${[...story, args.join(" ")].join("\n")}`;
      assertEquals(await runVblk([...args, path, target]), { code: 0, out: [], err: [] }, told);
      checkTarget(target, format, path, told);
      const back = folder.file("back");
      assertEquals(await runVblk(["convert", "-O", "raw", target, back]), { code: 0, out: [], err: [] }, told);
      checkTarget(back, "raw", path, told);
      Deno.removeSync(target);
    }
  },
});

/** A disk with text, chance and zeros. */
function mixedDisk(folder: Folder, name: string, random: Random, sizeBytes: number): string {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes; at += 65536) {
    const part = bytes.subarray(at, Math.min(at + 65536, sizeBytes));
    const kind = random.below(3);
    if (kind === 0) random.fill(part);
    else if (kind === 1) {
      part.set(new TextEncoder().encode("all work and no play ".repeat(4000)).subarray(0, part.length));
    }
  }
  return folder.file(name, bytes);
}

Deno.test({
  name: "convert -c compresses on several threads what qemu-img reads back",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const source = mixedDisk(folder, "source", new Random(3), (9 << 20) + 512 * 77);
    for (const compression of ["zlib", "zstd"]) {
      const target = folder.file(`${compression}.qcow2`);
      const args = ["convert", "-c", "-O", "qcow2", "-o", `compression_type=${compression}`, source, target];
      assertEquals((await runVblk(args)).code, 0);
      checkTarget(target, "qcow2", source, compression);
      assertMatch(run("qemu-img", "check", target), /[1-9][\d.]*% compressed clusters/);
      assert(Deno.statSync(target).size < 0.75 * Deno.statSync(source).size);
    }
  },
});

Deno.test({
  name: "convert -n, -B, several sources and -l do what they do in qemu-img",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const random = new Random(5);
    const a = mixedDisk(folder, "a", random, 1 << 20);
    const b = mixedDisk(folder, "b", random, 3 << 18);
    const target = folder.file("target");
    const expected = folder.file("expected");
    const both = async (...args: string[]) => {
      const [ours, theirs] = [
        await runVblk(["convert", ...args, target]),
        await runQemuImg(["convert", ...args, expected]),
      ];
      assertEquals([ours, ours.code], [theirs, 0], args.join(" "));
    };
    await both(a, b);
    assertEquals(Deno.readFileSync(target), Deno.readFileSync(expected));
    // A target that holds something, and is longer than the source.
    await both("-n", b);
    assertEquals(Deno.readFileSync(target), Deno.readFileSync(expected));

    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", a, "-F", "raw", folder.file("top"));
    run(
      "qemu-io",
      "-c",
      "write -P 1 64k 128k",
      "-c",
      "write -z 256k 64k",
      "-c",
      "discard 320k 64k",
      folder.file("top"),
    );
    for (const compress of [[], ["-c"]]) {
      await both("-O", "qcow2", ...compress, "-B", a, "-F", "raw", folder.file("top"));
      assertEquals(run("qemu-img", "compare", "-s", target, expected), "Images are identical.\n");
      // What was not in the source is not in the target.
      const info = JSON.parse(run("qemu-img", "map", "--output=json", target)) as { depth: number }[];
      assert(info.some(({ depth }) => depth === 1));
      checkTarget(target, "qcow2", expected, "");
    }

    run("qemu-img", "snapshot", "-c", "before", folder.file("top"));
    run("qemu-io", "-c", "write -P 9 0 512k", folder.file("top"));
    for (const which of ["before", "1", "snapshot.name=before", "snapshot.id=1"]) {
      await both("-l", which, folder.file("top"));
      assertEquals(Deno.readFileSync(target), Deno.readFileSync(expected));
      await both(folder.file("top"));
    }
  },
});

Deno.test({
  name: "map, compare, convert and dd refuse what qemu-img refuses, with its words and exit codes",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const disk = mixedDisk(folder, "disk", new Random(1), 1 << 20);
    const out = folder.file("out");
    const none = folder.file("none");
    run("qemu-img", "create", "-q", "-f", "qcow2", folder.file("q"), "1M");
    const cases: string[] = [
      "map",
      `map ${none}`,
      `map --output=xml ${disk}`,
      `map -s abc ${disk}`,
      `map --nope ${disk}`,
      `map -f foo ${disk}`,
      `map -s 2M --output=json ${disk}`,
      "compare",
      `compare ${disk} ${none}`,
      `compare -f foo ${disk} ${disk}`,
      `compare -T bad ${disk} ${disk}`,
      `compare -z ${disk} ${disk}`,
      "dd",
      `dd if=${disk}`,
      `dd if=${disk} of=${out} bs=0`,
      `dd if=${disk} of=${out} bs=99999999999`,
      `dd if=${disk} of=${out} count=x`,
      "dd foo",
      "dd foo=1",
      `dd -O foo if=${disk} of=${out}`,
      `dd if=${none} of=${out}`,
      `dd if=${disk} of=${none}/x`,
      "convert",
      `convert ${disk}`,
      `convert ${none} ${out}`,
      `convert -x ${disk}`,
      `convert -O foo ${disk} ${out}`,
      `convert -c ${disk} ${out}`,
      `convert -O qcow2 -o foo=1 ${disk} ${out}`,
      `convert -S 100 ${disk} ${out}`,
      `convert -S 17M ${disk} ${out}`,
      `convert -S abc ${disk} ${out}`,
      `convert -m 99 ${disk} ${out}`,
      `convert -n -o x=1 ${disk} ${out}`,
      `convert --target-is-zero ${disk} ${out}`,
      `convert --target-image-opts ${disk} ${out}`,
      `convert -t foo ${disk} ${out}`,
      `convert -T foo ${disk} ${out}`,
      `convert -r x ${disk} ${out}`,
      `convert --skip-broken-bitmaps ${disk} ${out}`,
      `convert -C -c ${disk} ${out}`,
      `convert -C -S 4k ${disk} ${out}`,
      `convert -C --salvage ${disk} ${out}`,
      `convert -l x ${disk} ${out}`,
      `convert -l x ${folder.file("q")} ${out}`,
      `convert -l snapshot.foo=1 ${folder.file("q")} ${out}`,
      `convert -l x ${disk} ${disk} ${out}`,
      `convert -B ${disk} ${disk} ${out}`,
      `convert -O qcow2 -B ${disk} ${disk} ${out}`,
      `convert -O qcow2 -B ${disk} -F raw ${disk} ${disk} ${out}`,
      `convert -c -O qcow2 -o preallocation=full ${disk} ${out}`,
      `convert -n ${disk} ${none}`,
      `convert ${disk} ${none}/x`,
      `convert -O qcow2 ${disk} ${none}/x`,
      `convert -c -O qcow2 -o data_file=${out}.data ${disk} ${out}`,
      "convert -O qcow2 -o help",
      `map --image-opts driver=raw,file.filename=${disk}`,
      `map --image-opts -f raw driver=raw,file.filename=${disk}`,
      `map --image-opts driver=foo,file.filename=${disk}`,
      `map --image-opts driver=raw,foo=1,file.filename=${disk}`,
      `compare --image-opts driver=raw,file.filename=${disk} driver=raw,file.filename=${none}`,
      `compare --image-opts -F raw driver=raw,file.filename=${disk} driver=raw,file.filename=${none}`,
      `convert --image-opts driver=raw,file.filename=${disk} ${out}`,
      `dd --image-opts if=driver=raw,file.filename=${disk} of=${out}`,
    ];
    for (const line of cases) await sameAsQemuImg(line.split(" "));
  },
});

Deno.test({
  name: "convert leaves a source alone that is its target too",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const disk = mixedDisk(folder, "disk", new Random(1), 1 << 20);
    const before = Deno.readFileSync(disk);
    for (const args of [["convert", disk, disk], ["convert", "-n", disk, disk], ["dd", `if=${disk}`, `of=${disk}`]]) {
      const { code, err } = await runVblk(args);
      assertEquals(code, 1);
      assertMatch(err[0], /Failed to get "write" lock/);
      assertEquals(Deno.readFileSync(disk), before);
    }
  },
});

Deno.test({
  name: "-p prints progress on a pipe; without it, and with -q, nothing is printed",
  async fn() {
    using folder = new Folder();
    const disk = mixedDisk(folder, "disk", new Random(1), 1 << 20);
    const target = folder.file("target");
    const loud = await vblk(["convert", "-p", disk, target]);
    assertMatch(loud.stdout, /^ {4}\(0\.00\/100%\)\r.* {4}\(100\.00\/100%\)\r\n$/s);
    for (
      const args of [["convert", disk, target], ["convert", "-p", "-q", disk, target], [
        "compare",
        "-q",
        "-p",
        disk,
        target,
      ]]
    ) {
      assertEquals(await vblk(args), { code: 0, stdout: "", stderr: "" });
    }
  },
});

Deno.test({
  name: "dd makes what qemu-img dd makes, for any block size, count and skip",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const random = new Random(7);
    const disk = mixedDisk(folder, "disk", random, (1 << 18) + 512);
    const image = folder.file("image");
    run("qemu-img", "convert", "-O", "qcow2", disk, image);
    const large = folder.file("large", random.bytes(3 << 20));
    const cases: string[][] = [["bs=1000", "count=2500"], [], ["bs=1k", "skip=1000"], ["count=0"], [
      "bs=1k",
      "skip=257",
      "count=3",
    ]];
    for (let i = 0; i < 12; i++) {
      cases.push([
        `bs=${random.pick([100, 512, 1000, 4096, 100_000, 1 << 20])}`,
        ...random.oneIn(2) ? [`count=${random.below(300)}`] : [],
        ...random.oneIn(2) ? [`skip=${random.below(random.pick([3, 300]))}`] : [],
      ]);
    }
    for (const [i, args] of cases.entries()) {
      const format = random.pick(["raw", "qcow2"]);
      const all = ["dd", "-O", format, ...args, `if=${i === 0 ? large : random.pick([disk, image])}`];
      const [ours, theirs] = [folder.file(`ours-${i}`), folder.file(`theirs-${i}`)];
      const ending = await runVblk([...all, `of=${ours}`]);
      assertEquals(ending, await runQemuImg([...all, `of=${theirs}`]), all.join(" "));
      if (format === "raw") assertEquals(Deno.readFileSync(ours), Deno.readFileSync(theirs), all.join(" "));
      else checkTarget(ours, format, theirs, all.join(" "));
    }
  },
});

Deno.test({
  name: "threads read ahead in the image that the user named, and nowhere else",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const source = mixedDisk(folder, "source", new Random(9), 20 << 20);
    const image = folder.file("image");
    run("qemu-img", "convert", "-c", "-O", "qcow2", source, image);
    const other = folder.file("other", new Uint8Array(20 << 20).fill(3));
    const top = folder.file("top");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", other, "-F", "raw", top);
    run("qemu-io", "-c", `write -c -P 5 0 64k`, top);
    const target = folder.file("target");
    for (const [name, same] of [[image, source], [top, top]]) {
      assertEquals((await runVblk(["convert", name, target])).code, 0);
      checkTarget(target, "raw", same, name);
    }
    // The same path, with another image behind it than the one that it names.
    const json = `json:${
      JSON.stringify({
        driver: "qcow2",
        file: { driver: "file", filename: top },
        backing: { driver: "raw", file: { driver: "file", filename: source } },
      })
    }`;
    assertEquals((await runVblk(["convert", json, target])).code, 0);
    checkTarget(target, "raw", json, json);
  },
});
