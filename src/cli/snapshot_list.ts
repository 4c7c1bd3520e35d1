/**
 * The table of internal snapshots, as qemu-img prints it.
 *
 * @module
 */

import type { Snapshot } from "../image/qcow2/snapshot_table.ts";
import { humanSize } from "./qemu_text.ts";

/** Head and rows of the table. */
export function snapshotLines(snapshots: readonly Snapshot[]): string[] {
  return [
    row("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"),
    ...snapshots.map(({ id, name, vmStateBytes, dateSeconds, vmClockNanoseconds, icount }) =>
      row(id, name, humanSize(vmStateBytes), date(dateSeconds), clock(vmClockNanoseconds), icount?.toString() ?? "")
    ),
  ];
}

function row(id: string, name: string, size: string, date: string, clock: string, icount: string): string {
  const columns = [padEnd(id, 10), padEnd(name, 17), size.padStart(8), date.padStart(20), clock.padStart(13)];
  return printable(columns.join("") + icount.padStart(11));
}

/** A column and the space behind it. As printf does it, a letter counts as many as it takes bytes in UTF-8. */
function padEnd(text: string, width: number): string {
  return text + " ".repeat(Math.max(1, width - new TextEncoder().encode(text).byteLength));
}

/** A name comes from an image: what could move the cursor is left out. */
function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f]/g, "?");
}

/** Local time. */
function date(seconds: number): string {
  const at = new Date(seconds * 1000);
  const two = (part: number) => String(part).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** How long the guest had been running. */
function clock(nanoseconds: bigint): string {
  const milliseconds = Number(nanoseconds / 1_000_000n);
  const seconds = Math.floor(milliseconds / 1000);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return `${parts.map((part) => String(part).padStart(2, "0")).join(":")}.${
    String(milliseconds % 1000).padStart(3, "0")
  }`;
}
