import { assert, assertEquals } from "@std/assert";
import { canPunchHoles, HolePuncher } from "../../src/host/fallocate.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";
import { forSeedsAsync } from "../random.ts";
import { missing, requires } from "../requires.ts";
import { Folder, randomBytes, readBytes, requiresMount, run, sameBytes, SmallDisk, writeBytes } from "./support.ts";

const KIB = 1024;
const MIB = 1 << 20;

const allocated = (path: string) => Deno.statSync(path).blocks! * 512;

/** Ignores a test where no foreign function may be called. */
const HOLES = missing(canPunchHoles() ? "" : "Linux with the permission for foreign functions");

for (const how of ["discard", "zero and unmap"] as const) {
  Deno.test({
    name: `${how} of a file gives its space back, and leaves what is around as it was`,
    ...HOLES,
    async fn() {
      using folder = new Folder();
      const path = folder.file("disk", new Uint8Array(4 * MIB).fill(7));
      const storage = DenoFileStorage.open(path);
      assert(storage.canUnmap);
      const [from, to] = [MIB + 100, 3 * MIB - 100];
      if (how === "discard") await storage.discard(from, to - from);
      else await storage.zero(from, to - from, true);
      const bytes = await readBytes(storage, 0, 4 * MIB);
      storage.close();
      assert(sameBytes(bytes, new Uint8Array(4 * MIB).fill(7).fill(0, from, to)));
      assert(allocated(path) < 2 * MIB + 64 * KIB, `${allocated(path)} bytes are taken`);
      assertEquals(Deno.statSync(path).size, 4 * MIB);
    },
  });
}

Deno.test({
  name: "zero of a file without unmap keeps its space, and takes space where there was none",
  ...HOLES,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(MIB).fill(7));
    const storage = DenoFileStorage.open(path);
    await storage.zero(512, 2 * MIB, false);
    const bytes = await readBytes(storage, 0, 2 * MIB + 512);
    assertEquals(storage.sizeBytes, 2 * MIB + 512);
    storage.close();
    assert(sameBytes(bytes, new Uint8Array(2 * MIB + 512).fill(7, 0, 512)));
    assert(allocated(path) >= 2 * MIB);
  },
});

Deno.test({
  name: "a portable file, and one that is read only, has no holes punched",
  ...HOLES,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(MIB).fill(7));
    for (const options of [{ portable: true }, { readOnly: true }]) {
      const storage = DenoFileStorage.open(path, options);
      assertEquals(storage.canUnmap, false);
      if (!options.readOnly) await storage.discard(0, MIB);
      storage.close();
    }
    assert(allocated(path) >= MIB);
  },
});

Deno.test({
  name: "with and without holes a file behaves the same",
  ...HOLES,
  fn: () =>
    forSeedsAsync(20, 1, async (random) => {
      using folder = new Folder();
      const start = randomBytes(random, 64 * KIB);
      const files = [true, false].map((portable) =>
        DenoFileStorage.open(folder.file(`disk-${portable}`, start), { portable })
      );
      for (let step = 0; step < 20; step++) {
        const size = files[0].sizeBytes;
        const offset = random.below(size);
        const length = random.below(24 * KIB);
        const data = randomBytes(random, length);
        const kind = random.below(5);
        for (const file of files) {
          if (kind === 0) await file.zero(offset, length, true);
          else if (kind === 1) await file.zero(offset, length, false);
          else if (kind === 2) await file.discard(offset, length);
          else if (kind === 3) await file.truncate(Math.max(512, size + (length % 8192) - 4096));
          else await writeBytes(file, offset, data);
        }
        const [a, b] = await Promise.all(files.map((file) => readBytes(file, 0, file.sizeBytes)));
        assert(sameBytes(a, b), `after step ${step}`);
      }
      for (const file of files) file.close();
    }),
});

Deno.test({
  name: "on a file system that can punch holes but not zero a range, zeros are written",
  ...(HOLES.ignore ? HOLES : requiresMount()),
  async fn() {
    // A tmpfs is such a one.
    using disk = new SmallDisk();
    const path = disk.folder.file("disk", new Uint8Array(16 * KIB).fill(7));
    const storage = DenoFileStorage.open(path);
    await storage.zero(0, 4 * KIB, false);
    await storage.discard(8 * KIB, 4 * KIB);
    const bytes = await readBytes(storage, 0, 16 * KIB);
    storage.close();
    const expected = new Uint8Array(16 * KIB).fill(7).fill(0, 0, 4 * KIB).fill(0, 8 * KIB, 12 * KIB);
    assert(sameBytes(bytes, expected));
    assertEquals(allocated(path), 12 * KIB);
  },
});

Deno.test({
  name: "a path that stands for another file by now is left alone",
  ...HOLES,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(64 * KIB).fill(7));
    const storage = DenoFileStorage.open(path);
    Deno.renameSync(path, folder.file("moved"));
    folder.file("disk", new Uint8Array(64 * KIB).fill(9));
    await storage.discard(0, 64 * KIB);
    assertEquals([...await readBytes(storage, 0, 1)], [0]);
    storage.close();
    assertEquals(Deno.readFileSync(path)[0], 9);
    assertEquals(HolePuncher.open(`${path}\0x`, Deno.statSync(path)), null);
  },
});

Deno.test({
  name: "without the permission for foreign functions nothing is loaded, and zeros are written",
  ...requires("deno"),
  fn() {
    using folder = new Folder();
    const path = folder.file("disk", new Uint8Array(8 * KIB).fill(7));
    const cli = new URL("../../cli.ts", import.meta.url).pathname;
    const attach = (...flags: string[]) =>
      run(
        Deno.execPath(),
        ...["run", "--no-prompt", "-RW", ...flags, cli, "attach", "-f", "raw", path],
        ...["-c", "discard -q 0 4k", "-c", "read -qP 0 0 4k", "-c", "read -qP 7 4k 4k"],
      );
    assertEquals(attach(), "");
    assertEquals(allocated(path), 8 * KIB);
    if (HOLES.ignore) return;
    assertEquals(attach("--allow-ffi"), "");
    assertEquals(allocated(path), 4 * KIB);
  },
});
