/** Another driver than Linux's: SeaBIOS finds the disk, boots from it, and writes to it. */

import { assertEquals } from "@std/assert";
import { join } from "node:path";
import { Folder, run } from "../storage/support.ts";
import { bootableDisk, BOOTED, COPY_SECTOR, TEXT_SECTOR } from "./guest/boot_sector.ts";
import { PATIENCE_MS, within } from "./guest/line_reader.ts";
import { endQemu, startQemu } from "./guest/linux_guest.ts";
import { requiresServing } from "./guest/pieces.ts";
import { ServedDisk } from "./guest/served_disk.ts";

const TEXT = "booted from vblk\n";

for (const format of ["raw", "qcow2"]) {
  Deno.test({
    name: `SeaBIOS boots from a ${format} image, reads and writes`,
    ...requiresServing("qemu-system-x86_64", "qemu-img"),
    async fn() {
      using folder = new Folder();
      const raw = folder.file("disk.img", bootableDisk(TEXT));
      // The BIOS reads the first sector by cylinder, head and sector: a disk has one cylinder at least.
      Deno.truncateSync(raw, 4 << 20);
      const image = folder.file("served");
      run("qemu-img", "convert", "-f", "raw", "-O", format, raw, image);
      await using disk = await ServedDisk.start(image, folder.file("vm.sock"), "-f", format);
      assertEquals(await boot(folder.path, disk.socket), BOOTED);
      assertEquals(Deno.readTextFileSync(join(folder.path, "console")), TEXT);
      // QEMU has closed the socket without a word; what it wrote is served on, and kept.
      assertEquals(await disk.stop(), 0);
      assertEquals(disk.errors, "");
      run("qemu-img", "convert", "-f", format, "-O", "raw", image, raw);
      const sectors = Deno.readFileSync(raw);
      const sector = (index: number) => sectors.slice(512 * index, 512 * (index + 1));
      assertEquals(sector(COPY_SECTOR), sector(TEXT_SECTOR));
      assertEquals(sector(COPY_SECTOR)[0], TEXT.charCodeAt(0));
    },
  });
}

/** Boots a machine that has nothing but the disk; returns QEMU's exit code. */
async function boot(folder: string, socket: string): Promise<number> {
  const { qemu, monitor } = await startQemu(
    folder,
    [
      ["-chardev", `socket,id=vblk,path=${socket}`],
      ["-device", "vhost-user-blk-pci,chardev=vblk,num-queues=1,bootindex=1"],
      ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"],
    ].flat(),
  );
  try {
    await monitor.run("cont");
    const { code } = await within(qemu.status, PATIENCE_MS, () => "the disk is booted");
    return code;
  } finally {
    await endQemu(qemu, monitor);
  }
}
