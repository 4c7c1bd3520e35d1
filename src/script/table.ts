/**
 * Columns that line up.
 *
 * @module
 */

/** Pads cells to the width of their column. Columns without a word on them are aligned left. */
export function table(rows: readonly (readonly string[])[], align: readonly ("left" | "right")[] = []): string[] {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => widths[i] = Math.max(widths[i] ?? 0, cell.length));
  return rows.map((row) =>
    row.map((cell, i) => align[i] === "right" ? cell.padStart(widths[i]) : cell.padEnd(widths[i])).join("  ").trimEnd()
  );
}
