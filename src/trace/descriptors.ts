/**
 * The printed form of descriptors.
 *
 * @module
 */

import type { TraceDescriptor } from "./events.ts";

const FLAGS: readonly (readonly [bit: number, name: string])[] = [
  [1, "NEXT"],
  [2, "WRITE"],
  [4, "INDIRECT"],
  [1 << 7, "AVAIL"],
  [1 << 15, "USED"],
];

/** The names of the flags that are set, and what is left as a number. */
export function flagNames(flags: number): string {
  let rest = flags;
  const names: string[] = [];
  for (const [bit, name] of FLAGS) {
    if (!(rest & bit)) continue;
    names.push(name);
    rest &= ~bit;
  }
  if (rest !== 0) names.push(`0x${rest.toString(16)}`);
  return names.join("|") || "0";
}

/** More lines than this are of no use to anybody. */
const SHOWN = 16;

/**
 * A line for each descriptor, in columns: where it was read from, address, length, direction, flags. A chain that
 * loops is shown once round, a very long one in part.
 */
export function descriptorLines(descriptors: readonly TraceDescriptor[]): string[] {
  const again = loopEnd(descriptors);
  const round = again < 0 ? descriptors : descriptors.slice(0, again);
  const shown = round.slice(0, SHOWN);
  const cells = shown.map((descriptor) => {
    const { address, length, flags } = descriptor;
    return [
      place(descriptor),
      Number.isFinite(address) ? `0x${address.toString(16)}` : "2^53 or more",
      String(length),
      flags & 4 ? "an indirect table" : flags & 2 ? "device-writable" : "device-readable",
      flagNames(flags),
    ];
  });
  const width = (column: number) => Math.max(...cells.map((row) => row[column].length));
  const widths = [0, 1, 2, 3].map(width);
  const lines = cells.map((row) =>
    `${row[0].padEnd(widths[0])}  ${row[1].padEnd(widths[1])}  ${row[2].padStart(widths[2])} bytes  ` +
    `${row[3].padEnd(widths[3])}  ${row[4]}`
  );
  if (shown.length < round.length) lines.push(`... and ${round.length - shown.length} more`);
  if (again >= 0) lines.push(`${place(descriptors[again])} again: the chain has a loop`);
  return lines;
}

/** Where the first descriptor stands that was there before; -1 when none was. */
function loopEnd(descriptors: readonly TraceDescriptor[]): number {
  const seen = new Set<string>();
  return descriptors.findIndex((descriptor) => seen.size === seen.add(place(descriptor)).size);
}

function place({ index, indirect }: TraceDescriptor): string {
  return `${indirect ? "table" : "desc"}[${index}]`;
}
