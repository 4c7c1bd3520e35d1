import { assertEquals, assertRejects } from "@std/assert";
import { DEFAULT_SETTINGS } from "../../src/script/open_settings.ts";
import { CommandError } from "../../src/script/command.ts";
import { turn } from "../../src/script/session.ts";
import { openSession } from "./capture.ts";

Deno.test("a session has one image at a time", async () => {
  await using test = await openSession();
  await assertRejects(() => test.session.open("mem:1M", DEFAULT_SETTINGS), CommandError, "file open already");
});

Deno.test("reopen keeps what a disk in memory holds, and takes and gives the right to write", async () => {
  await using test = await openSession();
  assertEquals(
    await test.run(
      "write -qP 7 0 512",
      "reopen -r",
      "write -q 0 1",
      "reopen -w",
      "write -qP 8 0 1",
      "read -qP 7 1 511",
    ),
    ["2> vblk: test:3:1: Block node is read-only"],
  );
});

Deno.test("reopen -c switches the cache mode of the device", async () => {
  await using test = await openSession();
  assertEquals(await test.run("writeback", "reopen -c writethrough", "writeback"), [
    "the cache is in writeback mode",
    "the cache is in writethrough mode",
  ]);
  assertEquals(await test.run("writeback on", "writeback", "writeback maybe"), [
    "the cache is in writeback mode",
    "maybe is neither on nor off",
    "2> vblk: test:3:11: maybe is neither on nor off",
  ]);
});

Deno.test("a cache mode that bypasses the page cache is answered with a note, once", async () => {
  await using test = await openSession();
  const note = "2> vblk: note: Deno's file API can't bypass the host's page cache, so requests go through it";
  assertEquals(await test.run("reopen -c none", "reopen -c directsync"), [note]);
});

Deno.test("with discard=ignore a discard changes nothing, until the image is reopened without", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, new Uint8Array(4096).fill(1));
    await using test = await openSession({ image: path });
    assertEquals(test.capture.take().length, 3, "the warning that it was probed");
    await test.session.reopen({ ...DEFAULT_SETTINGS, discard: false });
    assertEquals(
      await test.run("discard -q 0 512", "read -qP 1 0 512", "write -qzu 0 512", "read -qP 0 0 512"),
      [],
    );
    await test.session.reopen(DEFAULT_SETTINGS);
    assertEquals(await test.run("discard -q 512 512", "read -qP 0 512 512"), []);
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("truncate resizes the disk under the running guest", async () => {
  await using test = await openSession();
  assertEquals(
    await test.run("write -q 1M 512", "truncate 2M", "write -q 1M 512", "length", "config").then((lines) =>
      lines.filter((line) => !/^0x(?!00)/.test(line))
    ),
    [
      "write failed: Input/output error",
      "2> vblk: test:1:1: write failed: Input/output error",
      "2> hint: 512 bytes at offset 1048576 are not inside the disk of 1048576 bytes",
      "2 MiB",
      "offset  type  field                       value",
      "0x00    le64  capacity                     4096",
    ],
  );
});

Deno.test("with irq off a completion waits for irq, and commands that wait poll", async () => {
  await using test = await openSession();
  assertEquals(await test.run("irq off", "aio_read -q 0 512", "sleep 0", "irq", "read -q 0 4k", "irq on", "irq"), [
    "InterruptStatus 0x1: used buffer",
    "requests completed by handling it: 1; still in flight: 0",
    "interrupts so far: 1; the driver takes them by this command only",
    "InterruptStatus 0x0: nothing pending",
    "requests completed by handling it: 0; still in flight: 0",
    "interrupts so far: 2; the driver takes them as they come",
  ]);
});

Deno.test("a command without waiting succeeds when it is sent, and reports when it ends", async () => {
  await using test = await openSession();
  // The first write never reaches the ring, so it ends first; the other two are in one batch.
  assertEquals(await test.run("aio_read -P 1 0 512", "aio_write 2M 512", "aio_write -z 0 512", "aio_flush"), [
    "aio_write failed: Input/output error",
    "wrote 512/512 bytes at offset 0",
    "512 bytes, 1 ops; TIME",
    "Pattern verification failed at offset 0, 512 bytes",
    "read 512/512 bytes at offset 0",
    "512 bytes, 1 ops; TIME",
  ]);
});

Deno.test("requests of aio commands that follow each other cost one notification together", async () => {
  await using test = await openSession();
  const { statistics } = test.session.machine;
  const reads = Array.from({ length: 64 }, (_, i) => `aio_read -q ${i * 4}k 4k`);
  assertEquals(await test.run(...reads, "aio_flush"), []);
  const { buffers, kicks, interrupts } = statistics.report();
  assertEquals([buffers, kicks, interrupts], [64, 1, 1]);
});

Deno.test("what was held back goes out before another command, and when no command follows", async () => {
  await using test = await openSession();
  assertEquals((await test.run("aio_write -P 7 0 512", "read -P 7 0 512")).map((line) => line.split("/")[0]), [
    "wrote 512",
    "512 bytes, 1 ops; TIME",
    "read 512",
    "512 bytes, 1 ops; TIME",
  ]);
  assertEquals(await test.run("aio_read 0 512"), []);
  await turn();
  assertEquals(test.capture.take().length, 2);
});

Deno.test("many long requests without waiting take turns with the guest's memory", async () => {
  await using test = await openSession({ image: "mem:64M", machine: { ramBytes: 16 << 20 } });
  const lines = await test.run(...Array.from({ length: 6 }, () => "aio_read 0 32M"), "aio_flush");
  assertEquals(lines.filter((line) => line === "read 33554432/33554432 bytes at offset 0").length, 6);
});

Deno.test("a request makes no events while nobody watches, and pays for none", async () => {
  await using test = await openSession();
  const { image } = test.session.machine;
  let maps = 0;
  const map = image.map;
  // What the trace shows of extents is asked of the image.
  image.map = (...range) => (maps++, map.apply(image, range));
  await test.run("read -q 0 512", "chain read:0 w:512 status", "read -q 0 512");
  assertEquals(maps, 1);
  const unwatch = test.session.watch(() => {});
  await test.run("read -q 0 512");
  assertEquals(maps, 2);
  unwatch();
  await test.run("read -q 0 512");
  assertEquals(maps, 2);
});

Deno.test("what a device lacks is not supported, or done in another way", async () => {
  await using test = await openSession({
    machine: { device: { discard: false, writeZeroes: false, configWce: false, ringReset: false } },
  });
  assertEquals(
    await test.run(
      "write -q 0 4k",
      "write -qz 0 2k",
      "read -qP 0 0 2k",
      "write -zn 0 512",
      "discard 0 512",
      "lifetime",
      "secure_erase 0 512",
      "writeback off",
      "reset -q 0",
    ).then((lines) => lines.filter((line) => !line.startsWith("2> "))),
    ["write", "discard", "lifetime", "secure_erase", "writeback", "reset -q"]
      .map((what) => `${what} failed: Operation not supported`),
  );
});

Deno.test("a vector that the device can't take in one request is moved all the same", async () => {
  await using test = await openSession({ machine: { device: { segMax: 2, sizeMax: 1024 } } });
  assertEquals(
    await test.run(
      "writev -qP 5 0 512 512",
      "writev -qP 6 1k 512 512 512",
      "writev -qP 7 10k 2k 512",
      "writev -qP 8 20k 3 4 5",
      "readv -qP 5 0 1k",
      "readv -qP 6 1k 1 2 1533",
      "readv -qP 7 10k 2560",
      "readv -qP 8 20k 12",
    ),
    [],
  );
});
