/** What is tried with a disk in a Linux guest, whatever image is behind it. */

import { assert, assertEquals } from "@std/assert";
import type { LinuxGuest } from "./linux_guest.ts";

/** Numbers of queue entries of a disk in sysfs, such as `logical_block_size`. */
export async function queueLimit(guest: LinuxGuest, device: string, name: string): Promise<string> {
  return await guest.ok(`cat ${sysfs(device)}/queue/${name}`);
}

/** The disk's folder in the guest's sysfs. */
export function sysfs(device: string): string {
  return device.replace("/dev/", "/sys/block/");
}

/** Writes of 512 bytes to 4 MiB, past the guest's page cache, and reads of as much, each compared. */
export async function transfersOfEverySize(guest: LinuxGuest, device: string, smallestBytes = 512): Promise<void> {
  await guest.ok("[ -f /tmp/noise ] || head -c 8m /dev/urandom >/tmp/noise");
  if (smallestBytes === 512) {
    // The guest's dd goes through the page cache when its memory does not lie right, as that of small blocks.
    const name = `--name=sectors --filename=${device} --offset=40M --size=128k --bs=512`;
    await guest.ok(`fio ${name} --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c >/dev/null`);
  }
  for (const [bytes, count] of [[4096, 128], [65536, 32], [1 << 20, 4], [4 << 20, 2]]) {
    // Each size has a place of its own, off any boundary of a cluster.
    const skip = `seek=${3 * count}`;
    await guest.ok(`dd if=/tmp/noise of=${device} bs=${bytes} count=${count} ${skip} oflag=direct 2>/dev/null`);
    const read = `dd if=${device} bs=${bytes} count=${count} skip=${3 * count} iflag=direct 2>/dev/null`;
    await guest.ok(`${read} | cmp -n ${bytes * count} - /tmp/noise`);
  }
}

/** A file system made, filled and left clean by the guest. Returns the checksums of its files, for `fileSystemHolds`. */
export async function fileSystem(guest: LinuxGuest, device: string): Promise<string> {
  await guest.ok(`mkfs.ext4 -q -F ${device}`);
  await guest.ok(`mount ${device} /mnt`);
  await guest.ok("mkdir -p /mnt/a/b && cp -r /programs/usr/sbin /mnt/a/b/ && head -c 3m /dev/urandom >/mnt/a/noise");
  await guest.ok("for i in $(seq 100); do echo $i >/mnt/a/$i; done; rm /mnt/a/*7; mv /mnt/a/b /mnt/c");
  const sums = await guest.ok("find /mnt -type f | sort | xargs sha256sum");
  await guest.ok(`umount /mnt && e2fsck -fn ${device}`);
  return sums;
}

/** Whether such a file system still holds what it held. */
export async function fileSystemHolds(guest: LinuxGuest, device: string, sums: string): Promise<void> {
  await guest.ok(`mount -o ro ${device} /mnt`);
  assertEquals(await guest.ok("find /mnt -type f | sort | xargs sha256sum"), sums);
  await guest.ok("umount /mnt");
}

/** Discarded and zeroed ranges read back as zeros, and their neighbours do not. */
export async function discardedReadsZeros(guest: LinuxGuest, device: string): Promise<void> {
  await guest.ok(`dd if=/tmp/noise of=${device} bs=1M count=4 oflag=direct 2>/dev/null`);
  await guest.ok(`blkdiscard -o 1M -l 1M ${device} && blkdiscard -z -o 2M -l 64K ${device}`);
  await guest.ok(
    "(head -c 1m /tmp/noise; head -c 1088k /dev/zero; tail -c +2162689 /tmp/noise | head -c 1984k) >/tmp/expected",
  );
  await guest.ok(`dd if=${device} bs=1M count=4 iflag=direct 2>/dev/null | cmp - /tmp/expected`);
}

/** A processor's requests go through its own queue: each of two has interrupts of its own, and they are counted. */
export async function queuesAreUsed(guest: LinuxGuest, device: string): Promise<void> {
  assertEquals(await guest.ok(`ls -1 ${sysfs(device)}/mq`), "0\n1");
  const virtio = (await guest.ok(`readlink ${sysfs(device)}/device`)).split("/").at(-1);
  const interrupts = async () => {
    const lines = (await guest.ok(`grep '${virtio}-req' /proc/interrupts`)).split("\n");
    return lines.map((line) => line.trim().split(/\s+/).slice(1, 3).reduce((sum, count) => sum + Number(count), 0));
  };
  for (const queue of [0, 1]) {
    const before = await interrupts();
    assertEquals(before.length, 2);
    const cpu = Number.parseInt(await guest.ok(`cat ${sysfs(device)}/mq/${queue}/cpu_list`));
    await guest.ok(`taskset ${1 << cpu} dd if=${device} of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null`);
    const after = await interrupts();
    assert(after[queue] - before[queue] >= 40, `queue ${queue}: interrupts ${before} became ${after}`);
  }
}

/** The words for fio that writes at random and reads all of it back. */
export function fioVerify(device: string, more: string): string {
  return `fio --name=verify --filename=${device} --direct=1 --rw=randwrite --bsrange=4k-16k --iodepth=16 --ioengine=libaio ` +
    `--verify=crc32c --verify_fatal=1 --verify_backlog=64 --randseed=7 ${more}`;
}
