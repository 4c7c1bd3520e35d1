/**
 * Golden runs: every script in this folder prints exactly what stands beside it in the file with the ending `.out`.
 * A first line `# vblk attach ...` gives the arguments; lines of standard error are marked with `2> `; times are
 * masked. `VBLK_UPDATE_GOLDEN=1` writes the files anew: look at the difference before you commit it.
 */

import { assert, assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { subcommand } from "../../src/cli/attach.ts";
import { Capture } from "../script/capture.ts";

const FOLDER = new URL("./", import.meta.url);
const scripts = [...Deno.readDirSync(FOLDER)].map(({ name }) => name).filter((name) => name.endsWith(".vblk")).sort();

Deno.test("there are golden runs", () => assert(scripts.length > 5));

for (const name of scripts) {
  Deno.test(`${name} prints what it printed before`, async () => {
    const script = new URL(name, FOLDER);
    const golden = new URL(name.replace(/\.vblk$/, ".out"), FOLDER);
    const text = await Deno.readTextFile(script);
    const args = /^# vblk attach (.*)\n/.exec(text)?.[1].split(" ") ?? ["mem:1M"];
    const capture = new Capture();
    const code = await subcommand.run([...args, "--script", fileURLToPath(script)], capture);
    const lines = capture.take().map((line) => line.replaceAll(fileURLToPath(script), name));
    const printed = [...lines, `exit code ${code}`, ""].join("\n");
    if (Deno.env.get("VBLK_UPDATE_GOLDEN") === "1") await Deno.writeTextFile(golden, printed);
    assertEquals(printed.split("\n"), (await Deno.readTextFile(golden)).split("\n"));
  });
}
