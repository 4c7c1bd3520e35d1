/**
 * Carries a parsed request out on an image: the checks that §5.2.6 asks for, then one switch on its kind.
 *
 * @module
 */

import { checkedU64 } from "../memory/guest_memory.ts";
import { after, type Completion, type Image } from "../image/image.ts";
import { hasFeature } from "../virtio/features.ts";
import {
  HEADER_SIZE,
  ID_SIZE,
  LIFETIME_SIZE,
  RANGE_F_UNMAP,
  RANGE_SIZE,
  SECTOR_SIZE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_UNSUPP,
} from "./blk_layout.ts";
import type { BlkOptions } from "./options.ts";
import type { BlkRequest, BlkRequestKind } from "./request.ts";
import { type BlkRule, blkViolation } from "./rules.ts";

/** What the device knows that a request depends on. */
export interface BlkContext {
  readonly image: Image;
  readonly options: BlkOptions;
  /** The negotiated features. */
  features: bigint;
  /** Writes must be stable before they complete (§5.2.6.2). */
  writethrough: boolean;
}

const NEEDED_FEATURE: Partial<Record<BlkRequestKind, number>> = {
  getLifetime: VIRTIO_BLK_F_LIFETIME,
  discard: VIRTIO_BLK_F_DISCARD,
  writeZeroes: VIRTIO_BLK_F_WRITE_ZEROES,
  secureErase: VIRTIO_BLK_F_SECURE_ERASE,
};

const ZEROS = new Uint8Array(ID_SIZE);

/**
 * Carries out `request`, which was parsed without violation. A refusal is set in the request; a failure of the
 * host is thrown, or rejects, as `BlockError`.
 */
export function execute(request: BlkRequest, context: BlkContext): Completion {
  const { image } = context;
  switch (request.kind) {
    case "read": {
      if (!checkTransfer(request, request.output.byteLength, image)) return;
      return afterRead(request, image.read(request.offset, request.output));
    }
    case "write": {
      if (context.options.readOnly) return refuseWrite(request);
      if (!checkTransfer(request, request.input.byteLength, image)) return;
      const done = image.write(request.offset, request.input);
      return context.writethrough ? thenFlush(done, image) : done;
    }
    case "flush":
      // Accepted even when FLUSH was not negotiated, as in QEMU: to flush once more can hurt nobody.
      return image.flush();
    case "getId":
      return getId(request, context.options.serial);
    case "getLifetime":
      return getLifetime(request, context);
    case "discard":
    case "writeZeroes":
    case "secureErase":
      return ranges(request, context);
    case "unknown":
      return refuse(request, VIRTIO_BLK_S_UNSUPP, "unknown-type", `the type is ${request.type}`);
  }
}

// A function of its own: a closure in `execute` would make every request, not only this kind, pay for it.
function thenFlush(done: Completion, image: Image): Completion {
  return after(done, () => image.flush());
}

function refuse(request: BlkRequest, status: number, rule: BlkRule, found: string): void {
  request.status = status;
  request.violation = blkViolation(rule, found);
}

function refuseWrite(request: BlkRequest): void {
  // §5.2.6.2: when RO is offered, whether it was accepted or not.
  refuse(request, VIRTIO_BLK_S_IOERR, "read-only", `a ${request.kind} request came`);
}

function checkTransfer(request: BlkRequest, lengthBytes: number, image: Image): boolean {
  const { offset } = request;
  if (lengthBytes % SECTOR_SIZE !== 0) {
    refuse(request, VIRTIO_BLK_S_IOERR, "data-length", `${lengthBytes} bytes of data came`);
    return false;
  }
  // Written so that nothing can overflow.
  if (offset < 0 || offset > image.sizeBytes || lengthBytes > image.sizeBytes - offset) {
    const sector = offset < 0 ? "2^44 or more" : String(offset / SECTOR_SIZE);
    refuse(
      request,
      VIRTIO_BLK_S_IOERR,
      "beyond-capacity",
      `${lengthBytes / SECTOR_SIZE} sectors from sector ${sector}, the capacity is ${image.sizeBytes / SECTOR_SIZE}`,
    );
    return false;
  }
  return true;
}

function afterRead(request: BlkRequest, done: Completion): Completion {
  if (done !== undefined) {
    return done.then(() => {
      request.outputFilled = request.output.byteLength;
    });
  }
  request.outputFilled = request.output.byteLength;
}

function getId(request: BlkRequest, serial: string): void {
  // §5.2.6.1 asks for 20 bytes; like QEMU, a shorter buffer gets what fits, and a longer one zeros behind.
  const id = ZEROS.slice();
  new TextEncoder().encodeInto(serial, id);
  request.outputFilled = request.output.copyFrom(id);
}

function getLifetime(request: BlkRequest, context: BlkContext): void {
  if (!negotiated(request, context)) return;
  if (request.output.byteLength < LIFETIME_SIZE) {
    refuse(request, VIRTIO_BLK_S_IOERR, "lifetime-length", `the buffer takes ${request.output.byteLength} bytes`);
    return;
  }
  const { preEolInfo, typA, typB } = context.options.lifetime!;
  request.outputFilled = request.output.copyFrom(new Uint8Array(Uint16Array.of(preEolInfo, typA, typB).buffer));
}

function negotiated(request: BlkRequest, context: BlkContext): boolean {
  const bit = NEEDED_FEATURE[request.kind];
  if (bit === undefined || hasFeature(context.features, bit)) return true;
  refuse(request, VIRTIO_BLK_S_UNSUPP, "not-negotiated", `a ${request.kind} request came without its feature`);
  return false;
}

/** Discard, write zeroes and secure erase: checks every range before the first is touched. */
function ranges(request: BlkRequest, context: BlkContext): Completion {
  const { image, options } = context;
  if (options.readOnly) return refuseWrite(request);
  if (!negotiated(request, context)) return;
  const { input, kind } = request;
  if (input.byteLength === 0 || input.byteLength % RANGE_SIZE !== 0) {
    return refuse(request, VIRTIO_BLK_S_IOERR, "range-length", `${input.byteLength} bytes of data came`);
  }
  const count = input.byteLength / RANGE_SIZE;
  if (count > options.maxRanges) {
    // As QEMU: more ranges than the device can take is a request that it does not support.
    return refuse(
      request,
      VIRTIO_BLK_S_UNSUPP,
      "too-many-ranges",
      `${count} ranges came, ${options.maxRanges} at most`,
    );
  }
  // Copied out once: what the driver changes later changes nothing (and nothing is checked twice).
  const bytes = new Uint8Array(input.byteLength);
  request.chain.readable.copyTo(bytes, HEADER_SIZE);
  const view = new DataView(bytes.buffer);
  const allowedFlags = kind === "writeZeroes" ? RANGE_F_UNMAP : 0;
  // §5.2.6.2: an unknown flag in any range decides, whatever else is wrong; so all flags are looked at first.
  for (let i = 0; i < count; i++) {
    const { flags } = rangeAt(view, i);
    if (flags & ~allowedFlags) {
      const found = `range ${i} of a ${kind} has flags 0x${flags.toString(16)}`;
      return refuse(request, VIRTIO_BLK_S_UNSUPP, "range-flags", found);
    }
  }
  for (let i = 0; i < count; i++) {
    const { sector, sectors } = rangeAt(view, i);
    if (sectors > options.maxRangeSectors) {
      const found = `range ${i} has ${sectors} sectors, ${options.maxRangeSectors} at most`;
      return refuse(request, VIRTIO_BLK_S_IOERR, "range-too-long", found);
    }
    const capacity = image.sizeBytes / SECTOR_SIZE;
    if (sector > capacity || sectors > capacity - sector) {
      const found = `range ${i} has ${sectors} sectors from sector ${sector}, the capacity is ${capacity}`;
      return refuse(request, VIRTIO_BLK_S_IOERR, "beyond-capacity", found);
    }
  }
  const run = (i: number): Completion => {
    for (; i < count; i++) {
      const { sector, sectors, flags } = rangeAt(view, i);
      const offset = sector * SECTOR_SIZE;
      const length = sectors * SECTOR_SIZE;
      const done = kind === "discard"
        ? image.discard(offset, length)
        : image.writeZeroes(offset, length, (flags & RANGE_F_UNMAP) !== 0);
      const next = i + 1;
      if (done !== undefined) return done.then(() => run(next));
    }
  };
  // A secure erase that waited in a cache would not be one.
  const stable = context.writethrough || kind === "secureErase";
  return stable ? thenFlush(run(0), image) : run(0);
}

function rangeAt(view: DataView, i: number): { sector: number; sectors: number; flags: number } {
  const at = i * RANGE_SIZE;
  return {
    sector: checkedU64(view.getUint32(at, true), view.getUint32(at + 4, true)),
    sectors: view.getUint32(at + 8, true),
    flags: view.getUint32(at + 12, true),
  };
}
