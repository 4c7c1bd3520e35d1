/**
 * The commands that do not wait: `aio_read`, `aio_write`, and `aio_flush`, which waits for them all. Each prints its
 * report when it has ended; as in qemu-io, a command that was sent has succeeded, whatever becomes of it.
 *
 * @module
 */

import { readArguments, readPattern, sizeAt } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import { shown, sum, vectorArguments } from "./data_common.ts";
import { failureText } from "./failures.ts";
import { readVector } from "./read_commands.ts";
import { jsonLine, transferResult } from "./report.ts";
import { vectorOptions, writeZeroes } from "./transfers.ts";
import { DEFAULT_PATTERN } from "./write_commands.ts";

async function aioRead(invocation: Invocation): Promise<Result> {
  const args = readArguments<{ P: number }>(invocation, { P: readPattern });
  if (args.has("i")) return injected("read");
  const { offset, lengths } = vectorArguments(invocation, args);
  return await send(invocation, "readv", sum(lengths), (done) => {
    return readVector(invocation, args, offset, lengths, done);
  });
}

async function aioWrite(invocation: Invocation): Promise<Result> {
  const args = readArguments<{ P: number }>(invocation, { P: readPattern });
  if (args.has("i")) return injected("write");
  const zeros = args.has("z");
  if (args.operands.length < 2) throw usageError(invocation.command);
  const conflicts: [wrong: boolean, message: string, letter: string][] = [
    [zeros && args.operands.length !== 2, "-z supports only a single length parameter", "z"],
    [args.has("u") && !zeros, "-u requires -z to be specified", "u"],
    [zeros && args.has("P"), "-z and -P cannot be specified at the same time", "z"],
    [zeros && args.has("r"), "cannot combine zero write with registered I/O buffer", "r"],
  ];
  for (const [wrong, message, letter] of conflicts) {
    if (wrong) throw new CommandError(message, { word: args.wordOf(letter) });
  }
  const { offset, lengths } = zeros
    ? { offset: sizeAt(invocation, args.operands[0]), lengths: [sizeAt(invocation, args.operands[1])] }
    : vectorArguments(invocation, args);
  const { guest } = invocation.session.machine;
  const lengthBytes = sum(lengths);
  return await send(invocation, "aio_write", lengthBytes, async (done) => {
    if (zeros) await writeZeroes(guest, offset, lengthBytes, { unmap: args.has("u"), noFallback: false });
    else {
      const data = new Uint8Array(lengthBytes).fill(args.values.P ?? DEFAULT_PATTERN);
      await guest.write(offset, data, vectorOptions(guest, offset, lengths));
    }
    if (args.has("f")) await guest.flush();
    return transferResult({ verb: "wrote", offset, lengthBytes, seconds: done() }, shown(args));
  });
}

async function aioFlush({ session }: Invocation): Promise<Result> {
  await session.drain();
  return SILENT;
}

/** -i has qemu-io count a request that it does not send; there is nothing to count here. */
function injected(kind: "read" | "write"): Result {
  return { text: [`injecting invalid ${kind} request`], json: { injected: kind } };
}

/** Lets `action` run, and prints its result, or why there is none, when it ends. */
async function send(
  { session, words }: Invocation,
  verb: string,
  lengthBytes: number,
  action: (done: () => number) => Promise<Result>,
): Promise<Result> {
  const start = performance.now();
  const name = words[0].text;
  const finish = async () => {
    try {
      const { text, json, failure } = await action(() => (performance.now() - start) / 1000);
      const error = failure === undefined ? {} : { error: failure };
      session.output.out(session.json ? [jsonLine(name, json, error)] : text);
    } catch (error) {
      const text = failureText(error);
      if (text === null) throw error;
      const line = `${verb} failed: ${text}`;
      session.output.out([session.json ? jsonLine(name, { error: line }) : line]);
    }
  };
  await session.background(lengthBytes, finish);
  return { ...SILENT, json: { submitted: true } };
}

const AIO_HELP = [
  "The command has succeeded when the request was sent; the report comes when it has ended. `aio_flush` waits.",
  "",
];

/** The commands of this file. */
export const AIO_COMMANDS: readonly Command[] = [
  {
    name: "aio_read",
    args: "[-Ciqrv] [-P pattern] off len [len..]",
    summary: "reads from the disk without waiting",
    help: [
      ...AIO_HELP,
      "  -P  compare with this byte, and say if one differs",
      "  -v  dump what was read",
      "  -C, -q, -r  as for readv",
      "  -i  send nothing, and say so",
    ],
    count: [2, Infinity],
    sends: true,
    goesOn: true,
    letters: "CiP:qrv",
    run: aioRead,
  },
  {
    name: "aio_write",
    args: "[-Cfiqruz] [-P pattern] off len [len..]",
    summary: "writes to the disk without waiting",
    help: [...AIO_HELP, "  -P, -C, -f, -q, -r, -u, -z  as for write", "  -i  send nothing, and say so"],
    count: [2, Infinity],
    writes: true,
    sends: true,
    goesOn: true,
    letters: "CfiP:qruz",
    run: aioWrite,
  },
  {
    name: "aio_flush",
    summary: "waits until all requests that were sent without waiting have ended",
    run: aioFlush,
  },
];
