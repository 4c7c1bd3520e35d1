/**
 * Data for a write from a file, repeated until it is long enough.
 *
 * @module
 */

import { BlockError } from "../storage/block_error.ts";
import { CommandError } from "./command.ts";

/**
 * Bytes that repeat the contents of a file.
 *
 * @throws CommandError when the file can't be read, or is empty
 */
export function fillFromFile(path: string, lengthBytes: number, word: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  let filled = readInto(path, bytes, word);
  if (lengthBytes === 0) return bytes;
  if (filled === 0) throw new CommandError(`${path}: file is empty`, { stream: "stderr", word });
  // Doubling copies each byte once in the end, whatever the length of the file.
  for (; filled < lengthBytes; filled *= 2) bytes.copyWithin(filled, 0, Math.min(filled, lengthBytes - filled));
  return bytes;
}

function readInto(path: string, bytes: Uint8Array, word: number): number {
  try {
    using file = Deno.openSync(path);
    let filled = 0;
    while (filled < bytes.byteLength) {
      const count = file.readSync(bytes.subarray(filled));
      if (count === null) break;
      filled += count;
    }
    return filled;
  } catch (cause) {
    const { kind, reason } = BlockError.from(cause, { path, operation: "open" });
    const hint = kind === "not-capable" ? `run again with --allow-read=${path} (right after 'deno run')` : undefined;
    throw new CommandError(`${path}: ${reason}`, { stream: "stderr", word, hint });
  }
}
