/**
 * Events as JSON, one object a line, for programs.
 *
 * Every object has:
 *
 * - `time`: milliseconds since the trace began
 * - `sequence`: counts the events from 0
 * - `event`: which kind it is; the other fields are those of `TraceEvent` for that kind
 *
 * A number that JSON can't carry (a guest-physical address of 2^53 or more) is `null`.
 *
 * @module
 */

import type { TraceEvent, TraceSink } from "./events.ts";

/** An object of the trace. */
export type TraceRecord = { readonly time: number; readonly sequence: number } & TraceEvent;

/** A sink that writes each event as a line of JSON. */
export function jsonSink(
  write: (lines: readonly string[]) => void,
  now: () => number = clock(),
  next: () => number = counter(),
): TraceSink {
  return (event) => {
    const record: TraceRecord = { time: Number(now().toFixed(3)), sequence: next(), ...event };
    write([JSON.stringify(record)]);
  };
}

/** 0, and one more each time. */
function counter(): () => number {
  let count = 0;
  return () => count++;
}

/** Milliseconds since now. */
export function clock(): () => number {
  const start = performance.now();
  return () => performance.now() - start;
}
