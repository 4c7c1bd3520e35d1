/** The life of `vblk serve`: how it starts, why it does not, who may come, and how it ends. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { check, libc } from "../../src/host/libc.ts";
import { UnixServer } from "../../src/host/unix_socket.ts";
import { requires } from "../requires.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import { u64 } from "../transport/vhost_user/front_end.ts";
import { assertServes, FrontEnd, Guest, OK, PERMISSIONS, requiresServe, ServeProcess, TYPE } from "./rig.ts";

const MIB = 1 << 20;

function disk(folder: Folder): { image: string; socket: string } {
  const image = folder.file("disk.img");
  Deno.writeFileSync(image, new Uint8Array(0));
  Deno.truncateSync(image, 4 * MIB);
  return { image, socket: folder.file("vm.sock") };
}

Deno.test({
  name:
    "it says when it is ready, makes the socket for its owner only, serves one session after the other, and ends clean",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    const pidFile = folder.file("pid");
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket, "--pid-file", pidFile]);
    assertMatch(process.stdout, new RegExp(`^serving ${image} \\(raw, ${4 * MIB} bytes\\) at ${socket}\n`));
    assertEquals(Deno.statSync(socket).mode! & 0o777, 0o600);
    assertEquals(Deno.readTextFileSync(pidFile), `${process.pid}\n`);
    for (let session = 0; session < 3; session++) assertServes(socket);
    const { code, stderr } = await process.stop();
    assertEquals([code, stderr], [0, ""]);
    assertEquals([socket, pidFile].filter((path) => existsSync(path)), []);
  },
});

Deno.test({
  name: "--once ends with the first front-end",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket, "--once"]);
    assertServes(socket);
    const { code, stderr } = await process.end();
    assertEquals([code, stderr, existsSync(socket)], [0, "", false]);
  },
});

Deno.test({
  name: "a socket that a killed process left behind is replaced; a live one is refused, and goes on",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    const args = [image, "-f", "raw", "--vhost-user", socket];
    await (await ServeProcess.ready(args)).kill();
    assert(existsSync(socket));
    await using first = await ServeProcess.ready(args);
    const other = folder.file("other.img", new Uint8Array(512));
    await using second = new ServeProcess([other, "-f", "raw", "--vhost-user", socket]);
    const { code, stdout, stderr } = await second.end();
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^vblk: .*Another process listens at '.*vm\.sock'\nhint: .*\n$/);
    assertServes(socket);
    assertEquals((await first.stop()).code, 0);
  },
});

/** Arguments that can't be served, and what is said then. */
const REFUSED: readonly (readonly [
  name: string,
  args: (image: string, socket: string, folder: Folder) => string[],
  code: number,
  stderr: RegExp,
])[] = [
  ["an image that is not there", (_, socket) => ["/nowhere.img", "--vhost-user", socket], 1, /^vblk: .*\/nowhere\.img/],
  [
    "a socket path that is too long",
    (image, _, folder) => [image, "-f", "raw", "--vhost-user", folder.file("x".repeat(120))],
    1,
    /^vblk: .*at most 107 bytes.*\nhint: /,
  ],
  [
    "a socket in a folder that is not there",
    (image, _, folder) => [image, "-f", "raw", "--vhost-user", `${folder.path}/nowhere/vm.sock`],
    1,
    /^vblk: .*nowhere\/vm\.sock/,
  ],
  [
    "a file in the place of the socket",
    (image, _, folder) => [image, "-f", "raw", "--vhost-user", folder.file("file", new Uint8Array(1))],
    1,
    /^vblk: .*exists and is not a socket/,
  ],
  [
    "a pid file that can't be written",
    (image, socket) => [image, "-f", "raw", "--vhost-user", socket, "--pid-file", "/nowhere/pid"],
    1,
    /^vblk: .*\/nowhere\/pid/,
  ],
  ["an unknown option", (image) => [image, "--wrong"], 2, /^vblk: /],
  ["no image", (_, socket) => ["--vhost-user", socket], 2, /^vblk: .*one image/],
  ["two images", (image, socket) => [image, image, "--vhost-user", socket], 2, /^vblk: .*one image/],
  ["no socket at all", (image) => [image, "-f", "raw"], 2, /^vblk: .*\nhint: .*--vhost-user/],
  ["a wrong cache mode", (image, socket) => [image, "-t", "fast", "--vhost-user", socket], 2, /^vblk: .*fast/],
  ["a wrong number", (image, socket) => [image, "--poll-max-ns", "1s", "--vhost-user", socket], 2, /^vblk: .*1s/],
];

for (const [name, args, code, text] of REFUSED) {
  Deno.test({
    name: `${name}: said clearly, exit code ${code}, nothing left behind`,
    ...requiresServe(),
    async fn() {
      using folder = new Folder();
      const { image, socket } = disk(folder);
      const line = args(image, socket, folder);
      const before = [...Deno.readDirSync(folder.path)].map(({ name }) => name).sort();
      await using process = new ServeProcess(line);
      const end = await process.end();
      assertEquals([end.code, end.stdout], [code, ""], end.stderr);
      assertMatch(end.stderr, text);
      assert(!/Error|\n {4}at /.test(end.stderr), end.stderr);
      assertEquals([...Deno.readDirSync(folder.path)].map(({ name }) => name).sort(), before);
    },
  });
}

Deno.test({
  name: "without the right to call libc: said clearly, exit code 1",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    const permissions = PERMISSIONS.filter((flag) => flag !== "--allow-ffi");
    await using process = new ServeProcess([image, "--vhost-user", socket], { permissions });
    const { code, stderr } = await process.end();
    assertEquals([code, existsSync(socket)], [1, false]);
    assertMatch(stderr, /^vblk: .*permission.*\nhint: .*--allow-ffi/);
  },
});

Deno.test({
  name: "an image that somebody else uses is refused, and none of the two suffers",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    await using first = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    const other = folder.file("other.sock");
    await using second = new ServeProcess([image, "-f", "raw", "--vhost-user", other]);
    const { code, stderr } = await second.end();
    assertEquals([code, existsSync(other)], [1, false]);
    assertMatch(stderr, /^vblk: .*disk\.img.*lock.*\nhint: /);
    assertServes(socket);
    assertEquals((await first.stop()).code, 0);
  },
});

Deno.test({
  name: "a socket that systemd passes is served, and stays",
  ...requires("bash"),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    using listener = UnixServer.listen(socket);
    // Not to be closed when a program is started, from here on.
    const F_SETFD = 2;
    check("fcntl", () => libc().fcntl(listener.descriptor, F_SETFD, 0));
    const inherited = folder.file("activate", new TextEncoder().encode(ACTIVATE));
    await using process = await ServeProcess.ready([image, "-f", "raw"], {
      permissions: [...PERMISSIONS, "--allow-env"],
      through: ["bash", inherited, String(listener.descriptor)],
    });
    assertServes(socket);
    assertEquals((await process.stop()).code, 0);
    assert(existsSync(socket), "the socket is systemd's");
  },
});

Deno.test({
  name: "SIGTERM under load returns what is in flight, flushes, and closes the image clean",
  ...requires("qemu-img"),
  async fn() {
    using folder = new Folder();
    const image = folder.file("disk.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M");
    const socket = folder.file("vm.sock");
    await using process = await ServeProcess.ready([image, "-f", "qcow2", "--vhost-user", socket]);
    using front = new FrontEnd(socket);
    using guest = new Guest();
    guest.start(front);
    const written = new Map<number, number>();
    let block = 0;
    const fill = () => {
      for (let slot; (slot = guest.free.pop()) !== undefined;) {
        const at = block++ * 4096 * 5 % (60 * MIB);
        guest.data(slot).fill(block & 0xff);
        offsets[slot] = at;
        guest.submit(slot, TYPE.write, at, 4096);
      }
      guest.kick();
    };
    const offsets: number[] = [];
    const take = (answers: readonly { slot: number; status: number }[]) => {
      for (const { slot, status } of answers) {
        assertEquals(status, OK);
        written.set(offsets[slot], guest.data(slot)[0]);
        guest.free.push(slot);
      }
    };
    while (written.size < 500) {
      fill();
      take(guest.wait());
    }
    fill();
    process.signal("SIGTERM");
    const { code, stderr } = await process.end();
    take(guest.collect());
    assertEquals([code, stderr, existsSync(socket)], [0, "", false]);
    const checked = tryRun("qemu-img", "check", image);
    assert(checked.success, checked.text);
    const raw = folder.file("raw");
    run("qemu-img", "convert", "-O", "raw", image, raw);
    const bytes = Deno.readFileSync(raw);
    for (const [offset, byte] of written) assertEquals(bytes[offset], byte, `at ${offset}`);
  },
});

Deno.test({
  name: "a front-end that stops in the middle of a message is let go, at every byte, and the next one is served",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const { image, socket } = disk(folder);
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    const message = FrontEnd.message("SET_FEATURES", u64(1n << 32n));
    for (let cut = 0; cut < message.byteLength; cut++) {
      using front = new FrontEnd(socket);
      if (cut > 0) front.socket.send(message.slice(0, cut));
    }
    assertServes(socket);
    assertEquals((await process.stop()).code, 0);
  },
});

/** Does what systemd does: hands the listening socket over as descriptor 3, to the process that it becomes. */
const ACTIVATE = `
exec 3<&"$1"
shift
LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"
`;
