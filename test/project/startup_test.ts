/**
 * Scripts start the program thousands of times: what a command does not need is not loaded.
 */

import { assert, assertEquals } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);

interface Info {
  modules: {
    specifier: string;
    dependencies?: { specifier: string; code?: { specifier?: string }; isDynamic?: boolean }[];
  }[];
}

/** The modules that are loaded with `entry`, without what is imported only when it is needed. */
async function loadedWith(entry: string): Promise<string[]> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", new URL(entry, ROOT).href],
    stdout: "piped",
  }).output();
  return staticClosure(JSON.parse(new TextDecoder().decode(stdout)) as Info, new URL(entry, ROOT).href);
}

function staticClosure({ modules }: Info, entry: string): string[] {
  const byName = new Map(modules.map((module) => [module.specifier, module]));
  const found = new Set([entry]);
  for (const name of found) {
    for (const { code, isDynamic } of byName.get(name)?.dependencies ?? []) {
      if (code?.specifier !== undefined && !isDynamic) found.add(code.specifier);
    }
  }
  return [...found];
}

for (const entry of ["cli.ts", "src/cli/attach.ts", "src/mod.ts"]) {
  Deno.test(`${entry} loads none of Node's modules, each of which costs milliseconds, before they are needed`, async () => {
    const loaded = await loadedWith(entry);
    assert(loaded.length > 3, `${loaded.length} modules`);
    // The library's face names everything, qcow2 and its decompressors too.
    const allowed = entry === "src/mod.ts" ? ["node:zlib"] : [];
    assertEquals(loaded.filter((name) => name.startsWith("node:") && !allowed.includes(name)), []);
  });
}

Deno.test("--help and --version load a handful of modules", async () => {
  assert((await loadedWith("cli.ts")).length <= 8);
});

Deno.test("canary: a static import of a Node module is seen, a dynamic one is not", () => {
  const info: Info = {
    modules: [{
      specifier: "a",
      dependencies: [
        { specifier: "b", code: { specifier: "b" } },
        { specifier: "node:zlib", code: { specifier: "node:zlib" }, isDynamic: true },
      ],
    }, { specifier: "b", dependencies: [{ specifier: "node:path", code: { specifier: "node:path" } }] }],
  };
  assertEquals(staticClosure(info, "a"), ["a", "b", "node:path"]);
});
