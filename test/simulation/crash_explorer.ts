/**
 * What the files may hold after a crash, by the record of what was done to them, and a judge for each such state.
 *
 * A flush that has ended makes certain what had ended on its file before it began. Of the operations since then, any
 * subset may have reached the disk; of a write, any subset of its blocks of 512 bytes. So a state is: all that is
 * certain, and then some of the rest in their order.
 */

import type { Random } from "../random.ts";
import type { Recorded } from "./recording_storage.ts";

/** The files after a crash. */
export interface CrashState {
  /** Contents of each file; the receiver may change them. */
  readonly files: Uint8Array<ArrayBuffer>[];
  /** When the machine crashed, on the recorder's clock. */
  readonly tick: number;
  /** Which operations are in it and which are not. */
  readonly story: string;
}

/** What to explore, and how far. */
export interface Exploration {
  /** Contents of each file before the first operation. */
  readonly initial: readonly Uint8Array[];
  readonly operations: readonly Recorded[];
  readonly random: Random;
  /** Throws (or rejects) when such a state must not be. */
  readonly judge: (state: CrashState) => Promise<void>;
  /** Grows whenever something more is promised. A state is judged once for each value. Default: never. */
  readonly epoch?: (tick: number) => number;
  /** Samples for each moment. Default: 2. */
  readonly samples?: number;
  /** Up to so many operations between two flushes, all their subsets are tried. Default: 5. */
  readonly enumerate?: number;
  /** Most states to judge. Default: no limit. */
  readonly states?: number;
}

const BLOCK = 512;

/** Which of an operation's blocks are in a state: all, none, or those that the function picks. */
type Part = boolean | ((block: number) => boolean);

/**
 * Judges the states in the order of the moments; where there are more than `states`, moments are left out evenly.
 *
 * @returns how many different states were judged
 */
export async function explore(exploration: Exploration): Promise<number> {
  const { operations, random, judge, epoch = () => 0, states = Infinity } = exploration;
  const seen = new Set<string>();
  const moments = momentsOf(operations);
  const certain = new Certain(exploration.initial, operations);
  let judged = 0;
  for (let i = 0; i < moments.length; i++) {
    const tick = moments[i];
    // Evenly over the record: no moment takes what the later ones need.
    const most = Math.ceil((states - judged) / (moments.length - i));
    let here = 0;
    const pending = certain.advance(tick);
    const closing = i + 1 === moments.length ||
      operations.some((o) => o.kind === "flush" && o.begun === moments[i + 1]);
    for (const parts of choices(pending.length, closing, random, exploration)) {
      if (here >= most) break;
      const files = certain.files.map((file) => new File(file.view()));
      pending.forEach((operation, k) => files[operation.file].apply(operation, parts[k]));
      const contents = files.map((file) => file.contents());
      const key = `${epoch(tick)}:${contents.map(hashOf).join()}`;
      if (seen.has(key)) continue;
      seen.add(key);
      here++;
      const story = tell(operations, pending, parts, tick);
      try {
        await judge({ files: contents, tick, story });
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        throw new Error(`seed ${random.seed}, after a crash at ${tick}: ${message}\n${story}`, { cause: error });
      }
    }
    judged += here;
  }
  return judged;
}

/** A crash just after an operation began covers one before it ended; a flush promises something when it ends. */
function momentsOf(operations: readonly Recorded[]): number[] {
  const times = operations.flatMap((o) => o.kind === "flush" && o.ended < Infinity ? [o.begun, o.ended] : [o.begun]);
  return [0, ...times.sort((a, b) => a - b)];
}

/** What is certain, as time goes on. */
class Certain {
  readonly files: File[];
  readonly #waiting: Recorded[];
  readonly #flushes: readonly Recorded[];

  constructor(initial: readonly Uint8Array[], operations: readonly Recorded[]) {
    this.files = initial.map((bytes) => new File(bytes));
    this.#flushes = operations.filter((o) => o.kind === "flush" && o.ended < Infinity);
    this.#waiting = operations.filter((o) => o.kind !== "flush").sort((a, b) => a.ended - b.ended || a.begun - b.begun);
  }

  /** Goes on to a moment; returns the operations that are not certain then, in their order. */
  advance(tick: number): Recorded[] {
    const flushed = this.files.map((_, file) =>
      this.#flushes.reduce((last, o) => o.file === file && o.ended <= tick ? Math.max(last, o.begun) : last, 0)
    );
    const pending: Recorded[] = [];
    const later: Recorded[] = [];
    for (const operation of this.#waiting) {
      if (operation.ended < flushed[operation.file]) {
        this.files[operation.file].apply(operation, true);
        continue;
      }
      later.push(operation);
      if (operation.begun <= tick) pending.push(operation);
    }
    this.#waiting.splice(0, this.#waiting.length, ...later);
    return pending;
  }
}

/** Ways to lose some of `count` operations: as they came first; `closing` when nothing joins them before the next flush. */
function* choices(count: number, closing: boolean, random: Random, { samples = 2, enumerate = 5 }: Exploration) {
  const torn = (): Part => {
    const seed = random.next();
    return (block) => ((Math.imul(block + 1, 0x9e3779b1) ^ seed) >>> (seed & 15) & 1) === 1;
  };
  const make = (part: (i: number) => Part) => Array.from({ length: count }, (_, i) => part(i));
  yield make(() => true);
  if (count === 0) return;
  yield make((i) => i < count - 1 || torn());
  if (closing) {
    // One that is lost shows what should have waited for it; one that is alone shows what it should have waited for.
    for (const i of sample(count, 24, random)) yield make((k) => k !== i);
    for (const i of sample(count, 24, random)) yield make((k) => k === i);
    if (count <= enumerate) {
      for (let set = 0; set < 1 << count; set++) yield make((i) => (set >> i & 1) === 1);
    }
  }
  for (let n = closing ? 3 * samples : samples; n > 0; n--) {
    const share = random.between(2, 6);
    const rare = random.oneIn(2);
    yield make(() => random.oneIn(4) ? torn() : random.oneIn(share) !== rare);
  }
}

function sample(count: number, most: number, random: Random): number[] {
  const all = Array.from({ length: count }, (_, i) => i);
  return count <= most ? all : random.shuffle(all).slice(0, most);
}

/** A file that is being put together. */
class File {
  #bytes: Uint8Array<ArrayBuffer>;
  #sizeBytes: number;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes.slice();
    this.#sizeBytes = bytes.byteLength;
  }

  view(): Uint8Array {
    return this.#bytes.subarray(0, this.#sizeBytes);
  }

  contents(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.#sizeBytes);
  }

  apply(operation: Recorded, part: Part): void {
    if (part === false) return;
    const { kind, offset, lengthBytes, data } = operation;
    if (kind === "truncate") return this.#resize(lengthBytes);
    const end = kind === "discard" ? Math.min(offset + lengthBytes, this.#sizeBytes) : offset + lengthBytes;
    for (let at = offset; at < end;) {
      const to = Math.min(end, (Math.floor(at / BLOCK) + 1) * BLOCK);
      if (part === true || part(Math.floor(at / BLOCK))) {
        if (to > this.#sizeBytes) this.#resize(to);
        if (kind === "write") this.#bytes.set(data!.subarray(at - offset, to - offset), at);
        else this.#bytes.fill(kind === "zero" ? 0 : 0xd5, at, to);
      }
      at = to;
    }
  }

  #resize(sizeBytes: number): void {
    if (sizeBytes > this.#bytes.byteLength) {
      const bytes = new Uint8Array(2 * sizeBytes);
      bytes.set(this.#bytes);
      this.#bytes = bytes;
    }
    this.#bytes.fill(0, Math.min(sizeBytes, this.#sizeBytes), Math.max(sizeBytes, this.#sizeBytes));
    this.#sizeBytes = sizeBytes;
  }
}

/** 64 bits that tell states apart. */
export function hashOf(bytes: Uint8Array<ArrayBuffer>): string {
  const words = new Uint32Array(bytes.buffer, 0, bytes.byteLength >> 2);
  let a = bytes.byteLength;
  let b = 0x811c9dc5;
  for (let i = 0; i < words.length; i++) {
    a = Math.imul(a ^ words[i], 0x9e3779b1);
    b = Math.imul((b << 5 | b >>> 27) ^ words[i], 0x85ebca6b);
    a ^= a >>> 15;
  }
  for (let i = words.length * 4; i < bytes.byteLength; i++) a = Math.imul(a ^ bytes[i], 0x01000193);
  return `${bytes.byteLength}/${a >>> 0}/${b >>> 0}`;
}

/** The operations around the moment, each with what became of it. */
function tell(all: readonly Recorded[], pending: readonly Recorded[], parts: readonly Part[], tick: number): string {
  const lines = all.filter((o) => o.begun <= tick).slice(-40).map((operation) => {
    const { file, kind, offset, lengthBytes, begun } = operation;
    const at = pending.indexOf(operation);
    const fate = kind === "flush"
      ? ""
      : at < 0
      ? "certain"
      : parts[at] === true
      ? "there"
      : parts[at]
      ? "torn"
      : "lost";
    return `  ${begun}: file ${file} ${kind} 0x${offset.toString(16)} ${lengthBytes} ${fate}`;
  });
  return lines.join("\n");
}
