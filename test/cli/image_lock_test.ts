/** vblk's commands and QEMU's keep out of each other's way: both know the same locks. */

import { assertEquals, assertMatch } from "@std/assert";
import { requires } from "../requires.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import { requiresLibc } from "../host/support.ts";
import { CLI, vblk } from "./vblk.ts";

const WITH_FFI = ["--allow-read", "--allow-write", "--allow-ffi"];
const needs = requires("qemu-io", "qemu-img").ignore ? { ignore: true } : requiresLibc();

/** A program that has an image open until the end of the scope. */
class Holder implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
  }

  /** Starts it, and waits until it has answered a command. */
  static async start(program: string, ...args: string[]): Promise<Holder> {
    const process = new Deno.Command(program, { args, stdin: "piped", stdout: "piped", stderr: "null" }).spawn();
    const writer = process.stdin.getWriter();
    await writer.write(new TextEncoder().encode("length\n"));
    writer.releaseLock();
    const reader = process.stdout.getReader();
    for (let text = ""; !/\d [KM]iB/.test(text);) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`${program} ended: ${text}`);
      text += new TextDecoder().decode(value);
    }
    reader.releaseLock();
    return new Holder(process);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stdin.close();
    await this.#process.stdout.cancel();
    await this.#process.status;
  }
}

for (const format of ["raw", "qcow2"]) {
  Deno.test({
    name: `while vblk attach has a ${format} image, qemu-io may not write it and qemu-img may not resize it`,
    ...needs,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      run("qemu-img", "create", "-q", "-f", format, path, "1M");
      const write = () => tryRun("qemu-io", "-f", format, "-c", "write 0 512", path);
      {
        await using _holder = await Holder.start(
          Deno.execPath(),
          ...["run", "--no-prompt", ...WITH_FFI, CLI, "attach", "-f", format, path],
        );
        assertMatch(write().text, /Failed to get "write" lock/);
        const resized = tryRun("qemu-img", "resize", "-f", format, path, "2M");
        assertEquals(resized.success, false);
        assertMatch(resized.text, /Failed to get "write" lock/);
      }
      assertEquals(write().success, true);
    },
  });

  Deno.test({
    name: `while qemu-io writes a ${format} image, vblk's commands leave it alone, and -U reads it`,
    ...needs,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk");
      run("qemu-img", "create", "-q", "-f", format, path, "1M");
      const attempt = (...args: string[]) => vblk(args, { permissions: WITH_FFI });
      const commands = [
        ["attach", "-f", format, path, "-c", "length"],
        ["attach", "-r", "-f", format, path, "-c", "length"],
        ["resize", "-f", format, path, "2M"],
        ["info", path],
        ["convert", "-f", format, "-O", "raw", path, folder.file("copy")],
      ];
      {
        await using _holder = await Holder.start("qemu-io", "-f", format, path);
        for (const command of commands) {
          const { code, stderr } = await attempt(...command);
          assertEquals(code, 1, command.join(" "));
          assertMatch(stderr, /lock.*: another process has the image open/, command.join(" "));
        }
        assertEquals((await attempt("attach", "-r", "-U", "-f", format, path, "-c", "length")).stdout, "1 MiB\n");
      }
      for (const command of commands) {
        const { code, stderr } = await attempt(...command);
        assertEquals([code, stderr], [0, ""], command.join(" "));
      }
    },
  });
}
