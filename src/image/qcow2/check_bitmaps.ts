/**
 * Counts what persistent bitmaps take in a file (QEMU's docs/interop/qcow2, "Bitmaps").
 *
 * @module
 */

import { readPadded } from "./check_references.ts";
import { CheckFailure } from "./check_report.ts";
import { offsetOf, type WalkContext } from "./check_l2.ts";
import { readL1 } from "./check_tables.ts";
import type { BitmapDirectory } from "./extensions.ts";

const ENTRY_BYTES = 24;
const TYPE_DIRTY = 1;
const FLAG_IN_USE = 1;
const KNOWN_FLAGS = 3;
/** Limits as in QEMU. */
const TABLE_MAX_ENTRIES = 0x8000000;
const BITMAP_MAX_BYTES = 0x20000000;
const GRANULARITY_BITS = { least: 9, most: 31 } as const;
const NAME_MAX_BYTES = 1023;

interface BitmapTable {
  readonly offset: number;
  readonly entries: number;
}

/**
 * Counts the directory, the tables and their clusters.
 *
 * @throws CheckFailure when they are broken, as then nobody knows what they refer to
 */
export async function walkBitmaps(context: WalkContext, directory: BitmapDirectory): Promise<void> {
  const { references, budget } = context;
  references.add(directory.offset, directory.lengthBytes);
  const tables = await readDirectory(context, directory);
  for (const table of tables) {
    references.add(table.offset, table.entries * 8);
    budget.spend(Math.max(0, Math.min(table.entries, (references.fileBytes - table.offset) / 8)));
    const check = (view: DataView, count: number, visit: (offset: number) => void) => {
      for (let at = 0; at < count * 8; at += 8) {
        const high = view.getUint32(at);
        const low = view.getUint32(at + 4);
        if (high === 0 && low === 0) continue;
        const offset = offsetOf(high, low);
        const allOnes = (low & 1) !== 0 && offset !== 0;
        const reserved = (high & 0xff000000) !== 0 || (low & 0x1fe) !== 0;
        if (reserved || allOnes || offset % references.clusterBytes !== 0) throw broken(context);
        if (offset !== 0) visit(offset);
      }
    };
    // All of a table is looked at before any of it counts, as in QEMU.
    await readL1(context, table, (view, count) => check(view, count, () => {}));
    await readL1(context, table, (view, count) => {
      check(view, count, (offset) => references.add(offset, references.clusterBytes));
    });
  }
}

function broken({ findings }: WalkContext): CheckFailure {
  findings.corruptions++;
  return new CheckFailure("Invalid argument");
}

async function readDirectory(context: WalkContext, directory: BitmapDirectory): Promise<BitmapTable[]> {
  const { storage, references: { fileBytes } } = context;
  const { count, offset, lengthBytes } = directory;
  if (lengthBytes === 0) throw broken(context);
  const bytes = new Uint8Array(lengthBytes);
  await readPadded(storage, fileBytes, offset, bytes);
  const view = new DataView(bytes.buffer);
  const tables: BitmapTable[] = [];
  let at = 0;
  while (at < lengthBytes) {
    if (at + ENTRY_BYTES > lengthBytes || tables.length === count) throw broken(context);
    const next = at + Math.ceil((ENTRY_BYTES + view.getUint16(at + 18) + view.getUint32(at + 20)) / 8) * 8;
    if (next > lengthBytes) throw broken(context);
    const table = readEntry(view, at, context);
    if (table === null) throw broken(context);
    tables.push(table);
    at = next;
  }
  if (tables.length !== count) throw broken(context);
  return tables;
}

/** An entry of the directory; `null` when it breaks a rule. */
function readEntry(view: DataView, at: number, { header, references }: WalkContext): BitmapTable | null {
  const { clusterBytes } = references;
  const offset = Number(view.getBigUint64(at));
  const entries = view.getUint32(at + 8);
  const flags = view.getUint32(at + 12);
  const granularityBits = view.getUint8(at + 17);
  const bytes = entries * clusterBytes;
  const good = entries > 0 && entries <= TABLE_MAX_ENTRIES && offset > 0 && offset % clusterBytes === 0 &&
    granularityBits >= GRANULARITY_BITS.least && granularityBits <= GRANULARITY_BITS.most &&
    (flags & ~KNOWN_FLAGS) === 0 && view.getUint8(at + 16) === TYPE_DIRTY &&
    view.getUint16(at + 18) <= NAME_MAX_BYTES && view.getUint32(at + 20) === 0 && bytes <= BITMAP_MAX_BYTES &&
    ((flags & FLAG_IN_USE) !== 0 || header.sizeBytes <= bytes * 8 * 2 ** granularityBits);
  return good ? { offset, entries } : null;
}
