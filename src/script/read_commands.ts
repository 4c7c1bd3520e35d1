/**
 * The commands that read the disk through the ring: `read` and `readv`.
 *
 * @module
 */

import { type Arguments, readArguments, readPattern, readSize } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, usageError } from "./command.ts";
import {
  IGNORED,
  patternFailure,
  rangeArguments,
  REPORT_HELP,
  shown,
  sum,
  timed,
  VECTOR_HELP,
  vectorArguments,
  vmState,
} from "./data_common.ts";
import { transferResult } from "./report.ts";
import { vectorOptions } from "./transfers.ts";

async function read(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  const args = readArguments<{ P: number; l: number; s: number }>(invocation, {
    P: readPattern,
    l: readSize,
    s: readSize,
  });
  const { offset, length } = rangeArguments(invocation, args);
  if (!args.has("P") && (args.has("l") || args.has("s"))) throw usageError(command);
  const { P: pattern, s: start = 0 } = args.values;
  const checked = args.values.l ?? length - start;
  if (checked < 0 || start + checked > length) {
    throw new CommandError("pattern verification range exceeds end of read data", { word: args.wordOf("s") });
  }
  if (args.has("b")) throw vmState(args, invocation, "read", offset, length);
  const { guest } = session.machine;
  return await timed("read", invocation, async (done) => {
    const data = await guest.read(offset, length);
    const seconds = done();
    const failure = pattern === undefined ? undefined : patternFailure(data, pattern, offset, start, checked);
    const dump = args.has("v") ? data : null;
    return transferResult({ verb: "read", offset, lengthBytes: length, seconds }, { ...shown(args), dump, failure });
  });
}

async function readv(invocation: Invocation): Promise<Result> {
  const args = readArguments<{ P: number }>(invocation, { P: readPattern });
  const { offset, lengths } = vectorArguments(invocation, args);
  return await timed("readv", invocation, (done) => readVector(invocation, args, offset, lengths, done));
}

/** Reads into a vector, and reports as the options say. */
export async function readVector(
  { session }: Invocation,
  args: Arguments<{ P: number }>,
  offset: number,
  lengths: readonly number[],
  done: () => number,
): Promise<Result> {
  const { guest } = session.machine;
  const lengthBytes = sum(lengths);
  const data = await guest.read(offset, lengthBytes, vectorOptions(guest, offset, lengths));
  const seconds = done();
  const { P: pattern } = args.values;
  const failure = pattern === undefined ? undefined : patternFailure(data, pattern, offset, 0, lengthBytes);
  const dump = args.has("v") ? data : null;
  return transferResult({ verb: "read", offset, lengthBytes, seconds }, { ...shown(args), dump, failure });
}

/** The commands of this file. */
export const READ_COMMANDS: readonly Command[] = [
  {
    name: "read",
    alias: "r",
    args: "[-bCqrv] [-P pattern [-s off] [-l len]] off len",
    summary: "reads from the disk",
    help: [
      "Example: read -v 512 1k      dumps 1 KiB from sector 1 on",
      "",
      "  -P  compare with this byte, and fail if one differs",
      "  -s  with -P: start comparing here, counted from off",
      "  -l  with -P: compare so many bytes",
      "  -v  dump what was read",
      ...REPORT_HELP,
      "  -b  the VM state instead of the disk: a raw image has none",
      `  -r  ${IGNORED}`,
      "  -p  accepted; does nothing",
    ],
    count: [2, Infinity],
    sends: true,
    letters: "bCl:pP:qrs:v",
    run: read,
  },
  {
    name: "readv",
    args: "[-Cqrv] [-P pattern] off len [len..]",
    summary: "reads from the disk into several buffers",
    help: [
      "Example: readv -v 0 512 1k   reads three sectors, in two elements of one request",
      "",
      ...VECTOR_HELP,
      "  -P  compare with this byte, and fail if one differs",
      "  -v  dump what was read",
      ...REPORT_HELP,
      `  -r  ${IGNORED}`,
    ],
    count: [2, Infinity],
    sends: true,
    letters: "CP:qrv",
    run: readv,
  },
];
