/**
 * README.md tells the truth.
 */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { examplesIn, masked, run } from "./readme.ts";

const markdown = Deno.readTextFileSync(new URL("../README.md", import.meta.url));
const examples = examplesIn(markdown);

Deno.test("README.md has examples that are run", () => {
  assert(examples.length >= 8, `${examples.length} examples`);
});

for (const [i, { command, expected }] of examples.entries()) {
  Deno.test(`README.md example ${i + 1} prints what it says: ${command.split("\n")[0]}`, async () => {
    assertEquals(masked(await run(command)), masked(expected));
  });
}

Deno.test("README.md examples are compared, and only times and rates are left out", () => {
  assertEquals(masked("4 KiB, 1 ops; 00.00 sec (1.2 GiB/sec and 3.4 ops/sec)\n"), "4 KiB, 1 ops; N sec\n");
  assertNotEquals(masked("read 4096/4096 bytes at offset 0\n"), masked("read 4096/4096 bytes at offset 1\n"));
});

Deno.test("README.md links lead somewhere", async () => {
  const links = [...markdown.matchAll(/\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g)].map(([, path]) => path);
  assert(links.length > 5, "README.md has links");
  for (const link of links) {
    assert((await Deno.stat(new URL(`../${link}`, import.meta.url))) !== null, link);
  }
});

Deno.test("README.md promises name tests that exist", async () => {
  // A row of the table of promises: | promise | [`name_test.ts`](path) |
  const tests = [...markdown.matchAll(/^\| [^|]+ \| \[`[^`]+_test\.ts`\]\(([^)]+)\) *\|$/gm)].map(([, path]) => path);
  assert(tests.length >= 10, `${tests.length} promises with tests`);
  for (const path of tests) {
    const text = await Deno.readTextFile(new URL(`../${path}`, import.meta.url));
    assert(text.includes("Deno.test"), `${path} has tests`);
  }
});
