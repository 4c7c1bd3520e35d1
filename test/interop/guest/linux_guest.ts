/**
 * A Linux guest in QEMU without KVM. Its second serial port carries commands and what they print (see `init`), QEMU's
 * monitor does the rest: disks come and go while it runs, so that one boot serves many tests.
 */

import { join } from "node:path";
import { LineReader, PATIENCE_MS, within } from "./line_reader.ts";
import { guestPieces, type Qemu, qemuCommand } from "./pieces.ts";
import { Monitor } from "./qmp.ts";

/** What a command in the guest came to. */
export interface GuestRun {
  readonly status: number;
  /** What it printed, stdout and stderr together. */
  readonly output: string;
}

/** A guest. */
export class LinuxGuest implements AsyncDisposable {
  readonly monitor: Monitor;
  readonly #folder: string;
  readonly #qemu: Deno.ChildProcess;
  readonly #commands: Deno.FsFile;
  readonly #lines: LineReader;
  #ended = false;

  private constructor(
    folder: string,
    qemu: Deno.ChildProcess,
    monitor: Monitor,
    commands: Deno.FsFile,
    replies: Deno.FsFile,
  ) {
    this.#folder = folder;
    this.#qemu = qemu;
    this.monitor = monitor;
    this.#commands = commands;
    this.#lines = new LineReader(replies.readable);
  }

  /** Boots, and returns when the guest takes commands. `folder` takes its sockets and the kernel's log. */
  static async boot(folder: string, version: Qemu): Promise<LinuxGuest> {
    const { kernel, initramfs, programs } = guestPieces();
    const path = join(folder, "commands");
    await new Deno.Command("mkfifo", { args: [`${path}.in`, `${path}.out`] }).output();
    const { qemu, monitor } = await startQemu(
      folder,
      version,
      [
        ["-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 loglevel=4 mitigations=off tsc=reliable"],
        ["-chardev", `pipe,id=commands,path=${path}`],
        ["-serial", "chardev:commands"],
        ["-drive", `if=none,id=programs,file=${programs},format=raw,readonly=on`],
        // Before the slots of disks that come later, so that it has the same name after a reboot.
        ["-device", "virtio-blk-pci,drive=programs,serial=programs,addr=0x2"],
      ].flat(),
    );
    // QEMU has opened both pipes at both ends by now: neither waits.
    const commands = await Deno.open(`${path}.in`, { write: true });
    const replies = await Deno.open(`${path}.out`);
    const guest = new LinuxGuest(folder, qemu, monitor, commands, replies);
    await monitor.run("cont");
    await guest.ready();
    return guest;
  }

  /** QEMU's process. */
  get pid(): number {
    return this.#qemu.pid;
  }

  /** Waits until the guest has booted, again perhaps. */
  async ready(): Promise<void> {
    while (await this.#line("it boots") !== "@@ ready");
  }

  /** Runs a shell command; one with `&` at its end goes on while others run. */
  async run(command: string): Promise<GuestRun> {
    await this.send(command);
    return await this.#reply(command);
  }

  async #reply(command: string): Promise<GuestRun> {
    const output: string[] = [];
    for (;;) {
      const line = await this.#line(command);
      const end = /^(.*)@@ (\d+)$/.exec(line);
      if (end === null) output.push(line);
      else {
        if (end[1] !== "") output.push(end[1]);
        return { status: Number(end[2]), output: output.join("\n") };
      }
    }
  }

  /** Runs a shell command that succeeds, and returns what it printed. */
  async ok(command: string): Promise<string> {
    const { status, output } = await this.run(command);
    if (status !== 0) {
      throw new Error(`in the guest: ${command}: status ${status}: ${output}\n${this.kernelLog()}`);
    }
    return output;
  }

  /** Gives it a command and does not wait, for one after which it says nothing more. */
  async send(command: string): Promise<void> {
    let bytes = new TextEncoder().encode(`${command}\n`);
    while (bytes.length > 0) bytes = bytes.subarray(await this.#commands.write(bytes));
  }

  /** Adds the disk that is served at `socket`; returns its device in the guest, such as `/dev/vdb`. */
  async plug(id: string, socket: string, properties: Record<string, unknown> = {}): Promise<string> {
    const before = new Set((await this.ok("ls -1 /sys/block")).split("\n"));
    await this.monitor.run("chardev-add", {
      id: `char-${id}`,
      backend: {
        type: "socket",
        data: { addr: { type: "unix", data: { path: socket } }, server: false, reconnect: 1 },
      },
    });
    await this.monitor.run("device_add", {
      driver: "vhost-user-blk-pci",
      id,
      chardev: `char-${id}`,
      "num-queues": 1,
      ...properties,
    });
    // The disk is there when its driver has made a node of it.
    const known = [...before].join("|");
    const wait =
      `until name=$(ls -1 /sys/block | grep -vxE '${known}') && [ -b /dev/$name ]; do sleep 0.05; done; echo $name`;
    return `/dev/${await this.ok(wait)}`;
  }

  /** Takes a disk away, in agreement with the guest. */
  async unplug(id: string): Promise<void> {
    await this.monitor.run("device_del", { id });
    await this.monitor.event("DEVICE_DELETED", ({ device }) => device === id);
    await this.monitor.run("chardev-remove", { id: `char-${id}` });
  }

  /** What the kernel said: the end of it. */
  kernelLog(): string {
    return Deno.readTextFileSync(join(this.#folder, "console")).slice(-3000);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    await endQemu(this.#qemu, this.monitor);
    this.#commands.close();
    await this.#lines.close();
  }

  async #line(what: string): Promise<string> {
    const line = await within(this.#lines.next(), PATIENCE_MS, () => `${what}\n${this.kernelLog()}`);
    if (line === null) throw new Error(`QEMU ended: ${what}\n${this.kernelLog()}`);
    return line;
  }
}

/** Starts a QEMU that waits for `cont`; what it prints to its first serial port goes to `console` in `folder`. */
export async function startQemu(
  folder: string,
  version: Qemu,
  args: readonly string[],
): Promise<{ qemu: Deno.ChildProcess; monitor: Monitor }> {
  const { command, args: before, env } = qemuCommand(version);
  const qemu = new Deno.Command(command, {
    env: { ...env },
    args: [
      before,
      // A large translation buffer makes each reset of the guest take a minute.
      ["-S", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,tb-size=64", "-smp", "2"],
      ["-machine", "pc,memory-backend=mem", "-m", "384M"],
      ["-object", "memory-backend-memfd,id=mem,share=on,size=384M"],
      ["-chardev", "stdio,id=monitor,signal=off", "-mon", "chardev=monitor,mode=control"],
      ["-serial", `file:${join(folder, "console")}`],
      args,
    ].flat(),
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  return { qemu, monitor: await Monitor.open(qemu) };
}

/** Ends it at once. */
export async function endQemu(qemu: Deno.ChildProcess, monitor: Monitor): Promise<void> {
  try {
    qemu.kill("SIGKILL");
  } catch {
    // It has ended by itself.
  }
  await qemu.status;
  await monitor.close();
}
