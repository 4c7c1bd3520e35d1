/**
 * `--device PROP=VALUE,...`: what the device offers, in the property names of QEMU's virtio-blk where it has one.
 *
 * @module
 */

import { BLK_DEFAULTS, type BlkOptions, type Lifetime } from "../blk/options.ts";
import { parseSize } from "../image/size.ts";
import { nearest } from "../script/suggest.ts";
import { table } from "../script/table.ts";
import { UsageError } from "./failure.ts";

type Kind = "switch" | "number" | "text" | "lifetime";

interface Row {
  readonly name: string;
  readonly kind: Kind;
  readonly field: keyof BlkOptions;
  readonly description: string;
}

const ROWS: readonly Row[] = [
  // As in QEMU.
  {
    name: "num-queues",
    kind: "number",
    field: "queues",
    description: "number of queues, 1 to 1024; served: 256 at most",
  },
  { name: "queue-size", kind: "number", field: "queueSize", description: "descriptors of each queue, a power of two" },
  { name: "packed", kind: "switch", field: "packed", description: "offer packed rings" },
  { name: "in_order", kind: "switch", field: "inOrder", description: "use buffers in the order they came" },
  { name: "event_idx", kind: "switch", field: "eventIdx", description: "offer EVENT_IDX" },
  { name: "indirect_desc", kind: "switch", field: "indirect", description: "offer indirect descriptors" },
  { name: "queue_reset", kind: "switch", field: "ringReset", description: "offer RING_RESET" },
  { name: "serial", kind: "text", field: "serial", description: "the device ID string, up to 20 characters" },
  { name: "logical_block_size", kind: "number", field: "blockSize", description: "512 to 32768" },
  { name: "physical_block_size", kind: "number", field: "physicalBlockSize", description: "logical or larger" },
  { name: "min_io_size", kind: "number", field: "minIoSize", description: "suggested smallest request, in bytes" },
  { name: "opt_io_size", kind: "number", field: "optIoSize", description: "suggested request, in bytes" },
  { name: "discard", kind: "switch", field: "discard", description: "offer DISCARD" },
  { name: "write-zeroes", kind: "switch", field: "writeZeroes", description: "offer WRITE_ZEROES" },
  { name: "config-wce", kind: "switch", field: "configWce", description: "let the driver switch the cache" },
  { name: "write-cache", kind: "switch", field: "writeback", description: "writes may wait for a flush" },
  // Ours.
  { name: "notification-data", kind: "switch", field: "notificationData", description: "offer NOTIFICATION_DATA" },
  { name: "flush", kind: "switch", field: "flush", description: "offer FLUSH" },
  { name: "secure-erase", kind: "switch", field: "secureErase", description: "offer SECURE_ERASE" },
  { name: "geometry", kind: "switch", field: "geometry", description: "offer GEOMETRY" },
  { name: "topology", kind: "switch", field: "topology", description: "offer TOPOLOGY" },
  { name: "blk-size", kind: "switch", field: "blkSizeOffered", description: "offer BLK_SIZE" },
  { name: "seg-max-limit", kind: "switch", field: "segMaxOffered", description: "offer SEG_MAX" },
  { name: "seg-max", kind: "number", field: "segMax", description: "most data segments of a request" },
  { name: "size-max", kind: "number", field: "sizeMax", description: "most bytes of a segment; 0: no SIZE_MAX" },
  { name: "max-range-sectors", kind: "number", field: "maxRangeSectors", description: "most sectors of a range" },
  { name: "max-ranges", kind: "number", field: "maxRanges", description: "most ranges of a discard and its like" },
  { name: "lifetime", kind: "lifetime", field: "lifetime", description: "PRE:A:B, what GET_LIFETIME reports" },
];

const SWITCH: Readonly<Record<string, boolean>> = {
  on: true,
  yes: true,
  true: true,
  off: false,
  no: false,
  false: false,
};

/** How a value of each kind is read; `undefined` when it can't be. */
const READERS: Readonly<Record<Kind, (text: string) => unknown>> = {
  switch: (text) => Object.hasOwn(SWITCH, text) ? SWITCH[text] : undefined,
  number: (text) => {
    const value = parseSize(text);
    return typeof value === "number" ? value : undefined;
  },
  text: (text) => text,
  lifetime: (text): Lifetime | undefined => {
    const match = /^(\d+):(\d+):(\d+)$/.exec(text);
    if (match === null) return undefined;
    const [preEolInfo, typA, typB] = match.slice(1).map(Number);
    return { preEolInfo, typA, typB };
  },
};

const WANTED: Readonly<Record<Kind, string>> = {
  switch: "on or off",
  number: "a number",
  text: "text",
  lifetime: "three numbers, as in 1:2:3",
};

/**
 * Reads the value of one `--device`.
 *
 * @throws UsageError
 */
export function parseDevice(text: string): Partial<BlkOptions> {
  const options: Record<string, unknown> = {};
  for (const part of text.split(",").filter((part) => part !== "")) {
    const [, name, value] = /^([^=]*)(?:=(.*))?$/s.exec(part)!;
    const row = ROWS.find((row) => row.name === name || row.name === name.replaceAll("_", "-"));
    if (row === undefined) {
      const near = nearest(name, ROWS.map((row) => row.name));
      const hint = near === undefined ? "'--device help' lists them" : `did you mean '${near}'?`;
      throw new UsageError(`--device: the device has no property ${name}`, hint);
    }
    // A property without a value is a switch that is on.
    const read = READERS[row.kind](value ?? (row.kind === "switch" ? "on" : ""));
    if (read === undefined) throw new UsageError(`--device: ${name}=${value ?? ""}: the value is ${WANTED[row.kind]}`);
    options[row.field] = read;
  }
  return options as Partial<BlkOptions>;
}

/** The message of the device about one of its options, with the name that the user knows it by. */
export function inPropertyNames(message: string): string {
  return message.replace(/^device option (\w+)/, (all, field) => {
    const row = ROWS.find((row) => row.field === field);
    return row === undefined ? all : `--device: ${row.name}`;
  });
}

/** What `--device help` prints. */
export function deviceHelp(): string[] {
  const rows = ROWS.map(({ name, kind, field, description }) => {
    const value = BLK_DEFAULTS[field];
    const shown = typeof value === "boolean" ? (value ? "on" : "off") : value === null ? "none" : String(value);
    const example = kind === "switch" ? "on|off" : kind === "lifetime" ? "PRE:A:B" : kind === "text" ? "TEXT" : "N";
    return [`  ${name}=${example}`, shown, description];
  });
  return ["Properties of the device, with what they are when nothing is said:", "", ...table(rows)];
}
