import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { attach } from "../../src/attach.ts";
import type { BlkOptions } from "../../src/blk/options.ts";
import { Random } from "../random.ts";
import { realImage } from "../real_image.ts";
import { requires } from "../requires.ts";
import { Folder, run } from "../storage/support.ts";
import { checksum, copyDisk } from "./copy.ts";

function fixture(name: string): string {
  return fileURLToPath(new URL(`../../fixtures/${name}`, import.meta.url));
}

/** Copies a file through two rings of a kind into a new file; returns the new one's path. */
async function copyFile(path: string, folder: Folder, device: Partial<BlkOptions>): Promise<string> {
  const copy = folder.file("copy", new Uint8Array());
  Deno.truncateSync(copy, Deno.statSync(path).size);
  const source = await attach(path, { readOnly: true, format: "raw", device });
  const target = await attach(copy, { format: "raw", device });
  await copyDisk(source.guest, target.guest, new Random(1));
  if (device.queueSize === undefined) {
    // The reads were in flight together: one notification for each time that the queue of 256 was full.
    const { kicks, buffers } = source.statistics.report();
    assert(buffers > 20 && kicks <= Math.ceil(buffers / 128), `${buffers} requests took ${kicks} kicks`);
  }
  await source.close();
  await target.close();
  return copy;
}

const bootable = await realImage();

/** Disks that nobody here made by hand. */
const IMAGES = [
  { what: "an ext4 file system", path: fixture("ext4.img"), ignore: false },
  { what: "a FAT file system", path: fixture("vfat.img"), ignore: false },
  { what: "a bootable disk image of Debian's", path: bootable.path, ...bootable.requirement },
];

/** Rings of all kinds. */
const RINGS: Record<string, Partial<BlkOptions>> = {
  "split rings": {},
  "packed rings": { packed: true },
  "split rings without indirect descriptors, two queues of 8, segments of 4 KiB": {
    indirect: false,
    queues: 2,
    queueSize: 8,
    sizeMax: 4096,
  },
};

for (const { what, path, ignore } of IMAGES) {
  for (const [rings, device] of Object.entries(RINGS)) {
    Deno.test({
      name: `${what} survives a copy through ${rings}: same checksum`,
      ignore,
      async fn() {
        using folder = new Folder();
        const copy = await copyFile(path, folder, device);
        assertEquals(await checksum(copy), await checksum(path));
      },
    });
  }
}

Deno.test("the checksum of a copy changes with one bit of it (canary)", async () => {
  using folder = new Folder();
  const path = fixture("ext4.img");
  const copy = await copyFile(path, folder, {});
  const machine = await attach(copy, { format: "raw" });
  const [byte] = await machine.guest.read(500_000, 1);
  await machine.guest.write(500_000, Uint8Array.of(byte ^ 1));
  await machine.close();
  assertNotEquals(await checksum(copy), await checksum(path));
});

Deno.test({
  name: "qemu-img finds no difference between an image and its copy through the ring, and one when there is one",
  ...requires("qemu-img"),
  async fn() {
    using folder = new Folder();
    const path = fixture("vfat.img");
    const copy = await copyFile(path, folder, {});
    assertEquals(run("qemu-img", "compare", "-f", "raw", "-F", "raw", path, copy), "Images are identical.\n");
    const machine = await attach(copy, { format: "raw" });
    await machine.guest.writeZeroes(0, 512);
    await machine.close();
    const { success } = new Deno.Command("qemu-img", { args: ["compare", "-f", "raw", "-F", "raw", path, copy] })
      .outputSync();
    assertEquals(success, false);
  },
});

Deno.test("an image is copied into a disk in memory and back, with the same checksum", async () => {
  using folder = new Folder();
  const path = fixture("ext4.img");
  const copy = folder.file("copy", new Uint8Array(Deno.statSync(path).size));
  const [source, middle, target] = await Promise.all([
    attach(path, { readOnly: true }),
    attach("mem:1M"),
    attach(copy, { format: "raw" }),
  ]);
  await copyDisk(source.guest, middle.guest, new Random(2));
  await copyDisk(middle.guest, target.guest, new Random(3));
  await Promise.all([source, middle, target].map((machine) => machine.close()));
  assertEquals(await checksum(copy), await checksum(path));
});
