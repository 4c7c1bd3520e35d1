/**
 * The commands that change the disk through the ring: `write`, `writev`, `flush`, `discard`.
 *
 * @module
 */

import { type Arguments, MAX_BYTES, readArguments, readPattern, readText, sizeAt } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import {
  IGNORED,
  rangeArguments,
  REPORT_HELP,
  shown,
  sum,
  timed,
  tooLong,
  VECTOR_HELP,
  vectorArguments,
  vmState,
} from "./data_common.ts";
import { commandFailure } from "./failures.ts";
import { fillFromFile } from "./pattern_file.ts";
import { transferResult } from "./report.ts";
import { discard, vectorOptions, writeZeroes } from "./transfers.ts";

/** What a write is filled with when nothing else is said. */
export const DEFAULT_PATTERN = 0xcd;

async function write(invocation: Invocation): Promise<Result> {
  const { session, command, words } = invocation;
  const args = readArguments<{ P: number; s: string }>(invocation, { P: readPattern, s: readText });
  if (args.operands.length !== 2) throw usageError(command);
  for (const [wrong, message, letter] of writeConflicts(args)) {
    if (wrong) throw new CommandError(message, { word: args.wordOf(letter) });
  }
  const [offset, length] = args.operands.map((index) => sizeAt(invocation, index));
  if (length > MAX_BYTES && !args.has("n")) {
    throw tooLong(words[args.operands[1]].text, args.operands[1], " without -n");
  }
  if (args.has("b") || args.has("c")) throw vmState(args, invocation, "write", offset, length);
  if (args.has("z") && args.has("r")) {
    throw new CommandError("cannot combine zero write with registered I/O buffer", { word: args.wordOf("r") });
  }
  const data = args.has("z")
    ? null
    : args.values.s !== undefined
    ? fillFromFile(args.values.s, length, args.wordOf("s"))
    : new Uint8Array(length).fill(args.values.P ?? DEFAULT_PATTERN);
  const { guest } = session.machine;
  return await timed("write", invocation, async (done) => {
    if (data !== null) await guest.write(offset, data);
    else await writeZeroes(guest, offset, length, { unmap: args.has("u"), noFallback: args.has("n") });
    if (args.has("f")) await guest.flush();
    return transferResult({ verb: "wrote", offset, lengthBytes: length, seconds: done() }, shown(args));
  });
}

/** Flags that do not go together, in the order in which they are judged. */
function writeConflicts(args: Arguments<object>): [wrong: boolean, message: string, letter: string][] {
  const has = (letter: string) => args.has(letter);
  const sources = ["z", "P", "s"].filter(has).length;
  return [
    [has("b") && has("z"), "-b and -z cannot be specified at the same time", "b"],
    [has("f") && (has("b") || has("c")), "-f and -b or -c cannot be specified at the same time", "f"],
    [has("n") && !has("z"), "-n requires -z to be specified", "n"],
    [has("u") && !has("z"), "-u requires -z to be specified", "u"],
    [sources > 1, "Only one of -z, -P, and -s can be specified at the same time", "z"],
  ];
}

async function writev(invocation: Invocation): Promise<Result> {
  const args = readArguments<{ P: number }>(invocation, { P: readPattern });
  const { offset, lengths } = vectorArguments(invocation, args);
  const lengthBytes = sum(lengths);
  const { guest } = invocation.session.machine;
  return await timed("writev", invocation, async (done) => {
    const data = new Uint8Array(lengthBytes).fill(args.values.P ?? DEFAULT_PATTERN);
    await guest.write(offset, data, vectorOptions(guest, offset, lengths));
    if (args.has("f")) await guest.flush();
    return transferResult({ verb: "wrote", offset, lengthBytes, seconds: done() }, shown(args));
  });
}

async function flush({ session }: Invocation): Promise<Result> {
  try {
    await session.wait(session.machine.guest.flush());
    return SILENT;
  } catch (error) {
    const failure = commandFailure("flush", error, session);
    // qemu-io says nothing at all; a failed flush that nobody hears of is how data gets lost.
    throw new CommandError(failure.message, { stream: "stderr", hint: failure.hint });
  }
}

async function discardCommand(invocation: Invocation): Promise<Result> {
  const { session } = invocation;
  const args = readArguments(invocation);
  const { offset, length } = rangeArguments(invocation, args);
  return await timed("discard", invocation, async (done) => {
    await discard(session.machine.guest, offset, length);
    return transferResult({ verb: "discard", offset, lengthBytes: length, seconds: done() }, shown(args));
  });
}

const FUA_HELP = "  -f  flush afterwards: virtio-blk has no Force Unit Access, so a driver sends a FLUSH";
/** The commands of this file. */
export const WRITE_COMMANDS: readonly Command[] = [
  {
    name: "write",
    alias: "w",
    args: "[-bcCfnqruz] [-P pattern | -s source_file] off len",
    summary: "writes to the disk",
    help: [
      "Example: write -P 0xaa 4k 512    fills one sector with the byte 0xaa",
      "",
      "  -P  fill with this byte; otherwise with 0xcd",
      "  -s  fill with the contents of a file, over and over",
      "  -z  write zeros with a WRITE_ZEROES request; edges that are not whole sectors as data",
      "  -u  with -z: the space may be given back",
      "  -n  with -z: fail when the device has no WRITE_ZEROES, instead of writing zeros as data",
      FUA_HELP,
      ...REPORT_HELP,
      "  -b, -c  the VM state, compressed data: a raw image has neither",
      `  -r  ${IGNORED}`,
      "  -p  accepted; does nothing",
    ],
    count: [2, Infinity],
    writes: true,
    sends: true,
    letters: "bcCfnpP:qrs:uz",
    run: write,
  },
  {
    name: "writev",
    args: "[-Cfqr] [-P pattern] off len [len..]",
    summary: "writes to the disk from several buffers",
    help: [
      "Example: writev 0 512 1k     writes three sectors, in two elements of one request",
      "",
      ...VECTOR_HELP,
      "  -P  fill with this byte; otherwise with 0xcd",
      FUA_HELP,
      ...REPORT_HELP,
      `  -r  ${IGNORED}`,
    ],
    count: [2, Infinity],
    writes: true,
    sends: true,
    letters: "CfP:qr",
    run: writev,
  },
  {
    name: "flush",
    alias: "f",
    summary: "sends a FLUSH: everything written before is on stable storage when it ends",
    sends: true,
    run: flush,
  },
  {
    name: "discard",
    alias: "d",
    args: "[-Cq] off len",
    summary: "says that a range is not needed any more",
    help: [
      "Example: discard 1M 64k",
      "",
      "Sends the whole sectors of the range in a DISCARD request; edges stay as they are.",
      "",
      ...REPORT_HELP,
    ],
    count: [2, Infinity],
    writes: true,
    sends: true,
    letters: "Cq",
    run: discardCommand,
  },
];
