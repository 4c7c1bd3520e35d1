/**
 * `chain`: sends a chain made by hand, possibly a broken one, and shows what came back.
 *
 * @module
 */

import { statusName } from "../blk/blk_layout.ts";
import type { ChainResult, Guest } from "../guest/guest.ts";
import type { RawDescriptor } from "../guest/driver_queue.ts";
import type { TraceEvent } from "../trace/events.ts";
import { explainLines, type ViolationEvent } from "../trace/explain.ts";
import { VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../virtio/virtqueue/split_layout.ts";
import { readArguments } from "./arguments.ts";
import { type ChainElement, HEADERS, parseElement } from "./chain_syntax.ts";
import { type Command, CommandError, type Invocation, type Result, usageError } from "./command.ts";
import { dumpLines } from "./report.ts";
import { readQueue } from "./ring_commands.ts";
import { type Session, turn } from "./session.ts";

/** Bytes of device-writable data that are shown without -v. */
const SHOWN_BYTES = 16;

interface Placed {
  readonly elements: readonly ChainElement[];
  /** Guest-physical address of each element's memory. */
  readonly addresses: readonly number[];
  readonly descriptors: readonly RawDescriptor[];
  readonly statusAddress: number | undefined;
}

async function chain(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  const args = readArguments<{ q: number }>(invocation, { q: (text, word) => readQueue(invocation, text, word) });
  if (args.operands.length === 0) throw usageError(command);
  const elements = parseElements(invocation, args.operands);
  const { guest } = session.machine;
  const queue = args.values.q ?? 0;
  const indirect = args.has("i");
  const slots = indirect ? 1 : elements.length;
  const { freeCount } = guest.driver.queues[queue];
  if (slots > freeCount) {
    throw new CommandError(`a chain of ${slots} descriptors does not fit: ${freeCount} are free in queue ${queue}`, {
      hint: "-i puts the descriptors into an indirect table",
    });
  }
  const placed = place(guest, elements);
  const violations: ViolationEvent[] = [];
  const unwatch = session.watch((event: TraceEvent) => {
    if (event.event === "violation") violations.push(event);
  });
  const { statusAddress, descriptors } = placed;
  const sent = guest.chain(descriptors, { queue, indirect, statusAddress });
  const result = await settled(session, sent);
  unwatch();
  const data = writableData(guest, placed);
  // Memory that the device may still write to is not given back.
  if (result !== null && result.bytesWritten !== null) placed.addresses.forEach((address) => guest.release(address));
  const outcome = { queue, result, data, violations, count: elements.length, verbose: args.has("v") };
  return show(outcome, guest.driver.needsReset, session.explains);
}

/** A chain's buffers are made before any is placed; more than this no guest has by default. */
const MAX_CHAIN_BYTES = 64 << 20;

function parseElements({ words }: Invocation, operands: readonly number[]): ChainElement[] {
  let total = 0;
  return operands.flatMap((word) => {
    const elements = parseElement(words[word].text, word);
    for (const { lengthBytes } of elements) total += lengthBytes;
    if (total > MAX_CHAIN_BYTES) throw new CommandError("a chain has at most 64 MiB; ,len= can claim more", { word });
    return elements;
  });
}

/** Gives each element memory, and makes its descriptor. */
function place(guest: Guest, elements: readonly ChainElement[]): Placed {
  const addresses: number[] = [];
  try {
    for (const { bytes, lengthBytes } of elements) {
      const address = guest.allocate(Math.max(1, lengthBytes));
      addresses.push(address);
      const memory = guest.memory(address, lengthBytes);
      if (bytes === null) memory.fill(0);
      else memory.set(bytes);
    }
  } catch (error) {
    addresses.forEach((address) => guest.release(address));
    throw error;
  }
  const descriptors = elements.map(({ bytes, lengthBytes, override }, i): RawDescriptor => ({
    address: override.address ?? BigInt(addresses[i]),
    length: override.length ?? lengthBytes,
    flags: override.flags ??
      ((bytes === null ? VIRTQ_DESC_F_WRITE : 0) | (i + 1 < elements.length ? VIRTQ_DESC_F_NEXT : 0)),
    next: override.next,
  }));
  const status = elements.findLastIndex((element) => element.isStatus);
  return { elements, addresses, descriptors, statusAddress: status < 0 ? undefined : addresses[status] };
}

/**
 * Waits for a chain.
 *
 * @returns `null` when the device has nothing in flight any more and the chain is not back
 */
async function settled(session: Session, sent: Promise<ChainResult>): Promise<ChainResult | null> {
  let result: ChainResult | null = null;
  sent.then((value) => result = value);
  const { device, guest } = session.machine;
  for (let idle = 0; result === null && idle < 3;) {
    await turn();
    if (!session.interrupts) guest.driver.poll();
    // Looked at more than once: a completion may still be on its way through the event loop.
    idle = device.inFlightCount === 0 ? idle + 1 : 0;
  }
  return result;
}

interface WritableData {
  readonly label: string;
  readonly bytes: Uint8Array;
}

function writableData(guest: Guest, { elements, addresses }: Placed): WritableData[] {
  return elements.flatMap(({ label, bytes, lengthBytes, isStatus }, i) =>
    bytes === null && !isStatus ? [{ label, bytes: guest.memory(addresses[i], lengthBytes).slice() }] : []
  );
}

interface Outcome {
  readonly queue: number;
  readonly count: number;
  readonly result: ChainResult | null;
  readonly data: readonly WritableData[];
  readonly violations: readonly ViolationEvent[];
  readonly verbose: boolean;
}

function show(outcome: Outcome, needsReset: boolean, explained: boolean): Result {
  const { queue, result, violations, data } = outcome;
  const back = result !== null && result.bytesWritten !== null;
  const status = result?.status ?? null;
  return {
    text: outcomeLines(outcome, needsReset, explained),
    json: {
      queue,
      returned: back,
      status: status === null ? null : statusName(status),
      usedLength: result?.bytesWritten ?? null,
      needsReset,
      data: back ? data.map(({ label, bytes }) => ({ element: label, bytes })) : [],
      violations: violations.map(({ violation, consequence }) => ({ ...violation, consequence })),
    },
  };
}

function* outcomeLines(
  { queue, count, result, data, violations, verbose }: Outcome,
  needsReset: boolean,
  explained: boolean,
): Iterable<string> {
  yield `chain of ${count} ${count === 1 ? "descriptor" : "descriptors"} on queue ${queue}`;
  if (result !== null && result.bytesWritten !== null) {
    const { status, bytesWritten } = result;
    yield `  status       ${status === null ? "none was written" : `${statusName(status)} (${status})`}`;
    yield `  used length  ${bytesWritten}`;
    for (const { label, bytes } of data) {
      if (!verbose) yield `  ${label.padEnd(11)}  ${preview(bytes)}`;
      else {
        yield `  ${label}`;
        yield* dumpLines(bytes, 0);
      }
    }
  } else {
    yield `  never came back${needsReset ? ": the device needs a reset" : ""}`;
  }
  for (const violation of violations) {
    const lines = explainLines(violation);
    for (const line of explained ? lines.slice(0, 1) : lines) yield `  ${line}`;
  }
}

function preview(bytes: Uint8Array): string {
  const shown = [...bytes.subarray(0, SHOWN_BYTES)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  const more = bytes.byteLength - SHOWN_BYTES;
  return more > 0 ? `${shown} and ${more} more` : shown;
}

/** The commands of this file. */
export const CHAIN_COMMANDS: readonly Command[] = [{
  name: "chain",
  args: "[-iv] [-q queue] element...",
  summary: "sends a chain of descriptors made by hand, however broken, and prints what came back",
  help: [
    "Examples: chain read:0 w:512 status                    a read of sector 0, as it should be",
    "          chain write:8 r:512=0xaa status,flags=0      a status byte that the device may not write",
    "          chain read:0,cut=8 w:512 status              the header in two descriptors of 8 bytes",
    "          chain type:99 status                         a request type that does not exist",
    "          chain read:0 w:512,addr=0xdead0000 status    a buffer outside of memory",
    "          chain read:0 w:512,next=0 status             a loop (split ring)",
    "",
    "Each element makes one descriptor, linked to the one that follows:",
    "",
    `  ${Object.keys(HEADERS).join(", ")}`,
    "               a request header: 16 device-readable bytes; a sector may follow, as in read:8",
    "  type:N[:SECTOR]          a header of any type",
    "  r:LEN[=BYTE]             device-readable data, filled with a byte (0xcd)",
    "  hex:DIGITS               device-readable data, as given",
    "  range:SECTOR:COUNT[:FLAGS]  a range for discard, zeroes and erase",
    "  w:LEN                    device-writable data",
    "  status                   one device-writable byte",
    "",
    "Overrides follow after commas, and go into the descriptor as they are:",
    "",
    "  addr=N, len=N, next=N    the fields of the descriptor",
    "  flags=NEXT|WRITE|INDIRECT, or a number",
    "  cut=N[+N...]             no field: makes descriptors of N bytes, and one of the rest",
    "",
    "  -i  put the descriptors into an indirect table",
    "  -v  dump device-writable data in full",
    "  -q  the queue to use (0)",
  ],
  count: [1, Infinity],
  sends: true,
  letters: "iq:v",
  run: chain,
}];
