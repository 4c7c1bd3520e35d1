/**
 * Copies disks through two rings: read by one guest, written by another.
 */

import type { Guest } from "../../src/guest/guest.ts";
import type { Random } from "../random.ts";

const SECTOR_BYTES = 512;
const LARGEST_PIECE_BYTES = 32 << 10;

/** Every byte of a disk in pieces of whole sectors, in no order. */
export function piecesOf(sizeBytes: number, random: Random): { offset: number; lengthBytes: number }[] {
  const pieces = [];
  for (let offset = 0; offset < sizeBytes;) {
    const wanted = SECTOR_BYTES * (1 + random.below(LARGEST_PIECE_BYTES / SECTOR_BYTES));
    const lengthBytes = Math.min(wanted, sizeBytes - offset);
    pieces.push({ offset, lengthBytes });
    offset += lengthBytes;
  }
  return random.shuffle(pieces);
}

/** Whether a piece holds nothing but zeros. */
function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

/**
 * Copies a whole disk. All reads are in flight together, and each write starts as soon as its read ends. With `sparse`
 * zeros are not written but made by WRITE_ZEROES.
 */
export async function copyDisk(from: Guest, to: Guest, random: Random, sparse = false): Promise<void> {
  await Promise.all(
    piecesOf(from.sizeBytes, random).map(async ({ offset, lengthBytes }) => {
      const bytes = await from.read(offset, lengthBytes);
      if (sparse && isZero(bytes)) await to.writeZeroes(offset, lengthBytes, { unmap: true });
      else await to.write(offset, bytes);
    }),
  );
  await to.flush();
}

/** SHA-256 of a file, in hexadecimal. */
export async function checksum(path: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", await Deno.readFile(path));
  return new Uint8Array(digest).toHex();
}
