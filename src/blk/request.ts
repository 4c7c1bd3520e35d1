/**
 * From a descriptor chain to a block request (VIRTIO 1.4 §5.2.6), and back: where the status byte goes and how
 * many bytes were written.
 *
 * A chain is two byte strings. The request is the same wherever they are cut: the header is the first 16
 * device-readable bytes, the status is the last device-writable byte, what is between is data (§2.7.4.1).
 *
 * @module
 */

import { checkedU64 } from "../memory/guest_memory.ts";
import { SegmentList } from "../memory/segment_list.ts";
import { DescriptorChain } from "../virtio/virtqueue/chain.ts";
import type { Violation } from "../virtio/violation.ts";
import {
  HEADER_SIZE,
  SECTOR_SIZE,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from "./blk_layout.ts";
import { blkViolation } from "./rules.ts";

/** What a request asks for. */
export type BlkRequestKind =
  | "read"
  | "write"
  | "flush"
  | "getId"
  | "getLifetime"
  | "discard"
  | "writeZeroes"
  | "secureErase"
  | "unknown";

/** What a request asks for, by its type field (§5.2.6). */
export const REQUEST_KINDS: Readonly<Record<number, BlkRequestKind>> = {
  [VIRTIO_BLK_T_IN]: "read",
  [VIRTIO_BLK_T_OUT]: "write",
  [VIRTIO_BLK_T_FLUSH]: "flush",
  [VIRTIO_BLK_T_GET_ID]: "getId",
  [VIRTIO_BLK_T_GET_LIFETIME]: "getLifetime",
  [VIRTIO_BLK_T_DISCARD]: "discard",
  [VIRTIO_BLK_T_WRITE_ZEROES]: "writeZeroes",
  [VIRTIO_BLK_T_SECURE_ERASE]: "secureErase",
};

/** A block request. The object is reused; it is a plain value from `parse` to `finish`. */
export class BlkRequest {
  readonly chain: DescriptorChain = new DescriptorChain();
  kind: BlkRequestKind = "unknown";
  /** The type field as read. */
  type = 0;
  /**
   * Offset on the disk in bytes, for reads and writes; -1 when it is 2^53 or more, past the end of any disk. (Not
   * `Infinity`: one that was ever stored would make every later offset a number on the heap.)
   */
  offset = 0;
  /** Device-readable data: what follows the header. */
  readonly input: SegmentList = new SegmentList();
  /** Device-writable data: what precedes the status byte. */
  readonly output: SegmentList = new SegmentList();
  /** How much of `output` was filled, from its start. */
  outputFilled = 0;
  status: number = VIRTIO_BLK_S_OK;
  /** The rule that the driver broke in this request, if any. */
  violation: Violation | null = null;
  /** When it was popped, in milliseconds, if anybody wants to know. */
  startedAt = 0;

  readonly #header = new Uint8Array(HEADER_SIZE);
  readonly #headerView = new DataView(this.#header.buffer);

  /**
   * Reads the request out of `chain`.
   *
   * @returns `false` when there is no status byte to be written: then nothing can be answered, and `violation` says so
   */
  parse(): boolean {
    const { readable, writable } = this.chain;
    this.kind = "unknown";
    this.type = 0;
    this.offset = 0;
    this.input.clear();
    this.output.clear();
    this.outputFilled = 0;
    this.status = VIRTIO_BLK_S_OK;
    this.violation = this.chain.violation;
    if (writable.byteLength === 0) {
      this.violation ??= blkViolation("no-status", "the chain has no device-writable byte");
      return false;
    }
    this.output.appendRange(writable, 0, writable.byteLength - 1);
    if (this.violation !== null) {
      this.status = VIRTIO_BLK_S_IOERR;
      return true;
    }
    if (readable.byteLength < HEADER_SIZE) {
      this.#fail(blkViolation("short-header", `the chain has ${readable.byteLength} device-readable bytes`));
      return true;
    }
    readable.copyTo(this.#header);
    this.input.appendRange(readable, HEADER_SIZE, readable.byteLength - HEADER_SIZE);
    this.type = this.#headerView.getUint32(0, true);
    this.kind = REQUEST_KINDS[this.type] ?? "unknown";
    const sector = checkedU64(this.#headerView.getUint32(8, true), this.#headerView.getUint32(12, true));
    this.offset = sector <= Number.MAX_SAFE_INTEGER / SECTOR_SIZE ? sector * SECTOR_SIZE : -1;
    return true;
  }

  /**
   * Writes the status byte, after zeroing whatever the request left of `output`: a driver may look at no byte
   * beyond the used length (§2.7.8.3), which counts from the first device-writable byte, so the status is covered
   * only when all before it was written. It also keeps a failed read from leaking what the buffer held.
   *
   * @returns the used length
   */
  finish(): number {
    const { output } = this;
    const { writable, writablePrefixLost } = this.chain;
    if (!writablePrefixLost && this.outputFilled < output.byteLength) output.fill(0, this.outputFilled);
    const last = writable.count - 1;
    writable.regionOf(last).bytes[writable.offsetOf(last) + writable.lengthOf(last) - 1] = this.status;
    // A used length has 32 bits; a chain that has nothing but writable bytes may have 2^32 of them.
    return writablePrefixLost ? 0 : Math.min(writable.byteLength, 0xffff_ffff);
  }

  #fail(violation: Violation): void {
    this.violation = violation;
    this.status = VIRTIO_BLK_S_IOERR;
  }
}
