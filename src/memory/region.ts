/**
 * One contiguous range of guest-physical memory and the host bytes behind it.
 *
 * A region hands out views of its bytes. Views are small JavaScript objects, and a driver that reuses its
 * buffers asks for the same ones over and over, so each region keeps a bounded cache of them: the device's
 * path then allocates nothing per request.
 *
 * @module
 */

const VIEW_CACHE_SLOTS = 256;

/** A range of guest-physical addresses backed by host memory. */
export class MemoryRegion {
  /** First guest-physical address of the region, in bytes. */
  readonly guestAddress: number;
  /** Size of the region, in bytes. */
  readonly sizeBytes: number;
  /** The whole region. */
  readonly bytes: Uint8Array;
  /** The whole region, for little-endian fields at any alignment. */
  readonly view: DataView;
  /** The region as 16-bit units, for the ring indexes that need atomic access; a trailing odd byte is left out. */
  readonly words: Uint16Array;

  readonly #views: (Uint8Array | undefined)[] = [];

  /**
   * Puts `bytes` at a guest-physical address.
   *
   * @throws RangeError when they go beyond 2^53, or start at an odd offset of their buffer
   */
  constructor(guestAddress: number, bytes: Uint8Array) {
    if (!Number.isSafeInteger(guestAddress) || guestAddress < 0) {
      throw new RangeError(`memory region: guest address ${guestAddress} is not a whole number below 2^53`);
    }
    if (!Number.isSafeInteger(guestAddress + bytes.byteLength)) {
      throw new RangeError(`memory region: ${bytes.byteLength} bytes at ${guestAddress} end above 2^53`);
    }
    if (bytes.byteOffset % 2 !== 0) {
      throw new RangeError("memory region: its bytes must start at an even offset of their buffer");
    }
    this.guestAddress = guestAddress;
    this.sizeBytes = bytes.byteLength;
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    // Not `>>> 1`: that works on 32 bits, and a region can be larger than 4 GiB.
    this.words = new Uint16Array(bytes.buffer, bytes.byteOffset, Math.floor(bytes.byteLength / 2));
  }

  /**
   * The bytes at `offset`, as a view (not a copy). The caller has checked that they lie in the region.
   * The view may be shared with other callers; nobody may transfer or keep it beyond the request.
   */
  slice(offset: number, lengthBytes: number): Uint8Array {
    // 4 KiB-aligned buffers and sector-aligned ones should both spread over the slots.
    const slot = ((offset >>> 12) ^ (offset >>> 5)) & (VIEW_CACHE_SLOTS - 1);
    const cached = this.#views[slot];
    const at = this.bytes.byteOffset + offset;
    if (cached !== undefined && cached.byteOffset === at && cached.byteLength === lengthBytes) return cached;
    return this.#views[slot] = this.bytes.subarray(offset, offset + lengthBytes);
  }
}
