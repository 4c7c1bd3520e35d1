import { assert, assertEquals } from "@std/assert";
import { errnoName, errnoText, HostError } from "../../src/host/errno.ts";
import * as host from "../../src/host/libc.ts";
import { Folder } from "../storage/support.ts";
import { errorOf, openDescriptors, requiresLibc } from "./support.ts";

const test = (name: string, fn: () => void | Promise<void>) => Deno.test({ name, ...requiresLibc(), fn });

test("a call that fails says which, of what, and why", () => {
  const error = errorOf(() => host.open("/nowhere/at/all", host.O.RDONLY)) as HostError;
  assertEquals([error.message, error.code, error.errno, error.call], [
    "open '/nowhere/at/all': No such file or directory",
    "ENOENT",
    2,
    "open",
  ]);
  assertEquals(errorOf(() => host.pread(-1, new Uint8Array(1), 0)).message, "pread: Bad file descriptor");
  assertEquals([errnoName(4095), errnoText(4095)], ["E4095", "Unknown error 4095"]);
});

test("a path with a zero in it is not cut there", () => {
  assertEquals((errorOf(() => host.open("/etc/passwd\0.img", host.O.RDONLY)) as HostError).code, "EINVAL");
});

test("fstat and lstat see what Deno sees", () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(70_000));
  Deno.chmodSync(path, 0o640);
  const descriptor = host.open(path, host.O.RDONLY);
  const { dev, ino, blocks } = Deno.statSync(path);
  const expected = {
    identity: `${dev}:${ino}`,
    kind: "file",
    mode: 0o640,
    sizeBytes: 70_000,
    allocatedBytes: blocks! * 512,
  } as const;
  assertEquals(host.fstat(descriptor), expected);
  assertEquals(host.lstat(path), expected);
  assertEquals(host.sizeOf(descriptor), 70_000);
  host.close(descriptor);
  Deno.symlinkSync(path, folder.file("link"));
  assertEquals(host.lstat(folder.file("link")).kind, "other");
});

test("offsets and sizes above 4 GiB arrive whole", () => {
  using folder = new Folder();
  const descriptor = host.open(folder.file("disk", new Uint8Array(0)), host.O.RDWR);
  const far = 5 * 2 ** 32 + 12_345;
  host.ftruncate(descriptor, far + 10);
  assertEquals(host.sizeOf(descriptor), far + 10);
  assertEquals(host.pwrite(descriptor, Uint8Array.of(1, 2, 3), far), 3);
  const found = new Uint8Array(5);
  assertEquals(host.pread(descriptor, found, far - 1), 5);
  assertEquals([...found], [0, 1, 2, 3, 0]);
  host.close(descriptor);
});

test("a descriptor can be made to wait, and not to wait", () => {
  const descriptor = host.memfdCreate("vblk-test", 4096);
  for (const on of [true, false]) {
    host.setNonBlocking(descriptor, on);
    assertEquals(host.isNonBlocking(descriptor), on);
  }
  assertEquals(host.fstat(descriptor).sizeBytes, 4096);
  host.close(descriptor);
});

test("what fails leaves no descriptor open", () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(10));
  const before = openDescriptors();
  errorOf(() => host.memfdCreate("vblk-test", -1));
  errorOf(() => host.memfdCreate("x".repeat(300), 1));
  errorOf(() => host.open(path, host.O.CREAT | host.O.EXCL));
  assertEquals(openDescriptors(), before);
});

const PROBE = `
import { libcProblem } from "${new URL("../../src/host/libc.ts", import.meta.url).href}";
import { ioUringProblem } from "${new URL("../../src/host/io_uring.ts", import.meta.url).href}";
import { UringFileStorage } from "${new URL("../../src/storage/uring_file.ts", import.meta.url).href}";
let failure;
try { UringFileStorage.open(Deno.args[0]); } catch (error) { failure = [error.kind, error.message, error.hint]; }
console.log(JSON.stringify([libcProblem()?.message, libcProblem()?.hint, ioUringProblem()?.message, failure]));
`;

test("without the permission for foreign functions everything says so, and asks nobody", async () => {
  using folder = new Folder();
  const disk = folder.file("disk", new Uint8Array(512));
  const program = folder.file("probe.ts", new TextEncoder().encode(PROBE));
  const { stdout, success } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "--quiet", "--allow-read", "--allow-write", program, disk],
    stderr: "inherit",
  }).output();
  assert(success);
  const reason = "Deno was not given the permission to call libc (FFI)";
  const hint = "run again with --allow-ffi (right after 'deno run')";
  assertEquals(JSON.parse(new TextDecoder().decode(stdout)), [
    reason,
    hint,
    reason,
    ["not-capable", `Could not open '${disk}': ${reason}`, hint],
  ]);
});
