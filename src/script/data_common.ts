/**
 * What the commands that move data have in common.
 *
 * @module
 */

import { SECTOR_SIZE } from "../blk/blk_layout.ts";
import { type Arguments, lengthsAt, MAX_BYTES, sizeAt } from "./arguments.ts";
import { CommandError, type Invocation, type Result, usageError } from "./command.ts";
import { commandFailure } from "./failures.ts";

/** Runs `action`, which calls `done` for the seconds that have gone by, and gives failures their words. */
export async function timed(
  verb: string,
  { session }: Invocation,
  action: (done: () => number) => Promise<Result>,
): Promise<Result> {
  const start = performance.now();
  try {
    return await session.wait(action(() => (performance.now() - start) / 1000));
  } catch (error) {
    throw commandFailure(verb, error, session);
  }
}

/** Offset and length of a command on one range, no longer than one command moves. */
export function rangeArguments(
  invocation: Invocation,
  { operands }: Arguments<object>,
): { offset: number; length: number } {
  if (operands.length !== 2) throw usageError(invocation.command);
  const [offset, length] = operands.map((index) => sizeAt(invocation, index));
  if (length > MAX_BYTES) throw tooLong(invocation.words[operands[1]].text, operands[1]);
  return { offset, length };
}

/** Offset and lengths of a vector command. */
export function vectorArguments(
  invocation: Invocation,
  { operands }: Arguments<object>,
): { offset: number; lengths: number[] } {
  if (operands.length < 2) throw usageError(invocation.command);
  return { offset: sizeAt(invocation, operands[0]), lengths: lengthsAt(invocation, operands.slice(1)) };
}

/** Says where data differs from a pattern, as far as qemu-io does; `undefined` when it does not. */
export function patternFailure(
  data: Uint8Array,
  pattern: number,
  offset: number,
  start: number,
  lengthBytes: number,
): string | undefined {
  for (let i = start; i < start + lengthBytes; i++) {
    if (data[i] === pattern) continue;
    return `Pattern verification failed at offset ${offset + start}, ${lengthBytes} bytes`;
  }
}

/** How the flags -q and -C want a result shown. */
export function shown(args: Arguments<object>): { quiet: boolean; commas: boolean } {
  return { quiet: args.has("q"), commas: args.has("C") };
}

/** The failure of a length that is more than one command moves. */
export function tooLong(text: string, word: number, without = ""): CommandError {
  return new CommandError(`length cannot exceed ${MAX_BYTES}${without}, given ${text}`, { word });
}

/** The VM state and compressed writes: a raw image has neither, and says so after the same checks as in qemu-io. */
export function vmState(
  args: Arguments<object>,
  { words }: Invocation,
  verb: "read" | "write",
  offset: number,
  length: number,
): CommandError {
  const named = [["offset", offset, args.operands[0]], ["count", length, args.operands[1]]] as const;
  for (const [name, value, word] of named) {
    if (value % SECTOR_SIZE === 0) continue;
    return new CommandError(`${value} is not a sector-aligned value for '${name}'`, { word });
  }
  if (verb === "read" && args.has("r")) {
    return new CommandError("I/O buffer registration is not supported when reading from vmstate", {
      word: args.wordOf("r"),
    });
  }
  return new CommandError(`${verb} failed: Operation not supported`, {
    word: args.wordOf(args.has("b") ? "b" : "c"),
    hint: `a raw image has no ${args.has("b") ? "VM state" : "compressed clusters"} ('help ${words[0].text}')`,
  });
}

/** The sum of lengths. */
export function sum(lengths: readonly number[]): number {
  return lengths.reduce((total, length) => total + length, 0);
}

/** Help for the flags that say how to report. */
export const REPORT_HELP = [
  "  -C  report with commas: bytes,ops,time,bytes/sec,ops/sec",
  "  -q  report nothing",
];
/** Help for vectors. */
export const VECTOR_HELP = [
  "Each length is an element of its own in the chain, as long as the device allows that many.",
  "",
];
/** Help for -r. */
export const IGNORED = "accepted; there are no registered buffers here";
