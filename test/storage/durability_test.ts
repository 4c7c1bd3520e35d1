import { assertEquals } from "@std/assert";
import { requires } from "../requires.ts";
import { childCommand } from "./child_process.ts";
import { Folder, run } from "./support.ts";

/** Runs a child under strace; returns the writes and synchronisations of its image, in order. */
function systemCalls(action: string, ...more: string[]): string[] {
  using folder = new Folder();
  const image = folder.file("disk", new Uint8Array(4096));
  const log = folder.file("log");
  const calls = "trace=write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range";
  run("strace", "-f", "-y", "-o", log, "-e", calls, ...childCommand([action, image, ...more]));
  // A line like: 1234 fdatasync(12</tmp/vblk-test-1/disk>) = 0
  return Deno.readTextFileSync(log).split("\n")
    .filter((line) => line.includes(`<${image}>`))
    .map((line) => /^\d+ +(\w+)\(/.exec(line)?.[1] ?? line);
}

const STRACE = requires("strace");

for (const count of [0, 1, 3]) {
  Deno.test({
    name: `DenoFileStorage.flush() reaches the disk: ${count} flushes are ${count} fdatasync, each after its write`,
    ...STRACE,
    fn: () => assertEquals(systemCalls("flushes", `${count}`), new Array(count).fill(["write", "fdatasync"]).flat()),
  });
}

Deno.test({
  name: "a guest's FLUSH is one fdatasync after the write (VIRTIO 1.4 §5.2.6.2), and so is closing the machine",
  ...STRACE,
  fn: () => assertEquals(systemCalls("ring"), ["write", "fdatasync", "write", "fdatasync"]),
});

Deno.test({
  name: "on a device without a write cache every write is followed by an fdatasync (VIRTIO 1.4 §5.2.6.2)",
  ...STRACE,
  fn: () =>
    // The last is that of closing the machine.
    assertEquals(systemCalls("writethrough", "2"), ["write", "fdatasync", "write", "fdatasync", "fdatasync"]),
});
