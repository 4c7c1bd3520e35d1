/**
 * The lines that scripts for qemu-io look for: what was moved, how fast, and the dump of a buffer.
 *
 * @module
 */

import { formatSize } from "../image/size.ts";
import type { Result } from "./command.ts";

/** What a transfer did. */
export interface Transfer {
  /** `read`, `wrote` or `discard`. */
  readonly verb: string;
  readonly offset: number;
  /** Bytes that were asked for; all of them were moved, or there is no report. */
  readonly lengthBytes: number;
  readonly seconds: number;
}

/** How a transfer is reported. */
export interface ReportOptions {
  /** Not at all. */
  readonly quiet?: boolean;
  /** As numbers with commas between. */
  readonly commas?: boolean;
  /** With a dump of these bytes before. */
  readonly dump?: Uint8Array | null;
  /** After these lines, the first of which is why the command failed. */
  readonly failure?: string;
}

/** The result of a transfer. */
export function transferResult(transfer: Transfer, options: ReportOptions): Result {
  const { verb, offset, lengthBytes, seconds } = transfer;
  const { dump, failure } = options;
  const json: Record<string, unknown> = { operation: verb, offset, bytes: lengthBytes, seconds };
  if (dump) json.data = dump;
  return { text: transferLines(transfer, options), json, failure };
}

function* transferLines(transfer: Transfer, { quiet, commas, dump, failure }: ReportOptions): Iterable<string> {
  if (failure !== undefined) yield failure;
  if (quiet) return;
  if (dump) yield* dumpLines(dump, transfer.offset);
  yield* reportLines(transfer, commas ?? false);
}

/** What a command came to, as one object on a line. */
export function jsonLine(command: string, ...fields: Readonly<Record<string, unknown>>[]): string {
  const object = Object.assign({ command }, ...fields);
  return JSON.stringify(object, (_, value) => value instanceof Uint8Array ? hex(value) : value);
}

/** The report: two lines, or one with commas. */
export function reportLines({ verb, offset, lengthBytes, seconds }: Transfer, commas: boolean): string[] {
  // No clock here is fine enough to say that something took no time at all.
  const elapsed = Math.max(seconds, 1e-6);
  const [bytesPerSecond, perSecond] = [lengthBytes / elapsed, 1 / elapsed];
  if (commas) {
    const rates = [bytesPerSecond, perSecond].map((rate) => rate.toFixed(3));
    return [[lengthBytes, 1, formatTime(elapsed, true), ...rates].join(",")];
  }
  return [
    `${verb} ${lengthBytes}/${lengthBytes} bytes at offset ${offset}`,
    `${formatSize(lengthBytes)}, 1 ops; ${formatTime(elapsed, false)} ` +
    `(${formatSize(bytesPerSecond)}/sec and ${perSecond.toFixed(4)} ops/sec)`,
  ];
}

/** `00.12 sec` below a second; `h:mm:ss.ss` from there on, and where columns must line up. */
export function formatTime(seconds: number, fixed: boolean): string {
  if (seconds < 1 && !fixed) return `${seconds.toFixed(2).padStart(5, "0")} sec`;
  const whole = Math.floor(seconds);
  const minutes = String(Math.floor(whole / 60) % 60).padStart(2, "0");
  const rest = (whole % 60 + (seconds - whole)).toFixed(2).padStart(5, "0");
  return `${Math.floor(whole / 3600)}:${minutes}:${rest}`;
}

/** Sixteen bytes a line: offset on the disk, hexadecimal, and what of it is a letter or digit. */
export function* dumpLines(bytes: Uint8Array, offset: number): Iterable<string> {
  for (let at = 0; at < bytes.byteLength; at += 16) {
    const row = bytes.subarray(at, at + 16);
    let numbers = "";
    let letters = "";
    for (const byte of row) {
      numbers += (byte < 16 ? "0" : "") + byte.toString(16) + " ";
      letters += isAlphanumeric(byte) ? String.fromCharCode(byte) : ".";
    }
    yield `${(offset + at).toString(16).padStart(8, "0")}:  ${numbers} ${letters}`;
  }
}

/** Bytes as a string of hexadecimal digits. */
function hex(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.byteLength; at += 4096) {
    text += Array.from(bytes.subarray(at, at + 4096), (byte) => (byte < 16 ? "0" : "") + byte.toString(16)).join("");
  }
  return text;
}

function isAlphanumeric(byte: number): boolean {
  const lower = byte | 0x20;
  return byte >= 0x30 && byte <= 0x39 || byte < 0x80 && lower >= 0x61 && lower <= 0x7a;
}
