/** A Linux guest that lives through one boot, and the disks that vblk gives it. */

import { assert, assertEquals } from "@std/assert";
import { vblk } from "../cli/vblk.ts";
import { Random } from "../random.ts";
import { Folder, run } from "../storage/support.ts";
import * as checks from "./guest/checks.ts";
import { LinuxGuest } from "./guest/linux_guest.ts";
import { QEMUS, requiresGuest } from "./guest/pieces.ts";
import { ServedDisk, statistics } from "./guest/served_disk.ts";

const DISK_BYTES = 64 << 20;

for (const qemu of QEMUS) {
  Deno.test({
    name: `a Linux guest uses disks served by vblk (${qemu} QEMU)`,
    ...requiresGuest(qemu),
    async fn(t) {
      using folder = new Folder();
      await using guest = await LinuxGuest.boot(folder.path, qemu);
      await t.step("raw, two queues", (t) => rawDisk(t, folder, guest));
      await t.step("qcow2, packed rings", (t) => qcow2Disk(t, folder, guest));
      await t.step("read-only: shown as such, and not written", () => readOnlyDisk(folder, guest));
      await t.step("blocks of 4096 bytes, by the legacy interface", (t) => largeBlocks(t, folder, guest));
      // What is the image's side alone.
      if (qemu === "installed") return;
      for (const mode of ["none", "unsafe", "directsync"]) {
        await t.step(`-t ${mode}`, () => cacheMode(folder, guest, mode));
      }
      await t.step("raw, four queues on two threads", () => twoThreads(folder, guest));
    },
  });
}

async function rawDisk(t: Deno.TestContext, folder: Folder, guest: LinuxGuest): Promise<void> {
  const image = folder.file("disk.img");
  Deno.writeFileSync(image, new Random(401).bytes(1 << 20));
  Deno.truncateSync(image, DISK_BYTES);
  const sum = run("sha256sum", image).split(" ")[0];
  await using disk = await ServedDisk.start(
    image,
    folder.file("raw.sock"),
    "-f",
    "raw",
    "--device",
    "num-queues=2,serial=raw-disk",
    "--control",
    folder.file("control"),
  );
  const device = await guest.plug("raw", disk.socket, { "num-queues": 2 });
  await t.step("serial, size and contents are the image's", async () => {
    assertEquals(await guest.ok(`cat ${checks.sysfs(device)}/serial`), "raw-disk");
    assertEquals(await guest.ok(`blockdev --getsize64 ${device}`), String(DISK_BYTES));
    assertEquals(await checks.queueLimit(guest, device, "logical_block_size"), "512");
    assertEquals(await guest.ok(`cat ${checks.sysfs(device)}/ro`), "0");
    assertEquals((await guest.ok(`sha256sum ${device}`)).split(" ")[0], sum);
  });
  await t.step("each processor has a queue of its own", () => checks.queuesAreUsed(guest, device));
  await t.step("transfers of 512 bytes to 4 MiB", () => checks.transfersOfEverySize(guest, device));
  await t.step("discarded reads zeros, and is the host's again", async () => {
    await guest.ok(`blkdiscard ${device}`);
    assert((Deno.statSync(image).blocks ?? 0) * 512 < 64 << 10);
    await checks.discardedReadsZeros(guest, device);
  });
  await t.step("fio verifies what it wrote", async () => {
    await guest.ok(checks.fioVerify(device, "--size=8M --numjobs=2 --offset_increment=16M"));
  });
  await t.step("a file system", async () => void await checks.fileSystem(guest, device));
  await t.step("the driver, unbound and bound again", async () => {
    const sums = await guest.ok(`dd if=${device} bs=1M count=16 2>/dev/null | sha256sum`);
    const driver = "/sys/bus/virtio/drivers/virtio_blk";
    const name = (await guest.ok(`basename $(readlink ${checks.sysfs(device)}/device)`)).trim();
    for (let i = 0; i < 3; i++) await guest.ok(`echo ${name} >${driver}/unbind && echo ${name} >${driver}/bind`);
    assertEquals(await guest.ok(`dd if=${device} bs=1M count=16 2>/dev/null | sha256sum`), sums);
  });
  await t.step("resized while it is served: the guest sees the new size, and uses it", async () => {
    const resized = await vblk(["resize", "--control", folder.file("control"), "80M"], {
      permissions: ["-RW", "--allow-ffi"],
    });
    assertEquals([resized.code, resized.stderr], [0, ""]);
    await guest.ok(`until [ $(blockdev --getsize64 ${device}) = ${80 << 20} ]; do usleep 10000; done`);
    await guest.ok(`dd if=/tmp/noise of=${device} bs=1M count=4 seek=72 oflag=direct 2>/dev/null`);
    await guest.ok(`dd if=${device} bs=1M count=4 skip=72 iflag=direct 2>/dev/null | cmp -n ${4 << 20} - /tmp/noise`);
  });
  await guest.unplug("raw");
  assertEquals(await disk.stop(), 0);
  assertEquals(disk.errors, "");
  await t.step("the host finds the file system clean", () => void run("e2fsck", "-fn", image));
}

async function qcow2Disk(t: Deno.TestContext, folder: Folder, guest: LinuxGuest): Promise<void> {
  const image = folder.file("disk.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", image, String(DISK_BYTES));
  await using disk = await ServedDisk.start(
    image,
    folder.file("qcow2.sock"),
    "--device",
    "packed=on,num-queues=2",
  );
  let device = await guest.plug("qcow2", disk.socket, { "num-queues": 2, packed: true });
  await t.step("the driver took packed rings", async () => {
    const features = await guest.ok(`cat ${checks.sysfs(device)}/device/features`);
    assertEquals(features[34], "1");
  });
  await t.step("transfers of 512 bytes to 4 MiB", () => checks.transfersOfEverySize(guest, device));
  await t.step("discarded reads zeros", () => checks.discardedReadsZeros(guest, device));
  await t.step("fio verifies what it wrote", async () => {
    await guest.ok(checks.fioVerify(device, "--size=8M --numjobs=2 --offset_increment=16M"));
  });
  let sums = "";
  await t.step("a file system", async () => {
    sums = await checks.fileSystem(guest, device);
  });
  await t.step("removed and added again, it holds the same", async () => {
    await guest.unplug("qcow2");
    device = await guest.plug("qcow2", disk.socket, { "num-queues": 2, packed: true });
    await checks.fileSystemHolds(guest, device, sums);
  });
  await guest.unplug("qcow2");
  assertEquals(await disk.stop(), 0);
  assertEquals(disk.errors, "");
  await t.step("qemu-img finds the image sound, and the host the file system clean", () => {
    run("qemu-img", "check", "-q", image);
    run("qemu-img", "convert", "-O", "raw", image, folder.file("converted.img"));
    run("e2fsck", "-fn", folder.file("converted.img"));
  });
}

async function readOnlyDisk(folder: Folder, guest: LinuxGuest): Promise<void> {
  const bytes = new Random(402).bytes(1 << 20);
  await using disk = await ServedDisk.start(folder.file("ro.img", bytes), folder.file("ro.sock"), "-f", "raw", "-r");
  const device = await guest.plug("ro", disk.socket);
  assertEquals(await guest.ok(`cat ${checks.sysfs(device)}/ro`), "1");
  // The driver heeds the feature; past it, the device is asked in test/blk.
  assertEquals((await guest.run(`dd if=/dev/zero of=${device} count=1 conv=fsync`)).status, 1);
  await guest.ok(`dd if=${device} of=/tmp/ro bs=64k 2>/dev/null`);
  await guest.unplug("ro");
  assertEquals(await disk.stop(), 0);
  assertEquals(Deno.readFileSync(disk.image), bytes);
}

async function largeBlocks(t: Deno.TestContext, folder: Folder, guest: LinuxGuest): Promise<void> {
  const image = folder.file("4k.img");
  Deno.writeFileSync(image, new Uint8Array());
  Deno.truncateSync(image, 64 << 20);
  const socket = folder.file("4k.sock");
  const options = ["-f", "raw", "--device", "logical_block_size=4096,physical_block_size=4096"];
  await using disk = await ServedDisk.start(image, socket, ...options);
  const device = await guest.plug("large", disk.socket, { "disable-modern": true, "disable-legacy": "off" });
  await t.step("the guest knows", async () => {
    assertEquals(await checks.queueLimit(guest, device, "logical_block_size"), "4096");
    assertEquals(await checks.queueLimit(guest, device, "physical_block_size"), "4096");
  });
  await t.step("transfers of 4096 bytes to 4 MiB", () => checks.transfersOfEverySize(guest, device, 4096));
  await t.step("a file system", async () => void await checks.fileSystem(guest, device));
  await guest.unplug("large");
  assertEquals(await disk.stop(), 0);
  run("e2fsck", "-fn", image);
}

async function cacheMode(folder: Folder, guest: LinuxGuest, mode: string): Promise<void> {
  const image = folder.file("mode.img");
  run("qemu-img", "create", "-q", "-f", "raw", image, String(DISK_BYTES));
  await using disk = await ServedDisk.start(image, folder.file("mode.sock"), "-f", "raw", "-t", mode);
  const device = await guest.plug("mode", disk.socket);
  await guest.ok(checks.fioVerify(device, "--size=4M"));
  await checks.fileSystem(guest, device);
  await guest.unplug("mode");
  assertEquals(await disk.stop(), 0);
  assertEquals(disk.errors, "");
  run("e2fsck", "-fn", image);
}

async function twoThreads(folder: Folder, guest: LinuxGuest): Promise<void> {
  const image = folder.file("threads.img");
  run("qemu-img", "create", "-q", "-f", "raw", image, String(DISK_BYTES));
  const control = folder.file("threads.control");
  const options = ["-f", "raw", "--iothreads", "2", "--device", "num-queues=4", "--control", control];
  await using disk = await ServedDisk.start(image, folder.file("threads.sock"), ...options);
  const device = await guest.plug("threads", disk.socket, { "num-queues": 4 });
  await guest.ok(checks.fioVerify(device, "--size=8M --numjobs=2 --offset_increment=16M"));
  await checks.fileSystem(guest, device);
  // Linux takes a queue for each of its two processors: one for each thread.
  for (const { buffers } of (await statistics(control)).threads!) assert(buffers > 100, `${buffers} buffers`);
  await guest.unplug("threads");
  assertEquals(await disk.stop(), 0);
  assertEquals(disk.errors, "");
  run("e2fsck", "-fn", image);
}
