/** What `vblk serve` refuses before it serves, and that nothing is left of it then. */

import { assertEquals, assertMatch } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { Folder } from "../storage/support.ts";
import { assertServes, FrontEnd, Guest, OK, requiresServe, ServeProcess, TYPE } from "./rig.ts";

function starting(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `serve: ${name}`, ...requiresServe(), fn });
}

const REFUSED: readonly (readonly [device: string, stderr: RegExp])[] = [
  ["num-queues=257", /num-queues=257: vhost-user has 8 bits for the number of a queue\nhint: 256 queues are the most/],
  ["num-queues=1025", /--device: num-queues: 1025 is not a number from 1 to 1024\nhint: '--device help'/],
  ["num-queues=0", /--device: num-queues: 0 is not/],
  ["queue-size=100", /--device: queue-size: 100 is not a power of two/],
];

starting("a device that can't be made or served is refused, before anything is opened", async () => {
  using folder = new Folder();
  const socket = folder.file("vm.sock");
  for (const [device, text] of REFUSED) {
    // The image is not even looked for.
    await using process = new ServeProcess([folder.file("none"), "--device", device, "--vhost-user", socket]);
    const { code, stdout, stderr } = await process.end();
    assertEquals([code, stdout, existsSync(socket)], [2, "", false], stderr);
    assertMatch(stderr, text);
  }
});

starting("without a socket, named or passed, it says what to give", async () => {
  using folder = new Folder();
  await using process = new ServeProcess([folder.file("none")]);
  const { code, stdout, stderr } = await process.end();
  assertEquals([code, stdout], [2, ""], stderr);
  assertMatch(stderr, /^vblk: serve: no socket was named\nhint: give --vhost-user SOCKET/);
});

starting("256 queues are served, the last as the first", async () => {
  using folder = new Folder();
  const [image, socket] = [folder.file("disk.img", new Uint8Array(1 << 20)), folder.file("vm.sock")];
  await using process = await ServeProcess.ready([
    ...[image, "-f", "raw", "--vhost-user", socket, "--device", "num-queues=256", "--iothreads", "3"],
  ]);
  using guest = new Guest({ queues: 256, size: 4 });
  using front = new FrontEnd(socket);
  guest.start(front);
  for (const queue of [0, 1, 127, 128, 254, 255]) {
    assertEquals(guest.run(TYPE.write, 0, 512, new Uint8Array(512).fill(queue), queue), OK);
    assertEquals(guest.read(0, 512, 255 - queue)[0], queue);
  }
  front.close();
  assertEquals((await process.stop()).code, 0);
});

for (const threads of [1, 2]) {
  starting(`a control socket that is taken leaves none for the front-end behind, I/O threads: ${threads}`, async () => {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk.img", new Uint8Array(1 << 20)), folder.file("vm.sock")];
    const control = folder.file("control.sock");
    await using other = await ServeProcess.ready([
      ...[folder.file("other.img", new Uint8Array(1 << 20)), "-f", "raw"],
      ...["--vhost-user", folder.file("other.sock"), "--control", control],
    ]);
    await using process = new ServeProcess([
      ...[image, "-f", "raw", "--vhost-user", socket, "--control", control],
      ...["--device", `num-queues=${threads}`, "--iothreads", `${threads}`],
    ]);
    const { code, stderr } = await process.end();
    assertEquals([code, existsSync(socket)], [1, false], stderr);
    assertMatch(stderr, /Another process listens at .*control\.sock/);
    assertServes(folder.file("other.sock"));
    assertEquals((await other.stop()).code, 0);
  });
}
