/**
 * How `chain` is told what to send: a word for each descriptor, which says what it is for, and overrides for what
 * it shall get wrong.
 *
 * @module
 */

import {
  HEADER_SIZE,
  RANGE_SIZE,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from "../blk/blk_layout.ts";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../virtio/virtqueue/split_layout.ts";
import { readInteger, readPattern, readSize } from "./arguments.ts";
import { CommandError } from "./command.ts";

/** One element of a chain: a piece of guest memory, and the descriptor for it. */
export interface ChainElement {
  /** What the user called it, for the report. */
  readonly label: string;
  /** What device-readable memory holds; `null` for device-writable memory. */
  readonly bytes: Uint8Array | null;
  readonly lengthBytes: number;
  /** Whether its last byte is where the status is looked for. */
  readonly isStatus: boolean;
  /** Fields of the descriptor that shall not be what they should. */
  readonly override: { address?: bigint; length?: number; flags?: number; next?: number };
}

/** Request types by the words for a header. */
export const HEADERS: Readonly<Record<string, number>> = {
  read: VIRTIO_BLK_T_IN,
  write: VIRTIO_BLK_T_OUT,
  flush: VIRTIO_BLK_T_FLUSH,
  id: VIRTIO_BLK_T_GET_ID,
  lifetime: VIRTIO_BLK_T_GET_LIFETIME,
  discard: VIRTIO_BLK_T_DISCARD,
  zeroes: VIRTIO_BLK_T_WRITE_ZEROES,
  erase: VIRTIO_BLK_T_SECURE_ERASE,
};

const FLAGS: Readonly<Record<string, number>> = {
  NEXT: VIRTQ_DESC_F_NEXT,
  WRITE: VIRTQ_DESC_F_WRITE,
  INDIRECT: VIRTQ_DESC_F_INDIRECT,
};

/** The largest element; a chain may not use up the guest's memory. */
const MAX_ELEMENT_BYTES = 16 << 20;

/**
 * Reads the word for one element. `cut` makes several of one.
 *
 * @throws CommandError
 */
export function parseElement(text: string, word: number): ChainElement[] {
  const [what, ...options] = text.split(",");
  const element = { label: what, isStatus: false, ...parseWhat(what, word) };
  const override: ChainElement["override"] = {};
  let cuts: number[] | null = null;
  for (const option of options) {
    const [, key, value] = /^([^=]*)=?(.*)$/s.exec(option)!;
    if (key === "cut") cuts = value.split("+").map((part) => readSize(part, word));
    else if (Object.hasOwn(OVERRIDES, key)) Object.assign(override, OVERRIDES[key](value, word));
    else fail(`${option} is not an override: ${[...Object.keys(OVERRIDES), "cut"].join(", ")}`, word);
  }
  if (cuts === null) return [{ ...element, override }];
  if (Object.keys(override).length > 0) fail("cut goes with no other override", word);
  return cutElement({ ...element, override }, cuts, word);
}

type Override = (value: string, word: number) => ChainElement["override"];

const OVERRIDES: Readonly<Record<string, Override>> = {
  addr: (value, word) => ({ address: readBig(value, word) }),
  len: (value, word) => ({ length: readBelow(value, word, 32) }),
  flags: (value, word) => ({ flags: readFlags(value, word) }),
  next: (value, word) => ({ next: readBelow(value, word, 16) }),
};

type Element = Pick<ChainElement, "bytes" | "lengthBytes"> & { isStatus?: boolean };

function parseWhat(what: string, word: number): Element {
  const [kind, ...rest] = what.split(":");
  const parts = (least: number, most: number) => {
    if (rest.length < least || rest.length > most) fail(`${what}: see 'help chain'`, word);
    return rest;
  };
  if (Object.hasOwn(HEADERS, kind)) {
    const [sector = "0"] = parts(0, 1);
    return header(HEADERS[kind], readBig(sector, word));
  }
  switch (kind) {
    case "type": {
      const [type, sector = "0"] = parts(1, 2);
      return header(readBelow(type, word, 32), readBig(sector, word));
    }
    case "r": {
      const [, length, pattern] = /^([^=]*)=?(.*)$/s.exec(parts(1, 1)[0])!;
      const lengthBytes = readLength(length, word);
      return {
        bytes: new Uint8Array(lengthBytes).fill(pattern === "" ? 0xcd : readPattern(pattern, word)),
        lengthBytes,
      };
    }
    case "w":
      return { bytes: null, lengthBytes: readLength(parts(1, 1)[0], word) };
    case "hex": {
      const [digits] = parts(1, 1);
      if (!/^([0-9a-f]{2})+$/i.test(digits)) fail(`${digits} is not pairs of hexadecimal digits`, word);
      const bytes = Uint8Array.from(digits.match(/../g)!, (pair) => parseInt(pair, 16));
      return { bytes, lengthBytes: bytes.byteLength };
    }
    case "range": {
      const [sector, count, flags = "0"] = parts(2, 3);
      const view = new DataView(new ArrayBuffer(RANGE_SIZE));
      view.setBigUint64(0, readBig(sector, word), true);
      view.setUint32(8, readBelow(count, word, 32), true);
      view.setUint32(12, readBelow(flags, word, 32), true);
      return { bytes: new Uint8Array(view.buffer), lengthBytes: RANGE_SIZE };
    }
    case "status":
      parts(0, 0);
      return { bytes: null, lengthBytes: 1, isStatus: true };
    default:
      return fail(`${kind} is no element of a chain: see 'help chain'`, word);
  }
}

function header(type: number, sector: bigint): Element {
  const view = new DataView(new ArrayBuffer(HEADER_SIZE));
  view.setUint32(0, type, true);
  view.setBigUint64(8, sector, true);
  return { bytes: new Uint8Array(view.buffer), lengthBytes: HEADER_SIZE };
}

function cutElement(element: ChainElement, cuts: readonly number[], word: number): ChainElement[] {
  const { bytes, lengthBytes, label } = element;
  const pieces: ChainElement[] = [];
  let at = 0;
  for (const cut of [...cuts, Infinity]) {
    const length = Math.min(cut, lengthBytes - at);
    if (length <= 0) break;
    pieces.push({
      ...element,
      label: `${label}[${at}..${at + length}]`,
      bytes: bytes?.subarray(at, at + length) ?? null,
      lengthBytes: length,
    });
    at += length;
  }
  if (pieces.length < 2) fail(`${label}: there is nothing to cut`, word);
  return pieces;
}

function readLength(text: string, word: number): number {
  const length = readSize(text, word);
  if (length > MAX_ELEMENT_BYTES) fail(`${text}: an element has at most 16 MiB; ,len= can claim more`, word);
  return length;
}

function readBelow(text: string, word: number, bits: number): number {
  const value = readInteger(text);
  if (value === null || value < 0 || value >= 2 ** bits) fail(`${text} is not a number of ${bits} bits`, word);
  return value!;
}

function readBig(text: string, word: number): bigint {
  if (!/^(0x[0-9a-f]+|\d+)$/i.test(text) || BigInt(text) >= 1n << 64n) fail(`${text} is not a number of 64 bits`, word);
  return BigInt(text);
}

function readFlags(text: string, word: number): number {
  const number = readInteger(text);
  if (number !== null) return readBelow(text, word, 16);
  return text.split(/[|+]/).reduce((flags, name) => {
    const flag = FLAGS[name.toUpperCase()];
    if (flag === undefined) fail(`${name} is no flag: ${Object.keys(FLAGS).join(", ")}, or a number`, word);
    return flags | flag;
  }, 0);
}

function fail(message: string, word: number): never {
  throw new CommandError(message, { word });
}
