/** What a Linux guest does not notice, or gets over: a back-end killed under load, a stop, a reset, a disk torn out. */

import { assertEquals } from "@std/assert";
import { Folder, run } from "../storage/support.ts";
import * as checks from "./guest/checks.ts";
import { LinuxGuest } from "./guest/linux_guest.ts";
import { load, loadEnds, written } from "./guest/load.ts";
import { requiresGuest } from "./guest/pieces.ts";
import { ServedDisk } from "./guest/served_disk.ts";

const DISK_BYTES = 64 << 20;

Deno.test({
  name: "a Linux guest and its disks survive what happens to either (trixie QEMU)",
  ...requiresGuest("trixie"),
  async fn(t) {
    using folder = new Folder();
    await using guest = await LinuxGuest.boot(folder.path, "trixie");
    for (const format of ["raw", "qcow2"]) {
      await t.step(format, (t) => severeLife(t, folder, guest, format));
    }
    for (const mode of ["writeback", "none", "writethrough", "directsync"]) {
      await t.step(`-t ${mode}: what the guest synced outlives a kill`, () => syncedOutlivesKill(folder, guest, mode));
    }
    await t.step("a cache that the guest switched off: what it wrote outlives a kill", async () => {
      await syncedOutlivesKill(folder, guest, "writeback", "write through");
    });
  },
});

async function severeLife(t: Deno.TestContext, folder: Folder, guest: LinuxGuest, format: string): Promise<void> {
  const image = folder.file(`severe.${format}`);
  run("qemu-img", "create", "-q", "-f", format, image, String(DISK_BYTES));
  // Half of the tests with each kind of ring.
  const properties = { "num-queues": 2, packed: format === "qcow2" };
  const options = ["-f", format, "--device", `num-queues=2,packed=${format === "qcow2" ? "on" : "off"}`];
  if (format === "raw") options.push("--iothreads", "2");
  await using disk = await ServedDisk.start(image, folder.file(`${format}.sock`), ...options);
  let device = await guest.plug(format, disk.socket, properties);

  await t.step("killed and started again, three times under load: fio finds all that it wrote", async () => {
    await load(guest, device, "--size=24M");
    for (const writes of [300, 600, 900]) {
      await written(guest, device, writes);
      await disk.kill();
      await disk.start();
    }
    await loadEnds(guest);
    assertEquals(disk.errors, "");
  });
  await t.step("stopped and continued under load", async () => {
    await load(guest, device, "--size=16M");
    for (const writes of [200, 400, 600, 800]) {
      await written(guest, device, writes);
      await guest.monitor.run("stop");
      await guest.monitor.run("cont");
    }
    await loadEnds(guest);
  });
  const sums = await checks.fileSystem(guest, device);
  for (const way of ["system_reset", "reboot"]) {
    await t.step(`${way} under load: the guest comes back, and so does its disk`, async () => {
      await guest.ok(`mount ${device} /mnt`);
      await guest.ok(`base=$(awk '{ print $5 }' ${checks.sysfs(device)}/stat)`);
      await guest.ok(
        `fio --name=load --directory=/mnt --size=16M --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio ` +
          `--direct=1 --time_based --runtime=100 >/tmp/load 2>&1 & load=$!`,
      );
      await written(guest, device, 300);
      if (way === "reboot") await guest.send("reboot -f");
      else await guest.monitor.run("system_reset");
      await guest.ready();
      // The journal is played back by this mount.
      await guest.ok(`mount ${device} /mnt && rm -f /mnt/load* && umount /mnt && e2fsck -fn ${device}`);
      await checks.fileSystemHolds(guest, device, sums);
    });
  }
  await t.step("torn out under load and added again", async () => {
    await load(guest, device, "--size=32M --offset=24M");
    await written(guest, device, 300);
    await guest.unplug(format);
    assertEquals((await guest.run("wait $load")).status !== 0, true);
    device = await guest.plug(format, disk.socket, properties);
    await checks.transfersOfEverySize(guest, device);
  });
  await guest.unplug(format);
  assertEquals(await disk.stop(), 0);
  assertEquals(disk.errors, "");
  if (format === "qcow2") run("qemu-img", "check", "-q", image);
}

async function syncedOutlivesKill(folder: Folder, guest: LinuxGuest, mode: string, cacheType?: string): Promise<void> {
  const image = folder.file(`synced-${mode}.qcow2`);
  run("qemu-img", "create", "-q", "-f", "qcow2", image, "8M");
  await using disk = await ServedDisk.start(image, folder.file("synced.sock"), "-t", mode);
  const device = await guest.plug("synced", disk.socket);
  const expected = mode.startsWith("write") && mode !== "writeback" || mode === "directsync"
    ? "write through"
    : "write back";
  assertEquals(await guest.ok(`cat ${checks.sysfs(device)}/cache_type`), expected);
  if (cacheType !== undefined) {
    await guest.ok(`echo ${cacheType} >${checks.sysfs(device)}/cache_type`);
    assertEquals(await guest.ok(`cat ${checks.sysfs(device)}/cache_type`), cacheType);
  }
  // With a cache that is off a write is safe when it ends: no sync is needed then.
  const sync = (cacheType ?? expected) === "write back" ? "conv=fsync" : "";
  await guest.ok(`head -c 2m /dev/urandom >/tmp/synced`);
  await guest.ok(`dd if=/tmp/synced of=${device} bs=64k seek=3 oflag=direct ${sync} 2>/dev/null`);
  const sum = (await guest.ok("sha256sum /tmp/synced")).split(" ")[0];
  await disk.kill();
  run("qemu-img", "convert", "-O", "raw", image, folder.file("synced.img"));
  const bytes = Deno.readFileSync(folder.file("synced.img")).subarray(3 << 16, (3 << 16) + (2 << 20));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
  assertEquals(digest, sum);
  await guest.unplug("synced");
}
