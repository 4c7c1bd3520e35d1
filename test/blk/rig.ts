/**
 * What the tests of the block device share: a small machine, chains made by hand, and a judge that compares all of
 * RAM before and after a request, so that a byte written outside the buffers named cannot hide.
 */

import { assert, assertEquals } from "@std/assert";
import type { BlkOptions } from "../../src/blk/options.ts";
import type { BlockDriverOptions } from "../../src/guest/block_driver.ts";
import type { RawDescriptor } from "../../src/guest/driver_queue.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import type { BlockError } from "../../src/storage/block_error.ts";
import { type FaultHook, FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import type { TraceEvent } from "../../src/trace/events.ts";
import { featureSet } from "../../src/virtio/features.ts";
import type { Violation } from "../../src/virtio/violation.ts";
import { packedSizes } from "../../src/virtio/virtqueue/packed_layout.ts";
import { splitSizes } from "../../src/virtio/virtqueue/split_layout.ts";
import { Random } from "../random.ts";

export const SECTOR = 512;
/** Device-writable, in either layout. */
export const WRITE = 2;
export const NEXT = 1;
/** Status bytes. */
export const [OK, IOERR, UNSUPP] = [0, 1, 2];

export const LAYOUTS = ["split", "packed"] as const;
export type Layout = typeof LAYOUTS[number];

/** What a rig may be given. */
export interface RigOptions {
  layout?: Layout;
  sizeBytes?: number;
  device?: Partial<BlkOptions>;
  driver?: Omit<BlockDriverOptions, "trace" | "decline"> & { decline?: readonly number[] };
  hook?: FaultHook;
  ramBytes?: number;
}

/** A machine on a memory disk that may fail, with all that it said. */
export interface Rig {
  machine: Machine;
  storage: FaultStorage;
  memory: MemoryStorage;
  events: TraceEvent[];
  errors: BlockError[];
  /** The rules that were broken, by name, in order. */
  rules(): string[];
}

/** Boots a machine; the disk is filled with bytes that depend on their place. */
export async function rig(options: RigOptions = {}): Promise<Rig> {
  const memory = new MemoryStorage(options.sizeBytes ?? 64 * 1024);
  memory.write(0, SegmentList.over(diskBytes(memory.sizeBytes)));
  const storage = new FaultStorage(memory);
  const events: TraceEvent[] = [];
  const errors: BlockError[] = [];
  const { decline = [], ...driver } = options.driver ?? {};
  const machine = await Machine.start(new RawImage(storage), {
    device: { packed: options.layout === "packed", ...options.device },
    driver: { ...driver, decline: featureSet(...decline) },
    ramBytes: options.ramBytes ?? 1 << 20,
    trace: (event) => events.push(event),
    hostError: (error) => errors.push(error),
  });
  if (options.hook !== undefined) storage.hook = options.hook;
  const rules = () => events.flatMap((event) => event.event === "violation" ? [event.violation.rule] : []);
  return { machine, storage, memory, events, errors, rules };
}

/** What the disk of a rig holds at first. */
export function diskBytes(sizeBytes: number): Uint8Array<ArrayBuffer> {
  return new Random(1).bytes(sizeBytes);
}

/** The bytes of the disk, read past the device. */
export function disk({ memory }: Rig, offset: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(lengthBytes);
  memory.read(offset, SegmentList.over(bytes));
  return bytes;
}

/** The 16 bytes of a request header. */
export function header(type: number, sector: number | bigint = 0, reserved = 0): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, reserved, true);
  view.setBigUint64(8, BigInt(sector), true);
  return bytes;
}

/** One range of a discard, write zeroes or secure erase request. */
export function range(sector: number | bigint, sectors: number, flags = 0): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, sectors, true);
  view.setUint32(12, flags, true);
  return bytes;
}

/** Joins pieces. */
export function concat(...pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(pieces.flatMap((piece) => [...piece]));
}

/** A descriptor chain: NEXT on all but the last. */
export function linked(
  elements: readonly { address: number | bigint; length: number; writable: boolean }[],
): RawDescriptor[] {
  return elements.map(({ address, length, writable }, i) => ({
    address: BigInt(address),
    length,
    flags: (i + 1 < elements.length ? NEXT : 0) | (writable ? WRITE : 0),
  }));
}

/** What came back for a request. */
export interface Answer {
  status: number | null;
  bytesWritten: number | null;
  /** The device-writable bytes before the status byte. */
  output: Uint8Array;
}

/** How a request is laid out. */
export interface Layouting {
  indirect?: boolean;
  queue?: number;
  /** Lengths of the device-readable and of the device-writable descriptors. */
  readable?: readonly number[];
  writable?: readonly number[];
}

/**
 * Sends `readable` bytes and room for `writableBytes`, status included, and holds the device to its duty: it writes
 * the writable buffers and its own part of the ring, and not one byte else.
 */
export async function send(
  { machine }: Rig,
  readable: Uint8Array,
  writableBytes: number,
  layouting: Layouting = {},
): Promise<Answer> {
  const { guest } = machine;
  const [GAP, FILL] = [8, 0xee];
  const readableLengths = layouting.readable ?? [readable.byteLength];
  const writableLengths = layouting.writable ?? (writableBytes > 1 ? [writableBytes - 1, 1] : [writableBytes]);
  const lengths = [...readableLengths, ...writableLengths].filter((length) => length > 0);
  const areaBytes = lengths.reduce((sum, length) => sum + length + GAP, GAP);
  const area = guest.allocate(areaBytes, 4096);
  guest.memory(area, areaBytes).fill(FILL);
  // Every piece by itself, with a gap on both sides, so that none continues another by chance.
  let at = area + GAP;
  const place = (length: number, writable: boolean) => {
    const element = { address: at, length, writable };
    at += length + GAP;
    return element;
  };
  const inputs = readableLengths.filter((length) => length > 0).map((length) => place(length, false));
  const outputs = writableLengths.filter((length) => length > 0).map((length) => place(length, true));
  let from = 0;
  for (const { address, length } of inputs) {
    guest.memory(address, length).set(readable.subarray(from, from + length));
    from += length;
  }
  const last = outputs.at(-1);
  const statusAddress = last === undefined ? undefined : last.address + last.length - 1;
  const pending = guest.chain(linked([...inputs, ...outputs]), {
    indirect: layouting.indirect,
    queue: layouting.queue,
    statusAddress,
  });
  const before = ram(machine);
  const { status, bytesWritten } = await pending;
  const allowed = outputs.map(({ address, length }): Span => [address, length]);
  assertEquals(strayWrites(machine, before, [...allowed, ...ringSpans(machine)]), []);
  const output = concat(...outputs.map(({ address, length }) => guest.memory(address, length)));
  guest.release(area);
  return { status, bytesWritten, output: output.subarray(0, Math.max(0, output.byteLength - 1)) };
}

/** Guest-physical address and length. */
export type Span = readonly [address: number, lengthBytes: number];

/** A copy of all of the guest's memory. */
export function ram(machine: Machine): Uint8Array {
  return machine.memory.regions[0].bytes.slice();
}

/** The rings of a machine. What each side may write there is what the ring tests hold. */
export function ringSpans({ guest }: Machine): Span[] {
  return guest.driver.queues.flatMap(({ addresses, size }) => {
    const sizes = guest.features >> 34n & 1n ? packedSizes(size) : splitSizes(size);
    return (["desc", "driver", "device"] as const).map((part): Span => [addresses[part], sizes[part]]);
  });
}

/** The first 16 addresses outside `allowed` at which memory is not what it was. */
export function strayWrites(machine: Machine, before: Uint8Array, allowed: readonly Span[]): number[] {
  const { bytes, guestAddress } = machine.memory.regions[0];
  const expected = before.slice();
  for (const [address, length] of allowed) {
    const offset = address - guestAddress;
    expected.set(bytes.subarray(offset, offset + length), offset);
  }
  const stray: number[] = [];
  const [a, b] = [expected, bytes].map((of) => new BigUint64Array(of.buffer, of.byteOffset, of.byteLength >> 3));
  for (let i = 0; i < a.length && stray.length < 16; i++) {
    if (a[i] === b[i]) continue;
    for (let k = i * 8; k < i * 8 + 8; k++) if (expected[k] !== bytes[k]) stray.push(guestAddress + k);
  }
  return stray;
}

/** Holds operations back until it is told to let them go, in any order. */
export class Gate {
  readonly held: { kind: string; offset: number; go: () => void }[] = [];
  /** Which kinds to hold; all by default. */
  kinds: readonly string[] | null = null;

  /** A hook for `FaultStorage`. */
  readonly hook: FaultHook = ({ kind, offset }) => {
    if (this.kinds !== null && !this.kinds.includes(kind)) return;
    return new Promise<void>((go) => this.held.push({ kind, offset, go }));
  };

  /** Lets go of everything held now; returns how many. */
  open(): number {
    const held = this.held.splice(0);
    for (const { go } of held) go();
    return held.length;
  }
}

/** Lets the event loop go round once: all that is ready to happen has happened. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** Holds operations for a seeded number of turns of the event loop, up to `most`. */
export function delays(seed: number, most: number): () => Promise<void> {
  const random = new Random(seed);
  return async () => {
    for (let turns = random.below(most + 1); turns > 0; turns--) await turn();
  };
}

export function violations({ events }: Rig): Violation[] {
  return events.flatMap((event) => event.event === "violation" ? [event.violation] : []);
}

/** The device answers like new. */
export async function stillWorks(made: Rig): Promise<void> {
  const sector = await made.machine.guest.read(0, SECTOR);
  assertEquals(sector, disk(made, 0, SECTOR));
}

/** The device waits for a reset, and lives after it. */
export async function needsReset(made: Rig, rule: string): Promise<void> {
  const { machine } = made;
  assertEquals(made.rules().at(-1), rule);
  assert(machine.transport.status & 64, "DEVICE_NEEDS_RESET is set");
  assert(machine.guest.driver.needsReset, "the driver was told");
  await machine.guest.reset();
  assertEquals(machine.transport.status, 1 + 2 + 4 + 8);
  await stillWorks(made);
}
