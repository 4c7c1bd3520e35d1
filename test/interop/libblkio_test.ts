/**
 * Disks served by `vblk serve` to QEMU 10 through libblkio, without a virtual machine: what `qemu-img` and `qemu-io`
 * read, write and discard there is what the image file then holds, and QEMU finds it sound.
 */

import { assert, assertEquals } from "@std/assert";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder, run, sameBytes, tryRun } from "../storage/support.ts";
import { frontEnd, requiresTrixie } from "../trixie.ts";
import { ServedDisk } from "./guest/served_disk.ts";
import { dump, KnownBytes, qemuIo, runTrixie, tryTrixie } from "./libblkio.ts";

const NEEDS = { ignore: requiresTrixie().ignore || requires("qemu-img", "qemu-io").ignore };
const DISK_BYTES = 3 * 2 ** 20 + 512 * 5;
const SESSIONS = 3;
const COMMANDS = 25;

/** Makes an image at a path, and says what to tell `vblk serve` of its format. */
type Make = (path: string) => void;

function create(path: string, format: string, ...options: string[]): void {
  run("qemu-img", "create", "-q", "-f", format, ...options, path, String(DISK_BYTES));
}

function qcow2(...options: string[]): Make {
  return (path) => create(path, "qcow2", ...options.flatMap((option) => ["-o", option]));
}

/** A qcow2 image over another one, over a raw one. */
function chain(path: string): void {
  create(`${path}.base`, "raw");
  run("qemu-io", "-f", "raw", "-c", "write -P 0x11 0 2M", `${path}.base`);
  create(`${path}.middle`, "qcow2", "-b", `${path}.base`, "-F", "raw");
  run("qemu-io", "-c", "write -P 0x22 1M 1M", `${path}.middle`);
  create(path, "qcow2", "-b", `${path}.middle`, "-F", "qcow2");
}

function compressed(path: string): void {
  create(path, "qcow2", "-o", "compression_type=zstd");
  run("qemu-io", ...["write -c -P 0x33 0 1M", "write -c -P 0x44 2M 64k"].flatMap((c) => ["-c", c]), path);
}

function withSnapshots(path: string): void {
  create(path, "qcow2");
  for (const name of ["one", "two"]) {
    run("qemu-io", "-c", `write -P ${name.length} 0 1M`, path);
    run("qemu-img", "snapshot", "-c", name, path);
  }
}

const IMAGES: readonly { name: string; format: string; serve: readonly string[]; make: Make }[] = [
  { name: "raw", format: "raw", serve: [], make: (path) => create(path, "raw") },
  { name: "raw, --direct", format: "raw", serve: ["--direct"], make: (path) => create(path, "raw") },
  { name: "raw, -t directsync", format: "raw", serve: ["-t", "directsync"], make: (path) => create(path, "raw") },
  { name: "qcow2", format: "qcow2", serve: [], make: qcow2() },
  { name: "qcow2, --direct", format: "qcow2", serve: ["--direct"], make: qcow2() },
  { name: "qcow2, -t writethrough", format: "qcow2", serve: ["-t", "writethrough"], make: qcow2("cluster_size=4k") },
  { name: "qcow2, -t unsafe", format: "qcow2", serve: ["-t", "unsafe"], make: qcow2("cluster_size=512") },
  {
    name: "qcow2 with subclusters, packed rings offered",
    format: "qcow2",
    serve: ["--device", "packed=on"],
    make: qcow2("extended_l2=on", "lazy_refcounts=on"),
  },
  { name: "qcow2 over a chain of backing files", format: "qcow2", serve: [], make: chain },
  { name: "qcow2 with compressed clusters", format: "qcow2", serve: [], make: compressed },
  { name: "qcow2 with snapshots", format: "qcow2", serve: [], make: withSnapshots },
];

/** The bytes of an image file as the host's QEMU reads it. */
function hostBytes(path: string, format: string, ...more: string[]): Uint8Array<ArrayBuffer> {
  run("qemu-img", "convert", "-f", format, ...more, "-O", "raw", path, `${path}.host`);
  return Deno.readFileSync(`${path}.host`);
}

for (const [i, { name, format, serve, make }] of IMAGES.entries()) {
  Deno.test({
    name: `qemu-io works on a served disk, ${SESSIONS} sessions one after the other, and the image is sound: ${name}`,
    ...NEEDS,
    async fn() {
      using folder = new Folder();
      const random = new Random(4100 + i);
      const path = folder.file("disk");
      make(path);
      const model = new KnownBytes(hostBytes(path, format));
      const snapshots = name.includes("snapshots") ? ["one", "two"] : [];
      const kept = snapshots.map((snapshot) => hostBytes(path, format, "-l", `snapshot.name=${snapshot}`));
      const story: string[] = [];
      await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", format, ...serve);
      for (let session = 0; session < SESSIONS; session++) {
        const commands = Array.from({ length: COMMANDS }, () => model.act(random)).flat();
        story.push(...commands);
        await qemuIo(disk.socket, commands);
        model.mustBe(await dump(disk.socket, folder.file("dump")), story.join("\n"));
      }
      assertEquals(await disk.stop(), 0, disk.errors);
      assertEquals(disk.errors, "");
      assert(sameBytes(hostBytes(path, format), model.bytes), story.join("\n"));
      if (format !== "qcow2") return;
      const { success, text } = tryRun("qemu-img", "check", path);
      assert(success, `${text}\n${story.join("\n")}`);
      for (const [i, snapshot] of snapshots.entries()) {
        assert(sameBytes(hostBytes(path, format, "-l", `snapshot.name=${snapshot}`), kept[i]), snapshot);
      }
    },
  });
}

Deno.test({
  name: "what is known of a disk is held against it, byte by byte (canary)",
  fn() {
    const model = new KnownBytes(new Uint8Array(1024));
    const found = new Uint8Array(1024);
    model.mustBe(found, "");
    found[1023] = 1;
    let message = "";
    try {
      model.mustBe(found, "told");
    } catch (error) {
      message = (error as Error).message;
    }
    assertEquals(message, "differs at 1023: told");
  },
});

for (const format of ["raw", "qcow2"]) {
  Deno.test({
    name: `qemu-img converts to and from a served disk, and compares it: ${format}`,
    ...NEEDS,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      create(path, format);
      const source = folder.file("source", new Random(4200).bytes(DISK_BYTES).fill(0, 1 << 20, 2 << 20));
      await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", format);
      const options = frontEnd(disk.socket);
      const compare = () =>
        tryTrixie("qemu-img", "compare", "--image-opts", options, `driver=raw,file.filename=${source}`);
      const different = await compare();
      assert(!different.success && different.text.includes("Content mismatch at offset 0!"), different.text);
      await runTrixie("qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts", source, options);
      assertEquals((await compare()).text, "Images are identical.\n");
      assert(sameBytes(await dump(disk.socket, folder.file("dump")), Deno.readFileSync(source)));
      assertEquals(await disk.stop(), 0, disk.errors);
      run("qemu-img", "compare", "-f", "raw", "-F", format, source, path);
      if (format === "qcow2") run("qemu-img", "check", path);
    },
  });

  Deno.test({
    name: `qemu-img bench writes and reads 64 requests deep, flushes in between, and the image is sound: ${format}`,
    ...NEEDS,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      // A power of two, all of whose blocks an odd stride comes by.
      const size = 4 << 20;
      run("qemu-img", "create", "-q", "-f", format, path, String(size));
      await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", format);
      const deep = ["bench", "-t", "none", "-d", "64", "-s", "4096", "--image-opts"];
      const writes = ["-c", "2000", "-S", `${7 * 4096}`, "-w", "--pattern=0x77", "--flush-interval=100"];
      await runTrixie("qemu-img", ...deep, ...writes, frontEnd(disk.socket));
      await runTrixie("qemu-img", ...deep, "-c", "10000", frontEnd(disk.socket));
      assertEquals(await disk.stop(), 0, disk.errors);
      assert(hostBytes(path, format).every((byte) => byte === 0x77));
      if (format === "qcow2") run("qemu-img", "check", path);
    },
  });

  Deno.test({
    name: `a served disk of 2 GiB and more is written at its ends and on both sides of 2^31 bytes: ${format}`,
    ...NEEDS,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      const size = 2 ** 31 + 2 ** 20;
      run("qemu-img", "create", "-q", "-f", format, path, String(size));
      await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", format);
      const ranges = [`0 64k`, `${2 ** 31 - 65536} 128k`, `${size - 512} 512`, `${2 ** 30} 2M`];
      await qemuIo(disk.socket, ranges.map((range, i) => `write -P ${i + 1} ${range}`));
      const reads = ranges.map((range, i) => `read -P ${i + 1} ${range}`);
      await qemuIo(disk.socket, [...reads, `read -P 0 ${2 ** 31 + 65536} 64k`]);
      assertEquals(await disk.stop(), 0, disk.errors);
      const text = run("qemu-io", "-r", "-f", format, ...reads.flatMap((command) => ["-c", command]), path);
      assert(!text.includes("failed"), text);
    },
  });
}

Deno.test({
  name: "a disk served read-only is read, refuses to be written, and stays as it is",
  ...NEEDS,
  async fn() {
    using folder = new Folder();
    const bytes = new Random(4300).bytes(1 << 20);
    const path = folder.file("disk", bytes);
    await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", "raw", "-r");
    const write = await tryTrixie("qemu-io", "--image-opts", "-c", "write 0 512", frontEnd(disk.socket));
    assert(write.text.includes("read-only"), write.text);
    const options = frontEnd(disk.socket, ",read-only=on");
    await runTrixie("qemu-img", "convert", "--image-opts", "-O", "raw", options, folder.file("dump"));
    assert(sameBytes(Deno.readFileSync(folder.file("dump")), bytes));
    assertEquals(await disk.stop(), 0, disk.errors);
    assert(sameBytes(Deno.readFileSync(path), bytes));
  },
});

Deno.test({
  name: "with --once the daemon ends after the first front-end, and what was written is in the image",
  ...NEEDS,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk");
    create(path, "qcow2");
    await using disk = await ServedDisk.start(path, folder.file("sock"), "-f", "qcow2", "--once");
    await qemuIo(disk.socket, ["write -P 0x66 1M 1M"]);
    assertEquals(await disk.ended(), 0, disk.errors);
    const text = run("qemu-io", "-f", "qcow2", "-c", "read -P 0x66 1M 1M", path);
    assert(!text.includes("failed"), text);
    run("qemu-img", "check", path);
  },
});
