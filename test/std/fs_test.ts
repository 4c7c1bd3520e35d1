import { assert, assertEquals, assertRejects } from "@std/assert";
import { ensureDir, type ExistsOptions, existsSync } from "@std/fs";
import { join } from "node:path";

Deno.test("existsSync() tells files from directories and from nothing", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = join(folder, "file");
    await Deno.writeTextFile(file, "");
    const cases: [path: string, options: ExistsOptions, result: boolean][] = [
      [file, {}, true],
      [file, { isFile: true }, true],
      [folder, {}, true],
      [folder, { isFile: true }, false],
      [join(folder, "missing"), {}, false],
    ];
    for (const [path, options, result] of cases) assertEquals(existsSync(path, options), result, path);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("ensureDir() makes what is missing and refuses a file", async () => {
  const folder = await Deno.makeTempDir();
  try {
    for (const path of [join(folder, "a", "b"), join(folder, "a", "b")]) await ensureDir(path);
    assert(existsSync(join(folder, "a", "b")));
    const file = join(folder, "file");
    await Deno.writeTextFile(file, "");
    await assertRejects(() => ensureDir(file), Error);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
