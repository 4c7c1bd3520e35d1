/**
 * The snapshot table (QEMU's docs/interop/qcow2, "Snapshots") as a check looks at it: entry by entry, with what may be
 * broken about them.
 *
 * @module
 */

import type { Storage } from "../../storage/storage.ts";
import { readPadded } from "./check_references.ts";
import { CheckFailure, type Findings } from "./check_report.ts";
import type { Qcow2Header } from "./header.ts";
import { SNAPSHOTS_MAX } from "./qcow2_layout.ts";

/** Fixed part of an entry. */
export const ENTRY_BYTES = 40;
/** Extra data that QEMU knows: size of the machine's state, size of the disk, number of instructions. */
export const KNOWN_EXTRA_BYTES = 24;
/** What version 3 asks for: the first two of them. */
const LEAST_EXTRA_BYTES = 16;
const MOST_EXTRA_BYTES = 1024;
/** Largest table, as in QEMU. */
export const TABLE_MAX_BYTES = 1024 * SNAPSHOTS_MAX;

/** An entry; the bytes are copies. */
export interface SnapshotEntry {
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly fixed: Uint8Array;
  readonly extra: Uint8Array;
  readonly id: Uint8Array;
  readonly name: Uint8Array;
}

/** What was found in the table's place. */
export interface SnapshotTable {
  readonly entries: readonly SnapshotEntry[];
  readonly offset: number;
  /** Length of the entries, in bytes. */
  readonly lengthBytes: number;
  /** Entries at the end that a repair leaves out. */
  readonly dropped: number;
  /** Whether the entries have to be written anew. */
  readonly mustRewrite: boolean;
}

/**
 * Reads the table.
 *
 * @param repairing go on where a repair can help
 * @throws CheckFailure
 */
export async function readSnapshotTable(
  storage: Storage,
  header: Qcow2Header,
  findings: Findings,
  repairing: boolean,
): Promise<SnapshotTable> {
  const offset = header.snapshotsOffset;
  let count = header.snapshotCount;
  let dropped = 0;
  if (count > SNAPSHOTS_MAX) {
    const over = count - SNAPSHOTS_MAX;
    if (!repairing) {
      findings.checkError("vblk: ERROR snapshot table too large");
      findings.say(`You can force-remove all ${over} overhanging snapshots with qemu-img check -r all`);
      throw new CheckFailure("File too large");
    }
    findings.say(`Discarding ${over} overhanging snapshots`);
    dropped = over;
    count = SNAPSHOTS_MAX;
  }
  if (offset % 2 ** header.clusterBits !== 0) {
    findings.checkError("vblk: ERROR snapshot table offset invalid");
    throw new CheckFailure("Invalid argument");
  }
  const reader = new TableReader(storage, offset);
  const entries: SnapshotEntry[] = [];
  let tooMuchExtra = 0;
  let written = 0;
  for (let i = 0; i < count; i++) {
    const start = reader.offset;
    const { entry, extraBytes } = await reader.next();
    if (extraBytes > MOST_EXTRA_BYTES) {
      if (!repairing) throw tooLarge(findings, `Too much extra metadata in snapshot table entry ${i}`, EXTRA_HINT);
      findings.say(
        `Discarding too much extra metadata in snapshot table entry ${i} (${extraBytes} > ${MOST_EXTRA_BYTES})`,
      );
      tooMuchExtra++;
    }
    written = Math.ceil(written / 8) * 8 + ENTRY_BYTES + entry.extra.byteLength + entry.id.byteLength +
      entry.name.byteLength;
    if (written > TABLE_MAX_BYTES || reader.offset - offset > 0x7fffffff) {
      const over = count - i;
      if (!repairing) {
        const hint = `You can force-remove all ${over} overhanging snapshots with qemu-img check -r all`;
        throw tooLarge(findings, "Snapshot table is too big", hint);
      }
      findings.say(`Discarding ${over} overhanging snapshots (snapshot table is too big)`);
      dropped += over;
      reader.offset = start;
      break;
    }
    entries.push(entry);
  }
  findings.corruptions += dropped + tooMuchExtra;
  const incomplete = reportIncomplete(entries, header, findings, repairing);
  const mustRewrite = tooMuchExtra + incomplete > 0;
  return { entries, offset, lengthBytes: entries.length === 0 ? 0 : reader.offset - offset, dropped, mustRewrite };
}

const EXTRA_HINT = "You can force-remove this extra metadata with qemu-img check -r all";

function tooLarge(findings: Findings, what: string, hint: string): CheckFailure {
  findings.checkError(`vblk: ERROR failed to read the snapshot table: ${what}`);
  findings.say(hint);
  return new CheckFailure("File too large");
}

function reportIncomplete(
  entries: readonly SnapshotEntry[],
  { version }: Qcow2Header,
  findings: Findings,
  repairing: boolean,
): number {
  let incomplete = 0;
  if (version < 3) return 0;
  entries.forEach(({ extra }, i) => {
    if (extra.byteLength >= LEAST_EXTRA_BYTES) return;
    incomplete++;
    findings.corruption(`${repairing ? "Repairing" : "ERROR"} snapshot table entry ${i} is incomplete`);
  });
  return incomplete;
}

/** At least the longest name. */
const WINDOW_BYTES = 1 << 16;

/** Reads entries through a window, as nothing says where the table ends. */
class TableReader {
  offset: number;
  readonly #storage: Storage;
  readonly #fileBytes: number;
  readonly #window = new Uint8Array(WINDOW_BYTES);
  #windowOffset = -1;

  constructor(storage: Storage, offset: number) {
    this.#storage = storage;
    this.#fileBytes = storage.sizeBytes;
    this.offset = offset;
  }

  async next(): Promise<{ entry: SnapshotEntry; extraBytes: number }> {
    this.offset = Math.ceil(this.offset / 8) * 8;
    const fixed = await this.#take(ENTRY_BYTES);
    const view = new DataView(fixed.buffer);
    const extraBytes = view.getUint32(36);
    const extra = await this.#take(Math.min(extraBytes, MOST_EXTRA_BYTES));
    this.offset += extraBytes - extra.byteLength;
    const id = await this.#take(view.getUint16(12));
    const name = await this.#take(view.getUint16(14));
    // An offset that no number holds is behind the end of the file in any case.
    const l1Offset = Number(view.getBigUint64(0));
    return { entry: { l1Offset, l1Entries: view.getUint32(8), fixed, extra, id, name }, extraBytes };
  }

  async #take(lengthBytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const window = this.#window;
    const inside = this.#windowOffset >= 0 && this.offset >= this.#windowOffset &&
      this.offset + lengthBytes <= this.#windowOffset + window.byteLength;
    if (!inside) {
      await readPadded(this.#storage, this.#fileBytes, this.offset, window);
      this.#windowOffset = this.offset;
    }
    const from = this.offset - this.#windowOffset;
    this.offset += lengthBytes;
    return window.slice(from, from + lengthBytes);
  }
}

/** The table as a repair writes it: with all extra data that QEMU knows in each entry. */
export function encodeSnapshotTable(entries: readonly SnapshotEntry[], diskBytes: number): Uint8Array<ArrayBuffer> {
  const parts = entries.map((entry) => encodeEntry(entry, diskBytes));
  const bytes = new Uint8Array(parts.reduce((sum, part) => Math.ceil(sum / 8) * 8 + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    at = Math.ceil(at / 8) * 8;
    bytes.set(part, at);
    at += part.byteLength;
  }
  return bytes;
}

function encodeEntry({ fixed, extra, id, name }: SnapshotEntry, diskBytes: number): Uint8Array {
  const known = new Uint8Array(Math.max(KNOWN_EXTRA_BYTES, extra.byteLength));
  known.set(extra);
  const view = new DataView(known.buffer);
  const fixedView = new DataView(fixed.buffer, fixed.byteOffset, fixed.byteLength);
  // What an entry does not say is what readers assume: the state's size is in the fixed part, the disk's is today's.
  if (extra.byteLength < 8) view.setBigUint64(0, BigInt(fixedView.getUint32(32)));
  if (extra.byteLength < 16) view.setBigUint64(8, BigInt(diskBytes));
  if (extra.byteLength < 24) view.setBigUint64(16, 0xffff_ffff_ffff_ffffn);
  const part = new Uint8Array(ENTRY_BYTES + known.byteLength + id.byteLength + name.byteLength);
  part.set(fixed);
  new DataView(part.buffer).setUint32(36, known.byteLength);
  part.set(known, ENTRY_BYTES);
  part.set(id, ENTRY_BYTES + known.byteLength);
  part.set(name, ENTRY_BYTES + known.byteLength + id.byteLength);
  return part;
}

/** A text of an entry for a message: up to a NUL, without what could move a terminal's cursor. */
export function snapshotText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  // deno-lint-ignore no-control-regex
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end)).replace(/[\x00-\x1f\x7f-\x9f]/g, "");
}
