/** Runs a command line with vblk, in this process, and with qemu-img, and compares what they print and how they end. */

import { assertEquals } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { Capture } from "../script/capture.ts";

/** What a program printed and how it ended. Its name and hints are left out. */
export interface Ending {
  readonly code: number;
  readonly out: readonly string[];
  readonly err: readonly string[];
}

/** Runs vblk. */
export async function runVblk(args: readonly string[]): Promise<Ending> {
  const capture = new Capture();
  const code = await main(args, capture);
  const err = capture.lines.filter((line) => line.startsWith("2> ")).map((line) => line.slice(3));
  return {
    code,
    out: capture.lines.filter((line) => !line.startsWith("2> ")),
    err: err.filter((line) => !line.startsWith("hint: ")).map((line) => line.replace(/^vblk: /, "")),
  };
}

/** Runs qemu-img. */
export async function runQemuImg(args: readonly string[]): Promise<Ending> {
  const { code, stdout, stderr } = await new Deno.Command("qemu-img", { args: [...args] }).output();
  const lines = (bytes: Uint8Array) => new TextDecoder().decode(bytes).split("\n").slice(0, -1);
  return {
    code,
    out: lines(stdout),
    err: lines(stderr).filter((line) => !line.startsWith("Try 'qemu-img")).map((line) =>
      line.replace(/^qemu-img: /, "")
    ),
  };
}

/** Fails unless both end alike. */
export async function sameAsQemuImg(args: readonly string[], told?: string): Promise<Ending> {
  // One after the other: they may write to the same file.
  const theirs = await runQemuImg(args);
  const ours = await runVblk(args);
  assertEquals(ours, theirs, told ?? args.join(" "));
  return ours;
}

/** Whether QEMU may look for holes inside an image's clusters: it does when much of the file takes no space. */
export function hidesHoles(path: string): boolean {
  const { blocks, size } = Deno.statSync(path);
  return blocks! * 512 < 0.95 * size;
}

/**
 * Writes a raw file anew, without its pages of zeros: to vblk, which can't ask where holes are, each of them is one. A
 * qcow2 file stays as it is.
 */
export function digHoles(path: string): void {
  const bytes = Deno.readFileSync(path);
  if (bytes[0] === 0x51 && bytes[1] === 0x46) return;
  using file = Deno.openSync(path, { write: true, truncate: true });
  file.truncateSync(bytes.byteLength);
  for (let at = 0; at < bytes.byteLength; at += 4096) {
    const page = bytes.subarray(at, at + 4096);
    if (page.every((byte) => byte === 0)) continue;
    file.seekSync(at, Deno.SeekMode.Start);
    file.writeSync(page);
  }
}
