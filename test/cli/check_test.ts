import { assertEquals } from "@std/assert";
import { damaged, DAMAGES } from "../image/qcow2/damage.ts";
import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder, run } from "../storage/support.ts";
import { type Ending, runQemuImg, runVblk, sameAsQemuImg } from "./qemu_img.ts";

/** Data in two snapshots, compressed and fragmented clusters. */
function makeDisk(folder: Folder): string {
  const path = folder.file("disk.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "4M");
  run("qemu-io", "-c", "write -P 1 0 64k", "-c", "write -P 2 1M 8k", path);
  run("qemu-img", "snapshot", "-c", "one", path);
  run("qemu-io", "-c", "write -P 3 0 32k", "-c", "write -c -P 4 2M 8k", "-c", "write -z 3M 4k", path);
  return path;
}

/** Where QEMU names its formats' own messages, which are not about what was found. */
const QEMU_ONLY = /^qcow2: /;

/** Both on the same file, which each of them may change. */
async function both(path: string, bytes: Uint8Array, args: readonly string[]): Promise<[Ending, Ending]> {
  Deno.writeFileSync(path, bytes);
  const theirs = await runQemuImg(["check", ...args, path]);
  Deno.writeFileSync(path, bytes);
  const ours = await runVblk(["check", ...args, path]);
  return [ours, { ...theirs, err: theirs.err.filter((line) => !QEMU_ONLY.test(line)) }];
}

Deno.test({
  name: "check prints what qemu-img prints and ends as it does, for every kind of damage, in both forms, with each -r",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = makeDisk(folder);
    const sound = Deno.readFileSync(path);
    const codes = new Set<number>();
    const cases: [string, Uint8Array][] = [["sound", sound]];
    for (const kind of Object.keys(DAMAGES)) cases.push([kind, damaged(sound, new Random(kind.length), [kind]).bytes]);
    for (const [kind, bytes] of cases) {
      for (const args of [[], ["--output=json"], ["-q"], ["-r", "leaks"], ["-r", "all"]]) {
        const [ours, theirs] = await both(path, bytes, args);
        codes.add(ours.code);
        // The order of COPIED lines in a repair is that of safe writing.
        const lines = (ending: Ending) => args[0] === "-r" ? [...ending.err].sort() : ending.err;
        assertEquals([ours.code, ours.out], [theirs.code, theirs.out], `${kind}: ${args.join(" ")}`);
        assertEquals(lines(ours), lines(theirs), `${kind}: ${args.join(" ")}`);
      }
    }
    for (const code of [0, 2, 3]) assertEquals(codes.has(code), true, `${code}`);
  },
});

Deno.test({
  name: "check refuses with qemu-img's words and codes",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = makeDisk(folder);
    const raw = folder.file("disk.raw", new Uint8Array(4096));
    for (
      const args of [
        [raw],
        ["--output=json", raw],
        ["-f", "raw", path],
        ["-f", "qcow2", raw],
        ["-f", "nothing", path],
        ["-r", "some", path],
        ["--output", "yaml", path],
        ["-T", "sometimes", path],
        ["-r", "all", "-U", path],
        [],
        [path, path],
        ["-T", "none", "-U", path],
      ]
    ) await sameAsQemuImg(["check", ...args]);
    assertEquals((await runVblk(["check", raw])).code, 63);
  },
});

Deno.test({
  name: "check says by name what it has not got",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = makeDisk(folder);
    for (const [option, ...rest] of [["--image-opts"], ["--object", "secret,id=s"]]) {
      const { code, err } = await runVblk(["check", option, ...rest, path]);
      assertEquals([code, err.length], [1, 1]);
      assertEquals(err[0].startsWith(`${option}: `), true, err[0]);
    }
  },
});
