/**
 * Standard output and standard error, line by line.
 *
 * @module
 */

import type { Output } from "../script/session.ts";

const RED = 31;
const CYAN = 36;

/** What is coloured on a terminal: lines by how they begin. */
const COLOURS: readonly (readonly [pattern: RegExp, colour: number])[] = [
  [/^vblk: (?!note)/, RED],
  [/^\s*(?:[\d.]+ ms)?\s*! /, RED],
  [/^hint: /, CYAN],
];

/** A dump may have millions of lines, which are made as they are written. */
const LINES_AT_ONCE = 1024;

/** Writes at once, so that the two streams keep their order. */
export class CommandOutput implements Output {
  readonly #encoder = new TextEncoder();

  out(lines: Iterable<string>): void {
    let some: string[] = [];
    for (const line of lines) {
      if (some.push(line) < LINES_AT_ONCE) continue;
      this.#write(Deno.stdout, some);
      some = [];
    }
    this.#write(Deno.stdout, some);
  }

  err(lines: readonly string[]): void {
    if (lines.length === 0) return;
    // Not asked of the environment: that would need a permission.
    const colour = !Deno.noColor && Deno.stderr.isTerminal();
    const shown = lines.map(visible);
    this.#write(Deno.stderr, colour ? shown.map(coloured) : shown);
  }

  #write(stream: typeof Deno.stdout, lines: readonly string[]): void {
    if (lines.length === 0) return;
    const bytes = this.#encoder.encode(`${lines.join("\n")}\n`);
    try {
      for (let done = 0; done < bytes.byteLength;) done += stream.writeSync(bytes.subarray(done));
    } catch (error) {
      // Whoever reads has read enough; the commands still have to be run, and the image closed.
      if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
    }
  }
}

/** A message repeats what a file or a command line holds, which is no business of the terminal's. */
function visible(line: string): string {
  // deno-lint-ignore no-control-regex
  return line.replace(/[\x00-\x1f\x7f-\x9f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

function coloured(line: string): string {
  const colour = COLOURS.find(([pattern]) => pattern.test(line))?.[1];
  return colour === undefined ? line : `\x1b[${colour}m${line}\x1b[0m`;
}
