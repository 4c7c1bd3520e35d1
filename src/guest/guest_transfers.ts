/**
 * What a guest wants moved or named, cut into requests that the device and the guest's memory allow.
 *
 * @module
 */

import { RANGE_SIZE, SECTOR_SIZE, VIRTIO_BLK_T_IN } from "../blk/blk_layout.ts";
import type { Guest, RequestOptions, TransferOptions } from "./guest.ts";
import type { GuestRequests } from "./guest_requests.ts";

/** Largest piece into which a long transfer is cut, in bytes; as big as Linux makes its requests. */
const MAX_TRANSFER_BYTES = 1 << 20;

/** Moves `data` to or from the disk in as few requests as the device and the guest's memory allow. */
export async function transfer(
  guest: Guest,
  requests: GuestRequests,
  operation: string,
  type: number,
  offset: number,
  data: Uint8Array,
  options: TransferOptions,
): Promise<void> {
  const limit = transferLimit(guest, options.segments);
  const pieces: Promise<void>[] = [];
  for (let done = 0; done === 0 || done < data.byteLength; done += limit) {
    const piece = data.subarray(done, done + limit);
    pieces.push(transferPiece(guest, requests, operation, type, offset + done, piece, options));
    // A long transfer must not take all of the guest's memory at once.
    if (pieces.length >= 8) await settle(pieces.splice(0));
  }
  await settle(pieces);
}

function transferLimit(guest: Guest, segments: readonly number[] | undefined): number {
  // Who names the segments wants exactly one request.
  if (segments !== undefined) return Infinity;
  const { sizeMax } = guest;
  if (sizeMax === Infinity) return MAX_TRANSFER_BYTES;
  // §2.7.5.3.1: no chain is longer than the queue, indirect or not; two elements are header and status.
  const room = Math.min(...guest.driver.queues.map((queue) => queue.size)) - 2;
  const segMax = Math.max(1, Math.min(guest.segMax, room));
  const perRequest = Math.floor(Math.min(MAX_TRANSFER_BYTES, sizeMax * segMax) / SECTOR_SIZE) * SECTOR_SIZE;
  return Math.max(SECTOR_SIZE, perRequest);
}

async function transferPiece(
  guest: Guest,
  requests: GuestRequests,
  operation: string,
  type: number,
  offset: number,
  data: Uint8Array,
  options: TransferOptions,
): Promise<void> {
  const address = guest.allocate(data.byteLength, 4096);
  try {
    const writable = type === VIRTIO_BLK_T_IN;
    if (!writable) guest.memory(address, data.byteLength).set(data);
    const elements = [];
    let at = address;
    for (const length of segmentLengths(data.byteLength, guest.sizeMax, options.segments)) {
      elements.push({ address: at, length, writable });
      at += length;
    }
    await requests.send(operation, type, offset / SECTOR_SIZE, elements, options.queue);
    if (writable) data.set(guest.memory(address, data.byteLength));
  } finally {
    requests.giveBack(address);
  }
}

function segmentLengths(total: number, longest: number, given: readonly number[] | undefined): readonly number[] {
  if (given !== undefined) return given.filter((length) => length > 0);
  if (total === 0) return [];
  const sizeMax = Math.min(total, longest);
  const lengths: number[] = [];
  for (let left = total; left > 0; left -= sizeMax) lengths.push(Math.min(left, sizeMax));
  return lengths;
}

/** A range of the disk that is named, not moved: bytes, in whole sectors. */
export interface NamedRange {
  readonly operation: string;
  readonly type: number;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly flags: number;
  /** Most that one request may name. */
  readonly limit: number;
}

/** Sends requests of one range each (§5.2.6: `struct virtio_blk_discard_write_zeroes`), one after the other. */
export async function sendRanges(
  guest: Guest,
  requests: GuestRequests,
  { operation, type, offset, lengthBytes, flags, limit }: NamedRange,
  options: RequestOptions,
): Promise<void> {
  for (let done = 0; done < lengthBytes; done += limit) {
    const sectors = Math.min(limit, lengthBytes - done) / SECTOR_SIZE;
    const bytes = new Uint8Array(RANGE_SIZE);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, BigInt((offset + done) / SECTOR_SIZE), true);
    view.setUint32(8, sectors, true);
    view.setUint32(12, flags, true);
    const address = guest.allocate(RANGE_SIZE);
    try {
      guest.memory(address, RANGE_SIZE).set(bytes);
      await requests.send(operation, type, 0, [{ address, length: RANGE_SIZE, writable: false }], options.queue);
    } finally {
      requests.giveBack(address);
    }
  }
}

/** Waits for all, then fails with the first failure: no buffer is given back while a request still uses it. */
async function settle(pieces: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pieces)) {
    if (result.status === "rejected") throw result.reason;
  }
}
