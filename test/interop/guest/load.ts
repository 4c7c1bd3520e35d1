/** A load in a Linux guest: fio, which goes on while the test does something to it, and verifies what it wrote. */

import { assert } from "@std/assert";
import * as checks from "./checks.ts";
import type { LinuxGuest } from "./linux_guest.ts";

/** Starts fio in the guest. */
export async function load(guest: LinuxGuest, device: string, more: string): Promise<void> {
  await guest.ok(`rm -f /tmp/load; base=$(awk '{ print $5 }' ${checks.sysfs(device)}/stat)`);
  await guest.ok(`${checks.fioVerify(device, more)} >/tmp/load 2>&1 & load=$!`);
}

/** Waits until so many writes have ended since the load began. */
export async function written(guest: LinuxGuest, device: string, count: number): Promise<void> {
  const stat = `awk '{ print $5 }' ${checks.sysfs(device)}/stat`;
  await guest.ok(`while [ $(${stat}) -lt $((base + ${count})) ]; do kill -0 $load && usleep 10000 || break; done`);
}

/** Waits for fio: it did not end before this was asked, and found nothing wrong. */
export async function loadEnds(guest: LinuxGuest): Promise<void> {
  const { status } = await guest.run("kill -0 $load");
  assert(status === 0, `the load was over too soon: ${(await guest.run("cat /tmp/load")).output}`);
  const end = await guest.run("wait $load");
  assert(end.status === 0, `fio: ${(await guest.run("cat /tmp/load")).output}\n${guest.kernelLog()}`);
}
