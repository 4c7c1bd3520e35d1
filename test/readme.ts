/**
 * The examples in README.md: what stands in a `console` block is run, and what it prints is compared. With
 * `--update` as an argument this program writes what was printed into the README.
 *
 * @module
 */

const README = new URL("../README.md", import.meta.url);
const ROOT = new URL("..", import.meta.url);

/** A command of a `console` block and what stands under it. */
export interface Example {
  readonly command: string;
  readonly expected: string;
}

/** A block: everything between its fences. */
const BLOCK = /^```console\n([\s\S]*?)^```$/gm;

/** The examples of a text, in order. */
export function examplesIn(markdown: string): Example[] {
  return [...markdown.matchAll(BLOCK)].flatMap(([, body]) => split(body));
}

function split(body: string): Example[] {
  // A command may go on over several lines that end with a backslash.
  return [...body.matchAll(/^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)/gm)]
    .map(([, command, expected]) => ({ command, expected }));
}

/** Runs a command in the repository's folder, in which `vblk` is this program; returns all it prints. */
export async function run(command: string): Promise<string> {
  const program = `${Deno.execPath()} run --allow-read --allow-write --no-prompt cli.ts`;
  const script = `vblk() { ${program} "$@"; }\n${command}`;
  const { stdout } = await new Deno.Command("bash", {
    args: ["-c", `{ ${script}\n} 2>&1`],
    cwd: ROOT,
    stdout: "piped",
    env: { NO_COLOR: "1" },
  }).output();
  return new TextDecoder().decode(stdout);
}

/** Puts N where times and rates stand, which differ from run to run, and takes the padding before them away. */
export function masked(output: string): string {
  return output
    .replace(/[\d.]+ sec \(.*\)/g, "N sec")
    .replace(/^ *\d+\.\d{3} ms/gm, "N ms")
    .replace(/after \d+ us/g, "after N us")
    .replace(
      /^(request .*|(?:read|write|flush|discard|getId)(?: +\S+){2} .*)$/gm,
      (line) => line.replace(/ +/g, " ").replace(/( \d+){4}$/, " N N N N"),
    );
}

if (import.meta.main) {
  let markdown = Deno.readTextFileSync(README);
  for (const { command, expected } of examplesIn(markdown)) {
    const printed = await run(command);
    if (masked(printed) === masked(expected)) continue;
    console.log(`$ ${command}\n${printed}`);
    if (Deno.args.includes("--update")) {
      markdown = markdown.replace(`$ ${command}\n${expected}`, () => `$ ${command}\n${printed}`);
    }
  }
  if (Deno.args.includes("--update")) Deno.writeTextFileSync(README, markdown);
}
