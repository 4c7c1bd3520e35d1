/**
 * Where a request of the driver lives while it is on its way: reused, so that a request allocates nothing.
 *
 * @module
 */

import { HEADER_SIZE } from "../blk/blk_layout.ts";
import type { BufferElement, RawDescriptor } from "./driver_queue.ts";

/** In place of a status: the device returned the buffer, but its used length does not cover a status byte. */
export const NO_STATUS: number = -1;

/** In place of a status: the device was reset, or needs to be, while the request was in flight. */
export const LOST: number = -2;

/** Marks a slot that is not in flight. */
export const IDLE = () => {};

/** A request slot: memory for a header and a status byte, and the list of elements. Reused. */
export class RequestSlot {
  /** Which of the slots it is, from 0. */
  readonly index: number;
  /** Guest-physical address of the 16 bytes of the header. */
  readonly headerAddress: number;
  /** Guest-physical address of the status byte. */
  readonly statusAddress: number;
  /** Header, data and status, in order; only the first `count` are in use. */
  readonly elements: BufferElement[];
  /** Request type, as `begin` wrote it; -1 for a chain made by hand. */
  type: number = -1;
  /** Number of elements in use. */
  count = 0;
  /** Device-writable bytes of all elements. */
  writableBytes = 0;
  /** After completion: the status byte, or `NO_STATUS` or `LOST`. */
  status = 0;
  /** After completion: the used length. */
  usedLength = 0;
  /** The queue that it was submitted to. */
  queue = 0;
  /** Called when the request has ended; `IDLE` while the slot is not in flight. */
  done: (slot: RequestSlot) => void = IDLE;
  /** When it was submitted, in milliseconds. */
  submittedAt = 0;
  /** A chain made by hand, instead of `elements`. */
  raw: { descriptors: readonly RawDescriptor[]; indirect: boolean } | null = null;

  /** Has its header at the guest-physical `headerAddress`, and its status byte right behind. */
  constructor(index: number, headerAddress: number) {
    this.index = index;
    this.headerAddress = headerAddress;
    this.statusAddress = headerAddress + HEADER_SIZE;
    this.elements = [{ address: headerAddress, length: HEADER_SIZE, writable: false }];
  }

  /** Adds an element; data goes between `BlockDriver.begin` and `BlockDriver.end`. */
  addElement(address: number, length: number, writable: boolean): void {
    const element = this.elements[this.count];
    if (element === undefined) {
      this.elements.push({ address, length, writable });
    } else {
      element.address = address;
      element.length = length;
      element.writable = writable;
    }
    this.count++;
    if (writable) this.writableBytes += length;
  }
}
