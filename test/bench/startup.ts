/**
 * From the start of the process to the end of the first read, beside qemu-io.
 *
 * @module
 */

import { alternate, median, printTable, ratio } from "./table.ts";

const ROUNDS = 15;

async function timeOf(command: string, args: readonly string[]): Promise<number> {
  const started = performance.now();
  const { success, stderr } = await new Deno.Command(command, { args: [...args], stdout: "null", stderr: "piped" })
    .output();
  const elapsed = performance.now() - started;
  if (!success) throw new Error(`${command}: ${new TextDecoder().decode(stderr)}`);
  return elapsed;
}

async function exists(command: string, args: readonly string[]): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args: [...args], stdout: "null", stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

/** Runs the start-up benchmark and prints its table. */
export async function benchStartup(): Promise<void> {
  if (!await exists("qemu-io", ["--version"])) {
    console.log("\nStart-up: skipped, since qemu-io is not here (package qemu-utils)");
    return;
  }
  const image = await Deno.makeTempFile({ prefix: "vblk-bench-" });
  try {
    await Deno.truncate(image, 1 << 20);
    const cli = new URL("../../cli.ts", import.meta.url).pathname;
    const arguments_ = ["attach", image, "-f", "raw", "-c", "read 0 4k"];
    const subjects: [name: string, command: string, args: string[]][] = [
      ["deno run cli.ts", Deno.execPath(), ["run", "--allow-read", "--allow-write", "--no-prompt", cli, ...arguments_]],
      ["deno eval '' (the runtime alone)", Deno.execPath(), ["eval", ""]],
    ];
    const binary = new URL("../../dist/vblk", import.meta.url).pathname;
    if (await exists(binary, ["--version"])) subjects.push(["dist/vblk", binary, arguments_]);
    const rows = [["process start to end of 'read 0 4k'", "ms", "qemu-io ms", "ratio (range)"]];
    for (const [name, command, args] of subjects) {
      const pair = await alternate(
        ROUNDS,
        () => timeOf(command, args),
        () => timeOf("qemu-io", ["-f", "raw", "-c", "read 0 4k", image]),
      );
      const { median: middle, low, high } = ratio(pair);
      const range = `${middle.toFixed(1)} (${low.toFixed(1)}-${high.toFixed(1)})`;
      rows.push([name, median(pair.subject).toFixed(0), median(pair.peer).toFixed(0), range]);
    }
    printTable("Start-up", rows);
  } finally {
    await Deno.remove(image);
  }
}
