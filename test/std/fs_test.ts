import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { ensureDir, ensureDirSync, exists, type ExistsOptions, existsSync } from "@std/fs";
import { join } from "node:path";

Deno.test("exists() and existsSync() tell files from directories and from nothing", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = join(folder, "file");
    await Deno.writeTextFile(file, "");
    const cases: [path: string, options: ExistsOptions, result: boolean][] = [
      [file, {}, true],
      [file, { isFile: true }, true],
      [file, { isDirectory: true }, false],
      [folder, { isDirectory: true }, true],
      [folder, { isFile: true }, false],
      [join(folder, "missing"), {}, false],
    ];
    for (const [path, options, result] of cases) {
      assertEquals(existsSync(path, options), result, path);
      assertEquals(await exists(path, options), result, path);
    }
    assertThrows(() => existsSync(file, { isFile: true, isDirectory: true }), TypeError);
    await assertRejects(() => exists(file, { isFile: true, isDirectory: true }), TypeError);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("ensureDir() and ensureDirSync() make what is missing and refuse a file", async () => {
  const folder = await Deno.makeTempDir();
  try {
    for (const path of [join(folder, "a", "b"), join(folder, "a", "b")]) await ensureDir(path);
    ensureDirSync(join(folder, "a", "c"));
    assert(existsSync(join(folder, "a", "b"), { isDirectory: true }));
    assert(existsSync(join(folder, "a", "c"), { isDirectory: true }));
    const file = join(folder, "file");
    await Deno.writeTextFile(file, "");
    await assertRejects(() => ensureDir(file), Error);
    assertThrows(() => ensureDirSync(file), Error);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
