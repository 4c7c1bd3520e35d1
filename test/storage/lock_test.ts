import { assertEquals } from "@std/assert";
import { openImage } from "../../src/image/open.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { failureOf, Folder } from "./support.ts";
import { Child } from "./child_process.ts";

type Mode = "read" | "write";

const WRITER_REFUSED = {
  reason: `Failed to get "write" lock: another process has the image open`,
  hint: "close the other process first; if it only reads, -r opens the image beside it",
};
const READER_REFUSED = {
  reason: `Failed to get shared "write" lock: another process has the image open for writing`,
  hint: "close the other process first, or give -U (--force-share) to read anyway, at the risk of torn data",
};

/** Who has the image open, who comes next, and what that one is told. */
const MEETINGS: readonly (readonly [first: Mode, second: Mode, refused: typeof WRITER_REFUSED | null])[] = [
  ["write", "write", WRITER_REFUSED],
  ["read", "write", WRITER_REFUSED],
  ["write", "read", READER_REFUSED],
  ["read", "read", null],
];

function open(path: string, mode: Mode, share = false): DenoFileStorage {
  return DenoFileStorage.open(path, { readOnly: mode === "read", share });
}

for (const [first, second, refused] of MEETINGS) {
  const law = refused === null ? "lets in" : "refuses";

  Deno.test(`a disk opened to ${first} ${law} one who wants to ${second} it, in the same process`, async () => {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(512));
    const holder = open(path, first);
    if (refused === null) {
      open(path, second).close();
    } else {
      const message = `Could not open '${path}': ${refused.reason}`;
      const failure = await failureOf(() => open(path, second));
      assertEquals(failure, { kind: "locked", message, hint: refused.hint });
    }
    holder.close();
    open(path, second).close();
  });

  Deno.test(`a disk opened to ${first} ${law} one who wants to ${second} it, in another process`, async () => {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(512));
    await using child = new Child(["open", path, first]);
    assertEquals(await child.answer(), { kind: "open" });
    if (refused === null) {
      open(path, second).close();
    } else {
      const { kind, message } = await failureOf(() => open(path, second));
      assertEquals([kind, message], ["locked", `Could not open '${path}': ${refused.reason}`]);
    }
    await child.end();
    // The lock went with the process.
    open(path, second).close();
  });

  Deno.test(`a disk opened to ${first} lets in whoever shares, to ${second} it`, () => {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(512));
    const holder = open(path, first);
    open(path, second, true).close();
    holder.close();
  });
}

Deno.test("one who shares holds no lock against others", () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  const sharer = open(path, "write", true);
  open(path, "write").close();
  sharer.close();
});

Deno.test("a refused open leaves nothing open and nothing locked", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  const holder = open(path, "read");
  for (let i = 0; i < 3; i++) await failureOf(() => open(path, "write"));
  holder.close();
  open(path, "write").close();
});

Deno.test("two snapshots of one image live side by side, and keep a writer out", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new Uint8Array(512));
  const first = await openImage(path, { format: "raw", snapshot: true });
  const second = await openImage(path, { format: "raw", snapshot: true });
  assertEquals((await failureOf(() => openImage(path, { format: "raw" }))).kind, "locked");
  first.close();
  second.close();
  (await openImage(path, { format: "raw" })).close();
});

Deno.test("an image of a refused format is not left locked", async () => {
  using folder = new Folder();
  const path = folder.file("disk", new TextEncoder().encode("QFI\xfb".padEnd(512, "\0")));
  Deno.writeFileSync(path, Uint8Array.of(0x51, 0x46, 0x49, 0xfb));
  assertEquals((await failureOf(() => openImage(path))).kind, "unsupported");
  open(path, "write").close();
});
