/**
 * The driver's request slots: as many as were ever in use at a time, and what is in guest memory of each.
 *
 * @module
 */

import { HEADER_SIZE } from "../blk/blk_layout.ts";
import type { GuestAllocator } from "./allocator.ts";
import { NO_STATUS, RequestSlot } from "./request_slot.ts";

/** What a status byte is before the device writes it: a value that no device sends, so that it shows. */
const UNWRITTEN = 0xff;

/** The slots of one driver. */
export class RequestSlots {
  readonly #allocator: GuestAllocator;
  readonly #all: RequestSlot[] = [];
  readonly #free: RequestSlot[] = [];

  constructor(allocator: GuestAllocator) {
    this.#allocator = allocator;
  }

  /** All slots, by index. */
  get all(): readonly RequestSlot[] {
    return this.#all;
  }

  /** A free slot with an empty element list. */
  take(): RequestSlot {
    const slot = this.#free.pop() ?? this.#newSlot();
    slot.count = 0;
    slot.writableBytes = 0;
    slot.type = -1;
    slot.raw = null;
    slot.queue = 0;
    return slot;
  }

  /** Makes a slot free again. */
  giveBack(slot: RequestSlot): void {
    this.#free.push(slot);
  }

  /** Writes the header of a request, and makes it the first element. */
  begin(slot: RequestSlot, type: number, sector: number): void {
    const { view, guestAddress } = this.#allocator.ram;
    const at = slot.headerAddress - guestAddress;
    slot.type = type;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 0, true);
    view.setUint32(at + 8, sector >>> 0, true);
    view.setUint32(at + 12, Math.floor(sector / 0x1_0000_0000), true);
    slot.addElement(slot.headerAddress, HEADER_SIZE, false);
  }

  /** Makes the status byte the last element. */
  end(slot: RequestSlot): void {
    this.#allocator.ram.bytes[slot.statusAddress - this.#allocator.ram.guestAddress] = UNWRITTEN;
    slot.addElement(slot.statusAddress, 1, true);
  }

  /** The status byte that came back, or `NO_STATUS`. */
  statusOf(slot: RequestSlot): number {
    // §2.7.8.3: nothing is known of bytes beyond the used length, the status byte included.
    if (slot.usedLength < slot.writableBytes) return NO_STATUS;
    const { ram } = this.#allocator;
    const status = ram.bytes[slot.statusAddress - ram.guestAddress];
    return status === UNWRITTEN ? NO_STATUS : status;
  }

  #newSlot(): RequestSlot {
    const slot = new RequestSlot(this.#all.length, this.#allocator.allocate(HEADER_SIZE + 1));
    this.#all.push(slot);
    return slot;
  }
}
