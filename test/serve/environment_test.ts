/** What `vblk serve` and `vblk attach --engine uring` say of the machine that they run on, and to systemd. */

import { assertEquals, assertMatch } from "@std/assert";
import { fileURLToPath } from "node:url";
import { check, close, libc, POLL, poll } from "../../src/host/libc.ts";
import { HostError } from "../../src/host/errno.ts";
import { notify } from "../../src/host/notify_socket.ts";
import { requiresLibc } from "../host/support.ts";
import { vblk } from "../cli/vblk.ts";
import { Folder } from "../storage/support.ts";
import { requiresUring } from "../storage/uring_support.ts";
import { assertServes, PERMISSIONS, requiresServe, ServeProcess } from "./rig.ts";

/** Runs vblk where io_uring_setup(2) fails. */
async function withoutRing(errno: number, ...args: string[]): Promise<{ code: number; stderr: string }> {
  const script = fileURLToPath(new URL("./seccomp.ts", import.meta.url));
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...PERMISSIONS, script, String(errno), ...args],
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  return { code, stderr: new TextDecoder().decode(stderr) };
}

const [EPERM, ENOSYS] = [1, 38];

for (
  const [errno, said] of [
    [ENOSYS, "There is no io_uring here: .*\nhint: a container's seccomp profile may be what hides it\n"],
    [EPERM, "io_uring is forbidden here\nhint: look at the sysctl kernel\\.io_uring_disabled, .*\n"],
  ] as const
) {
  Deno.test({
    name: `where io_uring_setup fails with error ${errno}, serve and --engine uring say what is in the way`,
    ...requiresLibc(),
    async fn() {
      using folder = new Folder();
      const image = folder.file("disk.img", new Uint8Array(512));
      const served = await withoutRing(errno, "serve", image, "-f", "raw", "--vhost-user", folder.file("vm.sock"));
      assertEquals(served.code, 1);
      assertMatch(served.stderr, new RegExp(`^vblk: serve: ${said}$`));
      const attach = (...more: string[]) => withoutRing(errno, "attach", image, "-f", "raw", "-c", "length", ...more);
      const attached = await attach("--engine", "uring");
      assertEquals(attached.code, 1);
      assertMatch(attached.stderr, new RegExp(`^vblk: --engine uring: ${said}$`));
      assertEquals(await attach(), { code: 0, stderr: "" });
    },
  });
}

Deno.test({
  name: "attach --engine uring runs the same commands on io_uring, past the page cache too",
  ...requiresUring(),
  async fn() {
    using folder = new Folder();
    const image = folder.file("disk.img", new Uint8Array(1 << 20));
    const commands = ["write -P 7 0 64k", "aio_write -P 8 64k 64k", "aio_flush", "discard 0 4k", "read -P 0 0 4k"];
    const more = ["read -P 7 4k 60k", "read -P 8 64k 64k", "flush"];
    const args = [...commands, ...more].flatMap((command) => ["-c", command]);
    for (const flags of [[], ["-n"]]) {
      const line = ["attach", "-f", "raw", image, "--engine", "uring", ...flags, ...args];
      const { code, stderr, stdout } = await vblk(line, { permissions: PERMISSIONS });
      assertEquals([code, stderr], [0, ""], stdout);
    }
    const bytes = Deno.readFileSync(image);
    assertEquals([bytes[0], bytes[4096], bytes[65536], bytes[131072]], [0, 7, 8, 0]);
    const unable = await vblk(["attach", image, "--engine", "uring"], {});
    assertMatch(unable.stderr, /^vblk: --engine uring: .*permission.*\nhint: .*--allow-ffi/);
    assertEquals((await vblk(["attach", image, "--engine", "fast"], {})).code, 2);
  },
});

/** A socket for datagrams, as systemd has one, under a name as libc wants it. */
class NotifySocket implements Disposable {
  readonly #descriptor = check("socket", () => libc().socket(1, 2, 0));

  constructor(name: string) {
    const bytes = new TextEncoder().encode(`\x01\0${name.replace("@", "\0")}${name.startsWith("@") ? "" : "\0"}`);
    check("bind", () => libc().bind(this.#descriptor, bytes, bytes.byteLength), name);
  }

  receive(): string {
    if (poll(this.#descriptor, POLL.IN, 10_000) === 0) throw new Error("nothing came");
    const bytes = new Uint8Array(64);
    const count = check("read", () => libc().read(this.#descriptor, bytes, 64n));
    return new TextDecoder().decode(bytes.subarray(0, count));
  }

  [Symbol.dispose](): void {
    close(this.#descriptor);
  }
}

Deno.test({
  name: "systemd hears that vblk serves, at a path or an abstract name, when it does and not before",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    for (const name of [folder.file("notify"), `@vblk-test-${Deno.pid}`]) {
      using socket = new NotifySocket(name);
      const [image, vm] = [folder.file("disk.img", new Uint8Array(4096)), folder.file("vm.sock")];
      await using process = new ServeProcess([image, "-f", "raw", "--vhost-user", vm], {
        permissions: [...PERMISSIONS, "--allow-env"],
        env: { NOTIFY_SOCKET: name },
      });
      assertEquals(socket.receive(), "READY=1");
      assertServes(vm);
      assertEquals((await process.stop()).stderr, "");
    }
  },
});

Deno.test({
  name: "a NOTIFY_SOCKET where nobody listens is mentioned, and the disk served all the same",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, vm] = [folder.file("disk.img", new Uint8Array(4096)), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", vm], {
      permissions: [...PERMISSIONS, "--allow-env"],
      env: { NOTIFY_SOCKET: folder.file("nobody") },
    });
    assertServes(vm);
    assertMatch((await process.stop()).stderr, /^vblk: can't tell systemd .*nobody.*\n$/);
  },
});

Deno.test({
  name: "notify() takes paths and abstract names, and nothing else",
  ...requiresLibc(),
  fn() {
    for (const name of ["", "relative", "vsock:2:1", `/${"x".repeat(107)}`]) {
      let error: unknown;
      try {
        notify(name, "READY=1");
      } catch (caught) {
        error = caught;
      }
      assertEquals((error as Error | undefined)?.name, "RangeError", name);
      assertEquals(error instanceof HostError, false);
    }
  },
});
