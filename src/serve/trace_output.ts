/**
 * The trace of a served device, on standard error: written by the thread itself, which then waits when nobody reads, so
 * that no memory is needed for what is not written yet.
 *
 * @module
 */

import type { TraceSink } from "../trace/events.ts";

/** What is shown: every stage of every request in one of two forms, or only the rules that a driver breaks. */
export type TraceForm = "text" | "json" | "explain";

/** What is collected before it is written, in characters. */
const MOST_COLLECTED = 1 << 16;

/** What threads that trace to one output have in common: it can be sent. */
export interface SharedTrace {
  /** When the trace began, in milliseconds since 1970. */
  readonly began: number;
  /** Who writes, and how many events there were. */
  readonly memory: SharedArrayBuffer;
}

const WRITING = 0;
const EVENTS = 1;

/** Makes it. */
export function sharedTrace(): SharedTrace {
  return { began: performance.timeOrigin + performance.now(), memory: new SharedArrayBuffer(8) };
}

/**
 * The sink for a form; loads what it needs.
 *
 * @param shared with other threads; lines of theirs are not mixed with those of this one, and one clock and one count go
 * for all
 */
export async function traceSink(
  form: TraceForm,
  write: (text: string) => void = writeToStderr,
  shared: SharedTrace | null = null,
): Promise<TraceSink> {
  const words = shared === null ? null : new Int32Array(shared.memory);
  const lines = collected(words === null ? write : (text) => alone(words, () => write(text)));
  const now = shared === null ? undefined : () => performance.timeOrigin + performance.now() - shared.began;
  const next = words === null ? undefined : () => Atomics.add(words, EVENTS, 1) >>> 0;
  if (form === "json") return (await import("../trace/json_sink.ts")).jsonSink(lines, now, next);
  if (form === "text") return (await import("../trace/text_sink.ts")).textSink(lines, now);
  return (await import("../trace/explain.ts")).explainSink(lines);
}

/** Does something that no other thread does meanwhile. Who waits for a reader that does not read, all wait for. */
function alone(words: Int32Array, action: () => void): void {
  while (Atomics.compareExchange(words, WRITING, 0, 1) !== 0) Atomics.wait(words, WRITING, 1);
  try {
    action();
  } finally {
    Atomics.store(words, WRITING, 0);
    Atomics.notify(words, WRITING, 1);
  }
}

/** Collects the lines of a turn, and writes them together. */
function collected(write: (text: string) => void): (lines: readonly string[]) => void {
  let text = "";
  const flush = () => {
    const all = text;
    text = "";
    if (all !== "") write(all);
  };
  return (lines) => {
    if (text === "") queueMicrotask(flush);
    for (const line of lines) text += `${visible(line)}\n`;
    if (text.length > MOST_COLLECTED) flush();
  };
}

/** What a line repeats of a file's name is no business of the terminal's. */
function visible(line: string): string {
  // deno-lint-ignore no-control-regex
  return line.replace(/[\x00-\x1f\x7f-\x9f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

function writeToStderr(text: string): void {
  const bytes = new TextEncoder().encode(text);
  try {
    for (let done = 0; done < bytes.byteLength;) done += Deno.stderr.writeSync(bytes.subarray(done));
  } catch {
    // Whoever reads has read enough; the guest still wants its disk.
  }
}
