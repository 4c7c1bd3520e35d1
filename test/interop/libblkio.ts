/** QEMU 10's programs as front-ends of a served disk, and a model of what it holds. */

import { assert } from "@std/assert";
import type { Random } from "../random.ts";
import { firstDifference } from "../storage/support.ts";
import { frontEnd, trixie, type TrixieProgram } from "../trixie.ts";

/** After that a program hangs, and is killed. */
const PATIENCE_MS = 20_000;

/** How a program of Debian 13 ended, and what it wrote to its two outputs, one after the other. */
export async function tryTrixie(
  program: TrixieProgram,
  ...args: readonly string[]
): Promise<{ success: boolean; text: string }> {
  const { command, args: all, env } = trixie(program, ...args);
  const signal = AbortSignal.timeout(PATIENCE_MS);
  const { success, stdout, stderr } = await new Deno.Command(command, { args: [...all], env, signal }).output();
  return { success, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

/** Runs a program of Debian 13 that must succeed; returns what it wrote. */
export async function runTrixie(program: TrixieProgram, ...args: readonly string[]): Promise<string> {
  const { success, text } = await tryTrixie(program, ...args);
  if (!success) throw new Error(`${program} ${args.join(" ")}: ${text}`);
  return text;
}

/** Makes an empty image. */
export async function create(path: string, format: string, sizeBytes: number): Promise<void> {
  await runTrixie("qemu-img", "create", "-q", "-f", format, path, String(sizeBytes));
}

/** Has qemu-io carry out commands on the disk at a socket; each must do what it says. */
export async function qemuIo(socket: string, commands: readonly string[]): Promise<void> {
  const options = frontEnd(socket, ",discard=unmap");
  const { success, text } = await tryTrixie(
    "qemu-io",
    ...["-t", "none", "--image-opts", ...commands.flatMap((command) => ["-c", command]), options],
  );
  // It says so, and goes on.
  assert(success && !/failed|error/i.test(text), `${commands.join("\n")}\n${text}`);
}

/** All bytes of the disk at a socket, as `qemu-img convert` reads them. */
export async function dump(socket: string, to: string): Promise<Uint8Array> {
  await runTrixie("qemu-img", "convert", "--image-opts", "-O", "raw", frontEnd(socket), to);
  return Deno.readFileSync(to);
}

/** What a disk must hold. A discarded range may hold anything, until somebody has looked. */
export class KnownBytes {
  readonly bytes: Uint8Array;
  readonly #known: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#known = new Uint8Array(bytes.byteLength).fill(1);
  }

  /** A command of qemu-io, after which the disk holds what this one does. */
  act(random: Random): string[] {
    const size = this.bytes.byteLength;
    const offset = 512 * random.below(size / 512);
    const lengthBytes = Math.min(512 * random.between(1, random.pick([4, 64, 2000])), size - offset);
    const range = `${offset} ${lengthBytes}`;
    switch (random.below(8)) {
      case 0:
        this.#known.fill(0, offset, offset + lengthBytes);
        return [`discard ${range}`];
      case 1:
      case 2:
        this.#set(0, offset, lengthBytes);
        return [`write -z ${random.oneIn(2) ? "-u " : ""}${range}`, `read -P 0 ${range}`];
      case 3:
        return ["flush"];
      default: {
        const fill = random.between(1, 255);
        this.#set(fill, offset, lengthBytes);
        const write = `${random.oneIn(3) ? "aio_write" : "write"} -P ${fill} ${range}`;
        return write.startsWith("aio") ? [write, "aio_flush"] : [write, `read -P ${fill} ${range}`];
      }
    }
  }

  /** Fails unless `found` is what is known; then all of it is. */
  mustBe(found: Uint8Array, told: string): void {
    // The unknown is what it was found to be.
    for (let i = 0; i < found.byteLength; i++) if (this.#known[i] === 0) this.bytes[i] = found[i];
    this.#known.fill(1);
    const at = firstDifference(found, this.bytes);
    assert(at < 0, `differs at ${at}: ${told}`);
  }

  #set(fill: number, offset: number, lengthBytes: number): void {
    this.bytes.fill(fill, offset, offset + lengthBytes);
    this.#known.fill(1, offset, offset + lengthBytes);
  }
}
