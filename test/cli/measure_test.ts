/** `vblk measure` beside `qemu-img measure`. */

import { NEEDS_QEMU, start } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder } from "../storage/support.ts";
import { sameAsQemuImg } from "./qemu_img.ts";

function pickOptions(random: Random): string[] {
  const old = random.oneIn(4);
  const extended = random.oneIn(4);
  const options = [
    `cluster_size=${2 ** random.between(extended ? 14 : 9, 21)}`,
    ...old ? ["compat=0.10"] : [`refcount_bits=${2 ** random.below(7)}`],
    ...extended ? ["extended_l2=on"] : [],
    ...random.oneIn(4) ? [`preallocation=${random.pick(["metadata", "falloc", "full", "off"])}`] : [],
    ...random.oneIn(4) ? ["backing_file=base"] : [],
  ];
  return ["-O", "qcow2", "-o", options.join(",")];
}

Deno.test({
  name: "measure of a new disk prints what qemu-img prints, for any options",
  ...NEEDS_QEMU,
  async fn() {
    for (let seed = 1; seed <= 60; seed++) {
      const random = new Random(seed);
      const bytes = Math.floor(2 ** (random.below(4700) / 100));
      const args = random.oneIn(8) ? ["-O", "raw"] : pickOptions(random);
      const form = random.oneIn(2) ? ["--output=json"] : [];
      await sameAsQemuImg(["measure", ...form, ...args, "--size", String(bytes)], `with seed ${seed}`);
    }
  },
});

Deno.test({
  name: "measure of an image prints what qemu-img prints, bitmaps and snapshots included",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    for (let seed = 1; seed <= 12; seed++) {
      const random = new Random(seed);
      const [base, path] = [folder.file(`base-${seed}`), folder.file(`disk-${seed}`)];
      const cluster = `cluster_size=${2 ** random.between(10, 16)},compat=${random.pick(["0.10", "1.1", "1.1"])}`;
      const backing = random.oneIn(2) ? ["-b", base, "-F", "qcow2"] : [];
      await start("qemu-img", "create", "-q", "-f", "qcow2", base, "2M");
      await start("qemu-io", "-f", "qcow2", ...writes(random, 2 << 20), base);
      await start("qemu-img", "create", "-q", "-f", "qcow2", "-o", cluster, ...backing, path, "3M");
      await start("qemu-io", "-f", "qcow2", ...writes(random, 3 << 20), path);
      await start("qemu-img", "snapshot", "-c", "then", path);
      await start("qemu-io", "-f", "qcow2", ...writes(random, 3 << 20), path);
      // Version 2 has none.
      for (const name of ["a", "ümlaut"]) await start("qemu-img", "bitmap", "--add", path, name).catch(() => {});
      const told = `with seed ${seed}`;
      // Where much of a file takes no space, QEMU looks for holes in the clusters too.
      for (const file of [base, path]) Deno.writeFileSync(file, Deno.readFileSync(file));
      await sameAsQemuImg(["measure", ...pickOptions(random), path], told);
      await sameAsQemuImg(["measure", path], told);
      await sameAsQemuImg(["measure", "-l", "then", "-O", "qcow2", "--output=json", path], told);
    }
  },
});

/** Data, zeros and compressed clusters. */
function writes(random: Random, sizeBytes: number): string[] {
  return Array.from({ length: random.between(1, 6) }, () => {
    const offset = 65536 * random.below(sizeBytes / 65536);
    const range = `${offset} ${Math.min(512 * random.between(1, 300), sizeBytes - offset)}`;
    return ["-c", random.pick([`write -P 7 ${range}`, `write -z ${range}`, `write -c -P 9 ${offset} 64k`])];
  }).flat();
}

const CASES = `
--size 1M BASE
-f raw --size 1M
-l one --size 1M
--size abc
--size -1
-O qcow2 --size 8E
-O qcow2 --size 7E
-O qcow2 -o cluster_size=3 --size 1M
-O qcow2 -o cluster_size=4k,extended_l2=on --size 1M
-O qcow2 -o refcount_bits=3 --size 1M
-O qcow2 -o compat=3 --size 1G
-O qcow2 -o compat=v3 --size 1G
-O qcow2 -o preallocation=foo --size 1G
-O qcow2 -o compat=0.10,refcount_bits=8 --size 1G
-O qcow2 -o compat=0.10,extended_l2=on --size 1G
-O qcow2 -o size=1M --size 2M
-O qcow2 -o foo=1 --size 1M
-O raw -o foo=1 BASE
-O raw -o cluster_size=4k, BASE
-O qcow2 -o data_file=foo --size 1G
-O foo --size 1M
-O qcow2 -o cluster_size=512 DISK
-O qcow2 -l none DISK
-O qcow2 -l snapshot.foo=x DISK
nonexist
--output=x BASE
--image-opts --size 1M
--image-opts -O raw OPTIONS
BASE BASE
-U -O raw BASE
-O raw --size 1000`;

Deno.test({
  name: "measure says what qemu-img says, right or wrong",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const words: Record<string, string> = { BASE: folder.file("base"), DISK: folder.file("disk") };
    words.OPTIONS = `driver=qcow2,file.filename=${words.DISK}`;
    await start("qemu-img", "create", "-q", "-f", "raw", words.BASE, "1M");
    await start("qemu-img", "create", "-q", "-f", "qcow2", words.DISK, "1M");
    // Its entry in the directory just does not fit into a cluster of 512 bytes.
    await start("qemu-img", "bitmap", "--add", words.DISK, "b".repeat(489));
    await sameAsQemuImg(["measure"]);
    for (const line of CASES.trim().split("\n")) {
      await sameAsQemuImg(["measure", ...line.split(" ").map((word) => words[word] ?? word)]);
    }
  },
});
