import { assert, assertEquals } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { makeImage, NEEDS_QEMU, pattern, writePatternFile } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder, run } from "../storage/support.ts";
import { digHoles, hidesHoles, runQemuImg, runVblk, sameAsQemuImg } from "./qemu_img.ts";

Deno.test({
  name: "compare says of any two images what qemu-img says, with its exit code, strict or not",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    const seen = new Set<number>();
    for (let seed = 1; seed <= 12; seed++) {
      const random = new Random(seed);
      const { path, sizeBytes, story } = await makeImage(folder, `disk-${seed}`, random);
      const other = folder.file("other");
      try {
        run("qemu-img", "convert", "-O", random.pick(["raw", "qcow2"]), path, other);
      } catch {
        // Once in a thousand QEMU 7.2 damages its image so that it can't read it itself.
        continue;
      }
      const told = `with seed ${seed}: ${story.join("\n")}`;
      digHoles(other);
      const modes = hidesHoles(path) || existsSync(`${path}.base`) ? [[]] : [[], ["-s"]];
      for (const args of modes) seen.add((await sameAsQemuImg(["compare", ...args, path, other], told)).code);
      const at = 512 * random.below(sizeBytes / 512) + random.below(512);
      const format = JSON.parse(run("qemu-img", "info", "--output=json", other)).format;
      run("qemu-io", "-f", format, "-c", `write -P ${random.between(0, 255)} ${at} 1`, other);
      seen.add((await sameAsQemuImg(["compare", path, other], told)).code);
      run("qemu-img", "resize", "-q", "-f", format, other, `+${512 * random.between(1, 1000)}`);
      if (random.oneIn(2)) run("qemu-io", "-f", format, "-c", `write -P 3 ${sizeBytes + 100} 1`, other);
      for (const args of [["-s"], [], ["-q"]]) await sameAsQemuImg(["compare", ...args, other, path], told);
    }
    assertEquals([...seen].sort(), [0, 1]);
  },
});

Deno.test({
  name: "compare exits with 4 when data cannot be read, and says where",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const raw = folder.file("raw", new Uint8Array(1 << 20).fill(1));
    const image = folder.file("image");
    run("qemu-img", "convert", "-c", "-O", "qcow2", raw, image);
    const bytes = Deno.readFileSync(image);
    // What follows the tables is compressed data.
    Deno.writeFileSync(image, bytes.fill(0xff, 5 * 65536));
    const [ours, theirs] = [await runVblk(["compare", raw, image]), await runQemuImg(["compare", raw, image])];
    assertEquals([ours.code, theirs.code], [4, 4]);
    // Why it can't be read is said in more words.
    const prefix = theirs.err[0].replace(/Input\/output error$/, "");
    assert(ours.err[0].startsWith(prefix), `${ours.err[0]}, not ${theirs.err[0]}`);
  },
});

Deno.test({
  name: "compare -s tells a run that reaches the end from one that does not, as qemu-img does",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const full = folder.file("full", new Uint8Array(1 << 20).fill(1));
    const half = folder.file("half", new Uint8Array(1 << 19).fill(1));
    Deno.truncateSync(half, 1 << 20);
    const { out } = await sameAsQemuImg(["compare", "-s", full, half]);
    assertEquals(out, ["Strict mode: Offset 0 block status mismatch!"]);
  },
});
