/**
 * What the tests of storages and images share: files that go away, scattered memory, errors as plain values.
 */

import { MemoryRegion } from "../../src/memory/region.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import type { Completion } from "../../src/storage/storage.ts";
import { join } from "node:path";
import { missing, type Requirement } from "../requires.ts";
import type { Random } from "../random.ts";

/** A folder that is removed at the end of the scope (`using`). */
export class Folder implements Disposable {
  readonly path: string;

  constructor() {
    this.path = Deno.makeTempDirSync({ prefix: "vblk-test-" });
  }

  /** Path of a file in the folder, which gets `contents` when they are given. */
  file(name: string, contents?: Uint8Array): string {
    const path = join(this.path, name);
    if (contents !== undefined) Deno.writeFileSync(path, contents);
    return path;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

/** A file system of 64 KiB in a folder, for as long as the scope lasts. Needs root. */
export class SmallDisk implements Disposable {
  readonly folder = new Folder();

  constructor() {
    run("mount", "-t", "tmpfs", "-o", "size=64k", "none", this.folder.path);
  }

  /** Makes it refuse all writes, as a CD does. */
  makeReadOnly(): void {
    run("mount", "-o", "remount,ro", this.folder.path);
  }

  [Symbol.dispose](): void {
    run("umount", this.folder.path);
    this.folder[Symbol.dispose]();
  }
}

let mountable: Requirement | undefined;

/** Ignores a test where `SmallDisk` cannot be had. */
export function requiresMount(): Requirement {
  if (mountable !== undefined) return mountable;
  let why = "";
  try {
    new SmallDisk()[Symbol.dispose]();
  } catch {
    why = "the right to mount a tmpfs";
  }
  return mountable = missing(why);
}

/** Runs a program to its end; returns whether it was content, and what it wrote to its two outputs, one after the other. */
export function tryRun(program: string, ...args: string[]): { success: boolean; text: string } {
  const { success, stdout, stderr } = new Deno.Command(program, { args }).outputSync();
  return { success, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

/** Runs a program that must succeed, and returns what it wrote. */
export function run(program: string, ...args: string[]): string {
  const { success, text } = tryRun(program, ...args);
  if (!success) throw new Error(`${program} ${args.join(" ")}: ${text}`);
  return text;
}

/** `data` in memory, cut into pieces that lie apart, at odd addresses too. */
export function scatter(data: Uint8Array, random: Random): SegmentList {
  const region = new MemoryRegion(0x1000, new Uint8Array(2 * data.byteLength + 4096));
  const list = new SegmentList();
  let at = random.below(8);
  for (let done = 0; done < data.byteLength;) {
    const take = Math.min(data.byteLength - done, 1 + random.below(random.below(4) === 0 ? 8000 : 600));
    region.bytes.set(data.subarray(done, done + take), at);
    list.append(region, at, take);
    done += take;
    at += take + random.below(2);
  }
  return list;
}

/** All bytes of a list. */
export function gather(list: SegmentList): Uint8Array {
  const bytes = new Uint8Array(list.byteLength);
  list.copyTo(bytes);
  return bytes;
}

/** Reads a range of a storage or an image. */
export async function readBytes(
  from: { read(offset: number, into: SegmentList): Completion },
  offset: number,
  lengthBytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  // Not zeros, so that bytes which were never filled show.
  const bytes = new Uint8Array(lengthBytes).fill(0xee);
  await from.read(offset, SegmentList.over(bytes));
  return bytes;
}

/** Writes bytes to a storage or an image. */
export async function writeBytes(
  to: { write(offset: number, from: SegmentList): Completion },
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  await to.write(offset, SegmentList.over(bytes));
}

/** The facts of the BlockError that `action` fails with; anything else it does is a failure of the test. */
export async function failureOf(action: () => unknown): Promise<Pick<BlockError, "kind" | "message" | "hint">> {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { kind, message, hint } = error;
    return { kind, message, hint };
  }
  throw new Error("nothing failed");
}

/** Whether the two hold the same bytes; quicker than `assertEquals` for megabytes. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return firstDifference(a, b) < 0;
}

/** Where two byte arrays differ first; -1 when nowhere. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.byteLength, b.byteLength);
  for (let i = 0; i < length; i++) {
    if (a[i] !== b[i]) return i;
  }
  return a.byteLength === b.byteLength ? -1 : length;
}

/** `n` bytes of chance. */
export function randomBytes(random: Random, n: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(n);
  random.fill(bytes);
  return bytes;
}
