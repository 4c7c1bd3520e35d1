/**
 * The part of `vblk resize` that changes a disk which `vblk serve` has: over its control socket.
 *
 * @module
 */

import { libcProblem } from "../host/libc.ts";
import { HostError } from "../host/errno.ts";
import { DescriptorList } from "../host/socket_message.ts";
import { SocketPathError } from "../host/unix_address.ts";
import { UnixConnection } from "../host/unix_connection.ts";
import { ImageCommandError } from "./qemu_img.ts";

/** A resize waits for what is in flight; not longer than this. */
const ANSWER_WITHIN_MS = 60_000;
const MOST_ANSWER_BYTES = 1 << 16;

/**
 * Asks a `vblk serve` for another size.
 *
 * @returns the size that the disk has now, in bytes
 * @throws ImageCommandError
 */
export function resizeServed(
  path: string,
  wanted: { readonly sign: "+" | "-" | ""; readonly bytes: number },
  shrink: boolean,
): number {
  const problem = libcProblem();
  if (problem !== null) throw new ImageCommandError(problem.message, { hint: problem.hint });
  const change = wanted.sign === ""
    ? { size: wanted.bytes }
    : { by: wanted.sign === "-" ? -wanted.bytes : wanted.bytes };
  const answer = ask(path, { command: "resize", ...change, ...shrink && { shrink } });
  if (answer.ok === true && typeof answer.size === "number") return answer.size;
  const hint = typeof answer.hint === "string" ? answer.hint : undefined;
  throw new ImageCommandError(typeof answer.error === "string" ? answer.error : "the answer makes no sense", { hint });
}

function ask(path: string, request: object): Record<string, unknown> {
  try {
    using connection = UnixConnection.connect(path);
    connection.send(new TextEncoder().encode(`${JSON.stringify(request)}\n`), [], ANSWER_WITHIN_MS);
    return JSON.parse(receiveLine(connection)) as Record<string, unknown>;
  } catch (error) {
    if (error instanceof ImageCommandError) throw error;
    const { message } = error as Error;
    const isMine = error instanceof HostError || error instanceof SocketPathError;
    throw new ImageCommandError(`Could not reach '${path}': ${message}`, {
      hint: isMine ? "SOCKET is what 'vblk serve' was given with --control" : undefined,
      cause: error,
    });
  }
}

function receiveLine(connection: UnixConnection): string {
  using descriptors = new DescriptorList();
  const bytes = new Uint8Array(MOST_ANSWER_BYTES);
  for (let have = 0; have < bytes.byteLength; have++) {
    const received = connection.receive(bytes.subarray(have, have + 1), descriptors, ANSWER_WITHIN_MS);
    if (received === "timeout") throw new ImageCommandError(`there was no answer in ${ANSWER_WITHIN_MS / 1000} s`);
    if (received === "end") throw new ImageCommandError("the other side went away without an answer");
    if (bytes[have] === 10) return new TextDecoder().decode(bytes.subarray(0, have));
  }
  throw new ImageCommandError("the answer makes no sense");
}
