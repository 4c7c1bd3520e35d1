/**
 * How far long work has come. With `-p` as qemu-img prints it, to standard output, whatever that is. Without, a bar
 * on standard error when that is a terminal and the work takes longer than a moment; it is gone at the end.
 *
 * @module
 */

import type { ImageArguments } from "./image_command.ts";

/** Where the text goes. */
export interface ProgressStreams {
  /** Standard output. */
  out(text: string): void;
  /** Standard error. */
  err(text: string): void;
  /** Whether standard error is a terminal. */
  readonly isTerminal: boolean;
  /** Milliseconds since some time in the past. */
  now(): number;
}

/** Choices for a progress display. */
export interface ProgressOptions {
  /** `percent`: qemu-img's `-p`. `none`: `-q`. `bar`: neither was given. */
  readonly mode: "percent" | "bar" | "none";
  /** `percent`: how many of the hundred pass before it is printed again. As in qemu-img, each command has its own. */
  readonly step: number;
}

const BAR_AFTER_MS = 500;
const BAR_EACH_MS = 100;
const BAR_WIDTH = 40;

/** Shows how far the work has come. */
export class Progress {
  readonly #streams: ProgressStreams;
  readonly #options: ProgressOptions;
  readonly #startedAt: number;
  #printed = 0;
  #current = 0;
  #drawnAt = 0;
  #drawn = false;

  constructor(options: ProgressOptions, streams: ProgressStreams = CONSOLE) {
    this.#options = options;
    this.#streams = streams;
    this.#startedAt = options.mode === "bar" ? streams.now() : 0;
  }

  /** Says that `percent` of the work is done. */
  set(percent: number): void {
    const { mode, step } = this.#options;
    if (mode === "none") return;
    const current = Math.min(100, percent);
    this.#current = current;
    if (mode === "bar") return this.#draw();
    if (Math.abs(current - this.#printed) <= step && current !== 100 && current !== 0) return;
    this.#printed = current;
    this.#streams.out(`    (${current.toFixed(2)}/100%)\r`);
  }

  /** Says that `percent` more of the work is done. */
  add(percent: number): void {
    this.set(this.#current + percent);
  }

  /** Ends the display. */
  end(): void {
    if (this.#options.mode === "percent") this.#streams.out("\n");
    this.clear();
  }

  /** Takes the bar away, before something else is printed. */
  clear(): void {
    // Back to the start of the line, and clear to its end.
    if (this.#drawn) this.#streams.err("\r\x1b[K");
    this.#drawn = false;
  }

  #draw(): void {
    const { isTerminal } = this.#streams;
    if (!isTerminal) return;
    const now = this.#streams.now();
    if (now - this.#startedAt < BAR_AFTER_MS || (this.#drawn && now - this.#drawnAt < BAR_EACH_MS)) return;
    this.#drawn = true;
    this.#drawnAt = now;
    const full = Math.floor(this.#current / 100 * BAR_WIDTH);
    const percent = `${Math.floor(this.#current)}`.padStart(3);
    this.#streams.err(`\r[${"#".repeat(full)}${" ".repeat(BAR_WIDTH - full)}] ${percent} %`);
  }
}

const ENCODER = new TextEncoder();

function writeAll(stream: typeof Deno.stdout, text: string): void {
  const bytes = ENCODER.encode(text);
  try {
    for (let done = 0; done < bytes.byteLength;) done += stream.writeSync(bytes.subarray(done));
  } catch (error) {
    // Whoever reads has read enough; the work goes on.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

const CONSOLE: ProgressStreams = {
  out: (text) => writeAll(Deno.stdout, text),
  err: (text) => writeAll(Deno.stderr, text),
  get isTerminal() {
    return Deno.stderr.isTerminal();
  },
  now: () => performance.now(),
};

/** How far a command has come, as its `-q` and `-p` want it shown; `step` as in {@linkcode ProgressOptions}. */
export function progressFor(given: ImageArguments, step: number): Progress {
  return new Progress({ mode: given.has("q") ? "none" : given.has("p") ? "percent" : "bar", step });
}
