import { assert, assertEquals } from "@std/assert";
import { BlockError } from "../../src/storage/block_error.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { attach } from "../../src/attach.ts";
import { GuestIoError } from "../../src/guest/guest_error.ts";
import { requires } from "../requires.ts";
import { ask } from "./child_process.ts";
import { failureOf, Folder, readBytes, requiresMount, run, SmallDisk, writeBytes } from "./support.ts";

const MODES = [{ readOnly: true }, { readOnly: false }];

for (const options of MODES) {
  const how = options.readOnly ? "for reading" : "for writing";

  Deno.test(`opening a file that is not there ${how} fails as not-found, and names the way out`, async () => {
    using folder = new Folder();
    const path = folder.file("missing");
    assertEquals(await failureOf(() => DenoFileStorage.open(path, options)), {
      kind: "not-found",
      message: `Could not open '${path}': No such file or directory`,
      hint: "check the name; 'mem:64M' attaches a disk in memory",
    });
  });

  Deno.test(`opening an empty name ${how} fails as invalid`, async () => {
    const { kind, message } = await failureOf(() => DenoFileStorage.open("", options));
    assertEquals([kind, message], ["invalid", "Could not open '': A file name is required"]);
  });

  Deno.test(`opening a path that goes through a file ${how} fails as not-found`, async () => {
    using folder = new Folder();
    const path = `${folder.file("file", new Uint8Array())}/disk`;
    const { kind, message } = await failureOf(() => DenoFileStorage.open(path, options));
    assertEquals([kind, message], ["not-found", `Could not open '${path}': Not a directory`]);
  });

  Deno.test(`opening a directory ${how} fails as is-directory`, async () => {
    using folder = new Folder();
    assertEquals(await failureOf(() => DenoFileStorage.open(folder.path, options)), {
      kind: "is-directory",
      message: `Could not open '${folder.path}': Is a directory`,
      hint: undefined,
    });
  });

  Deno.test({
    name: `opening a FIFO ${how} fails as unsupported, and does not wait for its other end`,
    ...requires("mkfifo"),
    async fn() {
      using folder = new Folder();
      const path = folder.file("fifo");
      run("mkfifo", path);
      assertEquals(await failureOf(() => DenoFileStorage.open(path, options)), {
        kind: "unsupported",
        message: `Could not open '${path}': Neither a regular file nor a block device`,
        hint: undefined,
      });
    },
  });

  Deno.test(`opening a character device ${how} fails as unsupported`, async () => {
    const { kind, message } = await failureOf(() => DenoFileStorage.open("/dev/zero", options));
    const expected = "Could not open '/dev/zero': Neither a regular file nor a block device";
    assertEquals([kind, message], ["unsupported", expected]);
  });
}

const NOT_CAPABLE = "Deno was not given the permission";

Deno.test("without Deno's permission to read, opening fails as not-capable, and names the flags", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  const message = `Could not open '${path}': ${NOT_CAPABLE}`;
  assertEquals(await ask(["open", path, "read"], []), {
    kind: "not-capable",
    message,
    hint: `run again with --allow-read=${path} (right after 'deno run')`,
  });
  assertEquals(await ask(["open", path, "write"], []), {
    kind: "not-capable",
    message,
    hint: `run again with --allow-read=${path} --allow-write=${path} (right after 'deno run')`,
  });
});

Deno.test("without Deno's permission to write, opening for writing fails as not-capable, and names the flags", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  assertEquals(await ask(["open", path, "write"], ["--allow-read"]), {
    kind: "not-capable",
    message: `Could not open '${path}': ${NOT_CAPABLE}`,
    hint: `run again with --allow-read=${path} --allow-write=${path} (right after 'deno run')`,
  });
  assertEquals(await ask(["open", path, "read"], ["--allow-read"]), { kind: "open" });
});

Deno.test("the flags that the hint names are enough", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  assertEquals(await ask(["open", path, "write"], [`--allow-read=${path}`, `--allow-write=${path}`]), { kind: "open" });
  assertEquals(await ask(["open", path, "read"], [`--allow-read=${path}`]), { kind: "open" });
});

Deno.test("for a device, which Deno opens only for those who may do everything, the hint says --allow-all", async () => {
  assertEquals(await ask(["open", "/dev/full", "write"], ["--allow-read", "--allow-write"]), {
    kind: "not-capable",
    message: `Could not open '/dev/full': ${NOT_CAPABLE}`,
    hint: "run again with --allow-all (right after 'deno run')",
  });
});

Deno.test("a file whose mode forbids it fails as not-permitted, with a hint for reading only", async () => {
  using folder = new Folder();
  Deno.chmodSync(folder.path, 0o755);
  const path = folder.file("disk", new Uint8Array(512));
  const message = `Could not open '${path}': Permission denied`;
  // Root may open everything: only who has given that up sees the mode.
  const action = "open-as-nobody";
  Deno.chmodSync(path, 0);
  assertEquals(await ask([action, path, "read"]), {
    kind: "not-permitted",
    message,
    hint: "the file's mode does not let you read it",
  });
  Deno.chmodSync(path, 0o444);
  assertEquals(await ask([action, path, "write"]), {
    kind: "not-permitted",
    message,
    hint: "the file's mode does not let you read and write it; -r needs reading only",
  });
  assertEquals(await ask([action, path, "read"]), { kind: "open" });
});

Deno.test({
  name: "a file on a read-only file system fails as not-permitted for writing, and opens for reading",
  ...requiresMount(),
  async fn() {
    using disk = new SmallDisk();
    const path = disk.folder.file("disk", new Uint8Array(512));
    disk.makeReadOnly();
    assertEquals(await failureOf(() => DenoFileStorage.open(path)), {
      kind: "not-permitted",
      message: `Could not open '${path}': Read-only file system`,
      hint: "give -r to read only",
    });
    DenoFileStorage.open(path, { readOnly: true }).close();
  },
});

Deno.test({
  name: "a full disk fails a write as no-space, keeps what was written before, and works again once there is space",
  ...requiresMount(),
  async fn() {
    using disk = new SmallDisk();
    const ballast = disk.folder.file("ballast", new Uint8Array(48 << 10));
    const path = disk.folder.file("disk", new Uint8Array());
    const storage = DenoFileStorage.open(path);
    try {
      storage.truncate(1 << 20);
      await writeBytes(storage, 0, new Uint8Array(4096).fill(1));
      const big = new Uint8Array(64 << 10).fill(2);
      assertEquals(await failureOf(() => writeBytes(storage, 8192, big)), {
        kind: "no-space",
        message: `write of '${path}' at offset 8192: No space left on device`,
        hint: undefined,
      });
      assertEquals(await readBytes(storage, 0, 4096), new Uint8Array(4096).fill(1));
      Deno.removeSync(ballast);
      await writeBytes(storage, 4096, new Uint8Array(4096).fill(3));
      assertEquals(await readBytes(storage, 4096, 4096), new Uint8Array(4096).fill(3));
    } finally {
      storage.close();
    }
  },
});

/** The status that a request of the guest failed with. */
async function statusOf(request: Promise<unknown>): Promise<number | null> {
  try {
    await request;
  } catch (error) {
    if (error instanceof GuestIoError) return error.status;
    throw error;
  }
  throw new Error("the request did not fail");
}

const S_IOERR = 1;

Deno.test({
  name: "a full disk gives the guest S_IOERR and the user the reason, and later requests are served",
  ...requiresMount(),
  async fn() {
    using disk = new SmallDisk();
    const path = disk.folder.file("disk", new Uint8Array());
    Deno.truncateSync(path, 1 << 20);
    const errors: BlockError[] = [];
    const machine = await attach(path, { format: "raw", hostError: (error) => void errors.push(error) });
    assertEquals(await statusOf(machine.guest.write(0, new Uint8Array(128 << 10).fill(1))), S_IOERR);
    assertEquals(errors.map((error) => error.message), [
      `write of '${path}' at offset 0: No space left on device`,
    ]);
    assertEquals((await machine.guest.read(1 << 19, 512)).byteLength, 512);
    await machine.close();
  },
});

Deno.test("a file truncated under a running guest gives it S_IOERR and the user the reason, until it is whole again", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(64 << 10).fill(3));
  const errors: BlockError[] = [];
  const machine = await attach(path, { format: "raw", hostError: (error) => void errors.push(error) });
  Deno.truncateSync(path, 4096);
  assertEquals(await statusOf(machine.guest.read(32 << 10, 512)), S_IOERR);
  assertEquals(errors.map((error) => [error.kind, error.message]), [
    ["truncated", `read of '${path}' at offset 32768: The file is shorter than it was when it was opened`],
  ]);
  assertEquals((await machine.guest.read(0, 512))[0], 3);
  // A write behind the new end makes the file longer again.
  await machine.guest.write(32 << 10, new Uint8Array(512).fill(4));
  assertEquals((await machine.guest.read(32 << 10, 512))[0], 4);
  assertEquals((await machine.guest.read(16 << 10, 512))[0], 0);
  await machine.close();
  assertEquals(errors.length, 1);
});

/** Errors as Deno throws them, and what they become. */
const CAUSES: readonly (readonly [cause: unknown, kind: string, reason: string])[] = [
  [Object.assign(new Error("x"), { code: "EDQUOT" }), "no-space", "Disk quota exceeded"],
  [Object.assign(new Error("x"), { code: "EFBIG" }), "no-space", "File too large"],
  [Object.assign(new Error("x"), { code: "EPERM" }), "not-permitted", "Permission denied"],
  [Object.assign(new Error("x"), { code: "EINVAL" }), "invalid", "Invalid argument"],
  [Object.assign(new Error("x"), { code: "EOPNOTSUPP" }), "unsupported", "Operation not supported"],
  [Object.assign(new Error("bad sector"), { code: "EIO" }), "io", "Input/output error (bad sector)"],
  [new Deno.errors.NotFound("x"), "not-found", "No such file or directory"],
  [new Deno.errors.PermissionDenied("x"), "not-permitted", "Permission denied"],
  ["a string", "io", "Input/output error"],
  [undefined, "io", "Input/output error"],
];

for (const [cause, kind, reason] of CAUSES) {
  const shown = cause instanceof Error ? `${cause.name} ${(cause as { code?: string }).code ?? ""}`.trim() : `${cause}`;
  Deno.test(`BlockError.from() takes ${shown} for ${kind}: ${reason}`, () => {
    const error = BlockError.from(cause, { path: "disk.img", operation: "read", offset: 512 });
    assertEquals([error.kind, error.reason], [kind, reason]);
    assertEquals(error.message, `read of 'disk.img' at offset 512: ${reason}`);
    assert(cause === undefined || error.cause === cause);
  });
}

Deno.test("BlockError.from() leaves a BlockError as it is", () => {
  const error = new BlockError({ kind: "locked", path: "a", operation: "open" });
  assert(BlockError.from(error, { path: "b", operation: "read" }) === error);
});
