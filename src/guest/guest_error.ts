/**
 * How a request of the guest can fail.
 *
 * @module
 */

import { statusName } from "../blk/blk_layout.ts";
import { LOST, NO_STATUS } from "./request_slot.ts";

/** A request ended badly. */
export class GuestIoError extends Error {
  /** Always `"GuestIoError"`: what a stack trace begins with. */
  override readonly name = "GuestIoError";
  /** What was asked for. */
  readonly operation: string;
  /** The status byte; `null` when the device wrote none, or was reset. */
  readonly status: number | null;

  /** Of the status byte, or of `NO_STATUS` or `LOST`. */
  constructor(operation: string, status: number) {
    const why = status === LOST
      ? "the device was reset, or needs to be"
      : status === NO_STATUS
      ? "the device wrote no status"
      : `S_${statusName(status)}`;
    super(`${operation} failed: ${why}`);
    this.operation = operation;
    this.status = status < 0 ? null : status;
  }
}

/** A range outside the disk, or a request that the driver must not send. */
export class GuestRangeError extends RangeError {
  /** Always `"GuestRangeError"`: what a stack trace begins with. */
  override readonly name = "GuestRangeError";
}
