/**
 * What can be seen of a request on its way, as plain values. `--trace=json` prints each as one object a line; the
 * fields here are its documented schema.
 *
 * @module
 */

/** A descriptor as the device read it. */
export interface TraceDescriptor {
  /** Its place in the descriptor table, ring or indirect table. */
  readonly index: number;
  /** Whether that is an indirect table. */
  readonly indirect: boolean;
  /** Guest-physical address; `null` in JSON when it is 2^53 or more. */
  readonly address: number;
  /** Length in bytes. */
  readonly length: number;
  /** VIRTQ_DESC_F_* bits. */
  readonly flags: number;
}

/** A rule that was broken. */
export interface TraceViolation {
  /** Name of the rule that was broken. */
  readonly rule: string;
  /** Where VIRTIO 1.4 says it. */
  readonly section: string;
  /** What the rule asks for, in plain words. */
  readonly expected: string;
  /** What came instead. */
  readonly found: string;
}

/** A run of the disk and where it is stored. */
export interface TraceExtent {
  /** Offset on the disk, in bytes. */
  readonly guestOffset: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** Stored, or reads as zeros, or stored compressed, or not in this image but in what is behind it. */
  readonly kind: "data" | "zero" | "compressed" | "unallocated";
  /** Offset in the storage, for `data` and `compressed`. */
  readonly hostOffset?: number;
}

/** One thing that happened. */
export type TraceEvent =
  /** The driver wrote the device status; `status` is what the register then reads. */
  | { readonly event: "device-status"; readonly written: number; readonly status: number; readonly names: string }
  /** Negotiation ended. */
  | { readonly event: "features"; readonly accepted: readonly string[] }
  /** A queue became ready. */
  | {
    readonly event: "queue";
    readonly queue: number;
    readonly layout: "split" | "packed";
    readonly size: number;
    readonly descAddress: number;
    readonly driverAddress: number;
    readonly deviceAddress: number;
  }
  /** The driver made buffers available; `sent` tells whether it notified the device (an exit) or saw no need to. */
  | { readonly event: "kick"; readonly queue: number; readonly buffers: number; readonly sent: boolean }
  /** The device took a buffer from the ring. */
  | {
    readonly event: "chain";
    readonly queue: number;
    readonly head: number;
    readonly readableBytes: number;
    readonly writableBytes: number;
    readonly descriptors: readonly TraceDescriptor[];
  }
  /** The header was read. */
  | {
    readonly event: "request";
    readonly queue: number;
    readonly head: number;
    readonly kind: string;
    readonly type: number;
    readonly offset: number;
    readonly lengthBytes: number;
  }
  /** Where the image keeps the bytes of a read or write. */
  | {
    readonly event: "extents";
    readonly queue: number;
    readonly head: number;
    readonly extents: readonly TraceExtent[];
  }
  /** The request ended, and its status byte was written. */
  | {
    readonly event: "status";
    readonly queue: number;
    readonly head: number;
    readonly status: number;
    readonly name: string;
    readonly microseconds: number;
  }
  /** The buffer was put into the used ring. */
  | { readonly event: "used"; readonly queue: number; readonly head: number; readonly bytesWritten: number }
  /** A batch of used buffers became visible; `sent` tells whether the driver was notified (an interrupt) or wanted none. */
  | { readonly event: "call"; readonly queue: number; readonly buffers: number; readonly sent: boolean }
  /** The driver handled an interrupt with these reasons. */
  | { readonly event: "interrupt"; readonly usedBuffer: boolean; readonly configChange: boolean }
  /** The driver broke a rule. `consequence` says what became of it. */
  | {
    readonly event: "violation";
    readonly queue?: number;
    readonly head?: number;
    readonly consequence: "request failed" | "device needs reset" | "ignored" | "refused";
    readonly violation: TraceViolation;
    readonly descriptors?: readonly TraceDescriptor[];
  }
  /** The host failed; the guest got S_IOERR. */
  | { readonly event: "host-error"; readonly queue: number; readonly head: number; readonly message: string };

/** Takes events. `null` in its place switches tracing off, at the price of one comparison. */
export type TraceSink = (event: TraceEvent) => void;
