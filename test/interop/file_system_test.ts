import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { attach } from "../../src/attach.ts";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder, randomBytes, run, sameBytes, tryRun } from "../storage/support.ts";
import { copyDisk } from "./copy.ts";

const DISK_BYTES = 8 << 20;

/** A file system, the program that makes it and the one that judges it. */
interface FileSystem {
  make: string;
  makeOptions: readonly string[];
  judge: string;
  judgeOptions: readonly string[];
  /** Where one wrong byte must not go unnoticed. */
  weakSpot: number;
}

const FILE_SYSTEMS: Record<string, FileSystem> = {
  ext4: {
    make: "mkfs.ext4",
    makeOptions: ["-q", "-F"],
    judge: "e2fsck",
    judgeOptions: ["-fn"],
    // The superblock's count of inodes.
    weakSpot: 1024,
  },
  vfat: {
    make: "mkfs.vfat",
    makeOptions: [],
    judge: "fsck.vfat",
    judgeOptions: ["-n"],
    // The first table's entry for a cluster in the middle, which the second then contradicts.
    weakSpot: 4 * 512 + 600,
  },
};

/** Makes a file system in a new file. */
function make(kind: FileSystem, folder: Folder, ...options: string[]): string {
  const path = folder.file("source", new Uint8Array());
  Deno.truncateSync(path, DISK_BYTES);
  run(kind.make, ...kind.makeOptions, ...options, path);
  return path;
}

/** Copies an image through two rings into a new file. */
async function copyOf(path: string, folder: Folder): Promise<string> {
  const copy = folder.file("copy", new Uint8Array());
  Deno.truncateSync(copy, DISK_BYTES);
  const source = await attach(path, { readOnly: true });
  const target = await attach(copy, { format: "raw" });
  await copyDisk(source.guest, target.guest, new Random(7), true);
  await source.close();
  await target.close();
  return copy;
}

/** Changes one byte of an image, through the ring. */
async function damage(path: string, offset: number): Promise<void> {
  const machine = await attach(path);
  const [byte] = await machine.guest.read(offset, 1);
  await machine.guest.write(offset, Uint8Array.of(byte ^ 0xff));
  await machine.close();
}

function isSound(kind: FileSystem, path: string): boolean {
  return tryRun(kind.judge, ...kind.judgeOptions, path).success;
}

for (const [name, kind] of Object.entries(FILE_SYSTEMS)) {
  Deno.test({
    name: `${name} written through the ring is sound, says ${kind.judge}, and no less sparse`,
    ...requires(kind.make, kind.judge),
    async fn() {
      using folder = new Folder();
      const source = make(kind, folder);
      const copy = await copyOf(source, folder);
      assert(isSound(kind, copy));
      assert(sameBytes(Deno.readFileSync(copy), Deno.readFileSync(source)));
      // Most of an empty file system is a hole, and pieces of 32 KiB leave the most of it.
      assert((Deno.statSync(copy).blocks ?? 0) * 512 < DISK_BYTES / 4, "the copy is not sparse");
    },
  });

  Deno.test({
    name: `${kind.judge} finds one wrong byte in a copy of ${name} (canary)`,
    ...requires(kind.make, kind.judge),
    async fn() {
      using folder = new Folder();
      const copy = await copyOf(make(kind, folder), folder);
      await damage(copy, kind.weakSpot);
      assert(!isSound(kind, copy));
    },
  });
}

/** The contents of a file in an ext4 image, by way of debugfs. */
function contentsIn(image: string, name: string, folder: Folder): Uint8Array {
  const path = folder.file("dumped");
  run("debugfs", "-R", `dump /${name} ${path}`, image);
  return Deno.readFileSync(path);
}

Deno.test({
  name: "what debugfs changes in an ext4 file system arrives when only the sectors that differ go through the ring",
  ...requires("mkfs.ext4", "debugfs", "e2fsck"),
  async fn() {
    using folder = new Folder();
    const random = new Random(11);
    const [first, second] = [randomBytes(random, 300_000), randomBytes(random, 70_001)];
    Deno.mkdirSync(folder.file("files"));
    folder.file("files/first", first);
    const source = make(FILE_SYSTEMS.ext4, folder, "-d", folder.file("files"));
    const copy = await copyOf(source, folder);
    assertEquals(contentsIn(copy, "first", folder), first);

    run("debugfs", "-w", "-R", `write ${folder.file("second", second)} second`, source);
    run("debugfs", "-w", "-R", "rm /first", source);
    assertNotEquals(await copyDifferences(source, copy), 0);
    assert(isSound(FILE_SYSTEMS.ext4, copy));
    assertEquals(contentsIn(copy, "second", folder), second);
    assert(!tryRun("debugfs", "-R", "ls -p /", copy).text.includes("/first/"));
    assertEquals(await copyDifferences(source, copy), 0);
  },
});

/** Makes `copy` like `source` through their rings; returns how many sectors had to be written. */
async function copyDifferences(source: string, copy: string): Promise<number> {
  const from = await attach(source, { readOnly: true });
  const to = await attach(copy);
  const [wanted, found] = await Promise.all([from.guest.read(0, DISK_BYTES), to.guest.read(0, DISK_BYTES)]);
  const writes: Promise<void>[] = [];
  for (let at = 0; at < DISK_BYTES; at += 512) {
    const sector = wanted.subarray(at, at + 512);
    if (!sameBytes(sector, found.subarray(at, at + 512))) writes.push(to.guest.write(at, sector));
  }
  await Promise.all(writes);
  await from.close();
  await to.close();
  return writes.length;
}
