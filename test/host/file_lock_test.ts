import { assert, assertEquals } from "@std/assert";
import { FileLock, type LockWish } from "../../src/host/file_lock.ts";
import { close, O, open as openFile } from "../../src/host/libc.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import type { Storage } from "../../src/storage/storage.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { requires } from "../requires.ts";
import { failureOf, Folder, run, tryRun } from "../storage/support.ts";
import { requiresUring } from "../storage/uring_support.ts";
import { openDescriptors, requiresLibc } from "./support.ts";

const WRITER: LockWish = { uses: ["consistent read", "write", "resize"], refuses: ["write", "resize"] };
const READER: LockWish = { uses: ["consistent read"], refuses: ["write", "resize"] };
/** As qemu-io opens a raw image for writing. */
const SHARING_WRITER: LockWish = { uses: ["consistent read", "write"], refuses: [] };
const BYSTANDER: LockWish = { uses: ["consistent read"], refuses: [] };

/** Who holds the image, who comes, and what is in the way. */
const MEETINGS: readonly (readonly [first: LockWish, second: LockWish, reason: string | null])[] = [
  [WRITER, WRITER, 'Failed to get "write" lock'],
  [WRITER, READER, 'Failed to get shared "write" lock'],
  [WRITER, SHARING_WRITER, 'Failed to get "write" lock'],
  [WRITER, BYSTANDER, null],
  [READER, WRITER, 'Failed to get "write" lock'],
  [READER, READER, null],
  [SHARING_WRITER, WRITER, 'Failed to get shared "write" lock'],
  [SHARING_WRITER, SHARING_WRITER, null],
  [SHARING_WRITER, READER, 'Failed to get shared "write" lock'],
  [BYSTANDER, WRITER, null],
];

Deno.test({
  name: "who uses what another refuses is refused, and so is who refuses what another uses",
  ...requiresLibc(),
  fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(512));
    const before = openDescriptors();
    for (const [first, second, reason] of MEETINGS) {
      const [a, b] = [openFile(path, O.RDWR), openFile(path, O.RDONLY)];
      const held = FileLock.acquire(a, first);
      assert(held instanceof FileLock);
      const outcome = FileLock.acquire(b, second);
      assertEquals(outcome instanceof FileLock ? null : outcome.reason, reason, JSON.stringify([first, second]));
      held.release();
      assert(FileLock.acquire(b, second) instanceof FileLock, "it was not given back");
      close(a);
      close(b);
    }
    assertEquals(openDescriptors(), before);
  },
});

/** A qemu-io that has an image open until the end of the scope. */
class QemuIo implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;

  private constructor(process: Deno.ChildProcess) {
    this.#process = process;
  }

  static async open(...args: string[]): Promise<QemuIo> {
    const process = new Deno.Command("qemu-io", { args, stdin: "piped", stdout: "piped", stderr: "null" }).spawn();
    // Its prompt comes when the image is open.
    const reader = process.stdout.getReader();
    for (let text = ""; !text.includes("qemu-io>");) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`qemu-io ended: ${text}`);
      text += new TextDecoder().decode(value);
    }
    reader.releaseLock();
    return new QemuIo(process);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stdin.close();
    await this.#process.stdout.cancel();
    await this.#process.status;
  }
}

function make(folder: Folder, format: string): string {
  const path = folder.file(`disk.${format}`);
  run("qemu-img", "create", "-q", "-f", format, path, "1M");
  return path;
}

const needs = requires("qemu-io", "qemu-img").ignore ? { ignore: true } : requiresUring();

type Open = (path: string, options: { readOnly: boolean; share?: boolean }) => Storage;

/** Both ways to open a file, which must lock it alike. */
const ENGINES: readonly (readonly [name: string, open: Open])[] = [
  ["the io_uring engine", UringFileStorage.open],
  ["the portable engine", DenoFileStorage.open],
];

/** How qemu-io has the image, how we want it, and whether we get it. */
const AFTER_QEMU: readonly (readonly [format: string, args: string[], readOnly: boolean, reason: string | null])[] = [
  ["raw", [], false, 'Failed to get shared "write" lock: another process has the image open'],
  ["raw", [], true, 'Failed to get shared "write" lock: another process has the image open for writing'],
  ["raw", ["-r"], false, null],
  ["raw", ["-r"], true, null],
  ["qcow2", [], false, 'Failed to get "write" lock: another process has the image open'],
  ["qcow2", [], true, 'Failed to get shared "write" lock: another process has the image open for writing'],
  ["qcow2", ["-r"], false, 'Failed to get "write" lock: another process has the image open'],
  ["qcow2", ["-r"], true, null],
];

for (const [engine, open] of ENGINES) {
  for (const [format, args, readOnly, reason] of AFTER_QEMU) {
    const [theirs, ours] = [args.length > 0 ? "reads" : "writes", readOnly ? "read" : "write"];
    Deno.test({
      name: `${engine}: while qemu-io ${theirs} a ${format} image, vblk ${reason ? "may not" : "may"} ${ours} it`,
      ...needs,
      async fn() {
        using folder = new Folder();
        const path = make(folder, format);
        {
          await using _qemu = await QemuIo.open("-f", format, ...args, path);
          if (reason === null) {
            open(path, { readOnly }).close();
          } else {
            const { kind, message } = await failureOf(() => open(path, { readOnly }));
            assertEquals([kind, message], ["locked", `Could not open '${path}': ${reason}`]);
            open(path, { readOnly, share: true }).close();
          }
        }
        open(path, { readOnly }).close();
      },
    });
  }
}

/** How we have the image, how qemu-io wants it, and what it says. */
const BEFORE_QEMU: readonly (readonly [format: string, readOnly: boolean, args: string[], reason: string | null])[] = [
  ["raw", false, [], 'Failed to get "write" lock'],
  ["raw", false, ["-r"], null],
  ["raw", true, [], 'Failed to get "write" lock'],
  ["raw", true, ["-r"], null],
  ["qcow2", false, [], 'Failed to get "write" lock'],
  ["qcow2", false, ["-r"], 'Failed to get shared "write" lock'],
  ["qcow2", false, ["-r", "-U"], null],
  ["qcow2", true, [], 'Failed to get "write" lock'],
  ["qcow2", true, ["-r"], null],
];

for (const [engine, open] of ENGINES) {
  for (const [format, readOnly, args, reason] of BEFORE_QEMU) {
    const [ours, theirs] = [readOnly ? "reads" : "writes", args.length > 0 ? `read (${args.join(" ")})` : "write"];
    Deno.test({
      name: `${engine}: while vblk ${ours} a ${format} image, qemu-io ${reason ? "may not" : "may"} ${theirs} it`,
      ...needs,
      fn() {
        using folder = new Folder();
        const path = make(folder, format);
        const storage = open(path, { readOnly });
        const command = ["-f", format, ...args, "-c", "read 0 512", path];
        const { success, text } = tryRun("qemu-io", ...command);
        assertEquals(success, reason === null, text);
        if (reason !== null) assert(text.includes(reason), text);
        storage.close();
        assertEquals(tryRun("qemu-io", ...command).success, true);
      },
    });
  }
}

Deno.test({
  name: "a lock by name has a descriptor of its own: others come and go, and release() gives it back, once",
  ...requiresLibc(),
  fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(512));
    const before = openDescriptors();
    const held = FileLock.acquireByName(path, WRITER);
    assert(held instanceof FileLock);
    close(openFile(path, O.RDWR));
    const refused = FileLock.acquireByName(path, READER);
    assert(!(refused instanceof FileLock));
    assertEquals(refused.reason, 'Failed to get shared "write" lock');
    held.release();
    // Its number is another file's by now.
    const other = openFile(path, O.RDONLY);
    held.release();
    assert(openDescriptors().includes(other), "a second release closed what was not its own");
    close(other);
    const again = FileLock.acquireByName(path, WRITER);
    assert(again instanceof FileLock);
    again.release();
    assertEquals(openDescriptors(), before);
  },
});
