/**
 * A back-end killed while requests are in flight, some of which later ones have overtaken: the one that comes after it carries out
 * just those, in the order in which the guest made them, and the guest finds all that it wrote.
 */

import { assert, assertEquals } from "@std/assert";
import type { ServedReport } from "../../src/serve/statistics.ts";
import type { TraceEvent } from "../../src/trace/events.ts";
import { Folder, run } from "../storage/support.ts";
import { leftBehind } from "./guest/area.ts";
import { PATIENCE_MS } from "./guest/line_reader.ts";
import { LinuxGuest } from "./guest/linux_guest.ts";
import { load } from "./guest/load.ts";
import { requiresGuest } from "./guest/pieces.ts";
import { ServedDisk, statistics } from "./guest/served_disk.ts";

/** Kills that are wanted with holes in the record, and a write among what is to be carried out again. */
const WANTED = 2;
/** Kills after which there ought to have been so many. */
const MOST_KILLS = 20;

Deno.test({
  name: "requests that others overtook are carried out once more, in order, after a kill (trixie QEMU)",
  ...requiresGuest("trixie"),
  async fn(t) {
    using folder = new Folder();
    await using guest = await LinuxGuest.boot(folder.path, "trixie");
    await t.step("qcow2, split rings", () => killed(folder, guest, "qcow2", false, true));
    await t.step("qcow2, packed rings", () => killed(folder, guest, "qcow2", true, true));
    // The host's disk ends what it is asked for in order, mostly: that others overtook is not waited for.
    await t.step("raw, split rings", () => killed(folder, guest, "raw", false, false));
  },
});

async function killed(
  folder: Folder,
  guest: LinuxGuest,
  format: string,
  packed: boolean,
  holes: boolean,
): Promise<void> {
  const image = folder.file(`replay.${format}`);
  run("qemu-img", "create", "-q", "-f", format, image, "128M");
  const control = folder.file(`${format}.control`);
  const device = `packed=${packed ? "on" : "off"}`;
  const options = ["-f", format, "--direct", "--control", control, "--device", device];
  await using disk = await ServedDisk.start(image, folder.file(`${format}.sock`), ...options);
  const node = await guest.plug(format, disk.socket, { packed });
  // Two jobs side by side, of a page or two and of a megabyte: past the page cache a qcow2 image lets those go first that
  // need no new cluster.
  const large = `--name=large --filename=${node} --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=1M ` +
    "--offset=64M --size=60M --verify=pattern --verify_pattern=%o --loops=1000";
  await load(guest, node, `--size=60M --bsrange=4k-8k --loops=1000 ${large}`);
  await ended(control, 100);
  let seen = 0;
  for (let kills = 1; seen < WANTED; kills++) {
    assert(
      kills <= MOST_KILLS,
      `of ${kills - 1} kills ${seen} left something behind${holes ? " that others had overtaken" : ""}`,
    );
    await disk.kill();
    const { heads, overtook } = leftBehind(guest.pid, folder, packed);
    const before = disk.errors.length;
    await disk.start("--trace=json");
    const { replayed } = await ended(control, 60);
    const again = firstRequests(disk.errors.slice(before), replayed);
    // A batch may have been shown to the driver, and the record not have come to say so. All others are there, in order.
    assertEquals(again.map(({ head }) => head), heads.filter((head) => again.some((one) => one.head === head)));
    if (replayed === heads.length && again.some(({ kind }) => kind === "write") && overtook >= (holes ? 1 : 0)) seen++;
  }
  await guest.run("kill -INT $load; wait $load");
  // What fio writes is verified soon after, while it goes on. It was told to end, so its status says nothing.
  const said = await guest.ok("cat /tmp/load");
  assertEquals(
    [...said.matchAll(/ err= ?(\d+)/g)].map(([, error]) => error),
    ["0", "0"],
    said,
  );
  await guest.unplug(format);
  assertEquals(await disk.stop(), 0);
  if (format === "qcow2") run("qemu-img", "check", "-q", image);
}

/** Waits until the process has returned so many requests. */
async function ended(control: string, count: number): Promise<ServedReport> {
  for (const end = Date.now() + PATIENCE_MS;;) {
    const report = await statistics(control);
    if (report.buffers >= count) return report;
    assert(Date.now() < end, `${report.buffers} requests of ${count} came back`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Heads and kinds of the first requests in a trace. */
function firstRequests(trace: string, count: number): { head: number; kind: string }[] {
  const events = trace.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line) as TraceEvent);
  const requests = events.filter((event) => event.event === "request");
  return requests.slice(0, count).map(({ head, kind }) => ({ head, kind }));
}
