/** What goes wrong with the image under a running guest: S_IOERR, a line on stderr, and the daemon lives. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { requires } from "../requires.ts";
import { Folder, requiresMount, run, SmallDisk, tryRun } from "../storage/support.ts";
import { FrontEnd, Guest, IOERR, OK, requiresServe, ServeProcess, TYPE } from "./rig.ts";

const MIB = 1 << 20;

function blank(path: string, sizeBytes: number): string {
  Deno.writeFileSync(path, new Uint8Array(0));
  Deno.truncateSync(path, sizeBytes);
  return path;
}

const block = new Uint8Array(4096).fill(0x77);

Deno.test({
  name: "an image that somebody else cuts: what is gone fails, what is left goes on",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [blank(folder.file("disk.img"), 4 * MIB), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest();
    guest.start(front);
    assertEquals(guest.run(TYPE.write, 0, 4096, block), OK);
    assertEquals(guest.run(TYPE.write, 2 * MIB, 4096, block), OK);
    Deno.truncateSync(image, MIB);
    assertEquals(guest.run(TYPE.read, 2 * MIB, 4096), IOERR);
    await process.until(() => process.stderr.includes("\n"), "a line on stderr");
    assertMatch(process.stderr, /^vblk: .*disk\.img.*offset 2097152/);
    assertEquals(guest.read(0, 4096), block);
    assertEquals(guest.run(TYPE.write, 0, 4096, block), OK);
    assertEquals((await process.stop()).code, 0);
  },
});

for (const format of ["raw", "qcow2"] as const) {
  Deno.test({
    name: `the disk is full (${format}): writes fail, reads go on, and writes too when there is room again`,
    ...requires("qemu-img"),
    ...requiresMount(),
    async fn() {
      using disk = new SmallDisk();
      using folder = new Folder();
      const [image, socket] = [disk.folder.file("disk"), folder.file("vm.sock")];
      run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        format,
        ...format === "qcow2" ? ["-o", "cluster_size=4k"] : [],
        image,
        "1M",
      );
      const filler = disk.folder.file("filler", new Uint8Array(16384));
      await using process = await ServeProcess.ready([image, "-f", format, "--vhost-user", socket]);
      using front = new FrontEnd(socket);
      using guest = new Guest();
      guest.start(front);
      const written: number[] = [];
      let failed = -1;
      for (let at = 0; at < MIB && failed < 0; at += 4096) {
        const status = guest.run(TYPE.write, at, 4096, block.map((byte) => byte ^ at >> 12));
        // The tables of qcow2 find their place only when they are written.
        if (status === OK && guest.run(TYPE.flush, 0, 0) === OK) written.push(at);
        else failed = at;
      }
      assert(failed > 0 && written.length > 2, `${written.length} blocks were written`);
      await process.until(() => process.stderr.includes("\n"), "a line on stderr");
      assertMatch(process.stderr, /^vblk: .*disk.*[Nn]o space left/);
      for (const at of written) assertEquals(guest.read(at, 4096)[0], 0x77 ^ at >> 12);
      Deno.removeSync(filler);
      assertEquals(guest.run(TYPE.write, failed, 4096, block), OK);
      assertEquals(guest.run(TYPE.flush, 0, 0), OK);
      assertEquals(guest.read(failed, 4096), block);
      assertEquals((await process.stop()).code, 0);
      if (format === "qcow2") {
        const checked = tryRun("qemu-img", "check", image);
        assert(checked.success, checked.text);
      }
    },
  });
}

Deno.test({
  name: "a qcow2 image whose tables lead out of the file: that request fails, others go on",
  ...requires("qemu-img", "qemu-io"),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk.qcow2"), folder.file("vm.sock")];
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 128k", image);
    await using process = await ServeProcess.ready([image, "-f", "qcow2", "-r", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest();
    guest.start(front);
    assertEquals(guest.read(0, 512)[0], 7);
    // Behind our back, and behind the lock's: the second cluster's data are gone.
    Deno.truncateSync(image, Deno.statSync(image).size - 65536);
    assertEquals(guest.run(TYPE.read, 65536, 4096), IOERR);
    assertEquals(guest.read(0, 512)[0], 7);
    const { code, stderr } = await process.stop();
    assertEquals(code, 0);
    assertMatch(stderr, /^vblk: .*disk\.qcow2/);
  },
});

Deno.test({
  name: "read errors of the disk below: the request fails, a line on stderr, the next ones go on",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [blank(folder.file("disk.img"), MIB), folder.file("vm.sock")];
    const rules = '[inject-error]\nevent = "none"\nerrno = "5"\nsector = "80"\nonce = "off"\niotype = "read"\n';
    const config = folder.file("rules", new TextEncoder().encode(rules));
    const name = `blkdebug:${config}:${image}`;
    await using process = await ServeProcess.ready([name, "-f", "raw", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest();
    guest.start(front);
    for (let round = 0; round < 3; round++) {
      assertEquals(guest.run(TYPE.read, 80 * 512, 4096), IOERR);
      assertEquals(guest.run(TYPE.read, 0, 4096), OK);
      assertEquals(guest.run(TYPE.write, 80 * 512, 4096, block), OK);
    }
    const { code, stderr } = await process.stop();
    assertEquals(code, 0);
    assertMatch(stderr, /^vblk: .*Input\/output error/);
  },
});

Deno.test({
  name: "requests that fail by the hundred thousand fill neither memory nor stderr",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [blank(folder.file("disk.img"), MIB), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest();
    guest.start(front);
    Deno.truncateSync(image, 4096);
    const before = process.residentBytes();
    let failed = 0;
    // The event loop, and with it whoever reads stderr, waits meanwhile.
    while (failed < 100_000) {
      for (let slot; (slot = guest.free.pop()) !== undefined;) guest.submit(slot, TYPE.read, 8192, 4096);
      guest.kick();
      for (const { slot, status } of guest.wait()) {
        assertEquals(status, IOERR);
        guest.free.push(slot);
        failed++;
      }
    }
    const grown = process.residentBytes() - before;
    assert(grown < 48 * MIB, `${(grown / MIB).toFixed(1)} MiB more`);
    const { code, stderr } = await process.stop();
    assertEquals(code, 0);
    assertMatch(stderr, /more message/);
    assert(stderr.length < 40_000, `${stderr.length} characters`);
  },
});
