/** Other drivers than Linux's: SeaBIOS and OVMF find the disk, boot from it, and write to it. */

import { assert, assertEquals } from "@std/assert";
import { join } from "node:path";
import { Folder, run } from "../storage/support.ts";
import { bootableDisk, BOOTED, COPY_SECTOR, TEXT_SECTOR } from "./guest/boot_sector.ts";
import { efiDisk } from "./guest/efi_disk.ts";
import { PATIENCE_MS, within } from "./guest/line_reader.ts";
import { endQemu, startQemu } from "./guest/linux_guest.ts";
import { guestPieces, type Qemu, requiresFirmware, requiresQemu } from "./guest/pieces.ts";
import { ServedDisk, statistics } from "./guest/served_disk.ts";

const TEXT = "booted from vblk\n";

for (const [format, qemu] of [["raw", "installed"], ["qcow2", "trixie"]] as const) {
  Deno.test({
    name: `SeaBIOS boots from a ${format} image, reads and writes (${qemu} QEMU)`,
    ...requiresQemu(qemu, "qemu-img"),
    async fn() {
      using folder = new Folder();
      const raw = folder.file("disk.img", bootableDisk(TEXT));
      // The BIOS reads the first sector by cylinder, head and sector: a disk has one cylinder at least.
      Deno.truncateSync(raw, 4 << 20);
      const image = folder.file("served");
      run("qemu-img", "convert", "-f", "raw", "-O", format, raw, image);
      await using disk = await ServedDisk.start(image, folder.file("vm.sock"), "-f", format);
      assertEquals(await boot(folder.path, qemu, disk.socket, "pc"), BOOTED);
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

// Without more words QEMU's device is a transitional one there, and OVMF then takes its legacy interface.
for (const [format, qemu, legacy] of [["raw", "trixie", "on"], ["qcow2", "installed", "off"]] as const) {
  Deno.test({
    name:
      `OVMF boots from a ${format} image, reads, writes and flushes, with the legacy interface ${legacy} (${qemu} QEMU)`,
    ...requiresFirmware(qemu, "qemu-img"),
    async fn() {
      using folder = new Folder();
      const text = `booted from the ${format} image ${crypto.randomUUID()}\n`;
      const raw = folder.file("disk.img", efiDisk(text));
      const image = folder.file("served");
      run("qemu-img", "convert", "-f", "raw", "-O", format, raw, image);
      const control = folder.file("control");
      const options = ["-f", format, "--control", control, "--stats"];
      await using disk = await ServedDisk.start(image, folder.file("vm.sock"), ...options);
      const firmware = guestPieces();
      const variables = folder.file("variables");
      Deno.copyFileSync(firmware.variables, variables);
      const ended = await boot(
        folder.path,
        qemu,
        disk.socket,
        "q35",
        [
          ["-drive", `if=pflash,unit=0,format=raw,readonly=on,file=${firmware.firmware}`],
          ["-drive", `if=pflash,unit=1,format=raw,file=${variables}`],
          ["-global", `vhost-user-blk-pci.disable-legacy=${legacy === "on" ? "off" : "on"}`],
        ].flat(),
      );
      const console = Deno.readTextFileSync(join(folder.path, "console"));
      assert(console.endsWith(text), console);
      assertEquals(ended, BOOTED);
      // The program wrote one sector; the firmware read the folders and the program before, as many bytes as these have.
      const { kinds } = await statistics(control);
      const of = (wanted: string) => kinds.find(({ kind }) => kind === wanted);
      assertEquals([of("write")?.requests, of("write")?.bytes], [1, 512]);
      assert(of("read")!.bytes > 2048 && of("flush")!.requests >= 1, JSON.stringify(kinds));
      assertEquals(kinds.map(({ failed }) => failed).filter((count) => count > 0), []);
      assertEquals(await disk.stop(), 0);
      run("qemu-img", "convert", "-f", format, "-O", "raw", image, raw);
      const copy = Deno.readFileSync(raw).subarray(512 * COPY_SECTOR);
      assertEquals(new TextDecoder().decode(copy.subarray(0, text.length)), text);
    },
  });
}

/** Boots a machine that has nothing but the disk; returns QEMU's exit code. */
async function boot(
  folder: string,
  version: Qemu,
  socket: string,
  machine: string,
  more: readonly string[] = [],
): Promise<number> {
  const { qemu, monitor } = await startQemu(
    folder,
    version,
    [
      ["-machine", machine],
      more,
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
