/**
 * What the benchmarks share: rounds that alternate, medians, tables that align.
 *
 * Times on a shared machine are noise. A figure here is a ratio of two things measured side by side in one
 * process, alternating, and the median over the rounds; the spread is printed beside it.
 *
 * @module
 */

/** The middle value. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** A measured pair: the subject and what it is held against, in one unit, by round. */
export interface Pair {
  readonly subject: readonly number[];
  readonly peer: readonly number[];
}

/** Runs both, alternating which goes first, `rounds` times. */
export async function alternate(
  rounds: number,
  subject: () => number | Promise<number>,
  peer: () => number | Promise<number>,
): Promise<Pair> {
  const pair = { subject: [] as number[], peer: [] as number[] };
  for (let round = 0; round < rounds; round++) {
    const order = round % 2 === 0 ? ["subject", "peer"] as const : ["peer", "subject"] as const;
    for (const who of order) pair[who].push(await (who === "subject" ? subject() : peer()));
  }
  return pair;
}

/** Median of the rounds' ratios subject / peer, with the smallest and the largest. */
export function ratio({ subject, peer }: Pair): { median: number; low: number; high: number } {
  const ratios = subject.map((value, round) => value / peer[round]);
  return { median: median(ratios), low: Math.min(...ratios), high: Math.max(...ratios) };
}

/**
 * A folder that goes away with its scope: in memory where that can be had, since a disk's mood is no part of what is
 * measured.
 */
export async function benchFolder(): Promise<{ path: string } & AsyncDisposable> {
  const path = await Deno.makeTempDir({
    dir: await isFolder("/dev/shm") ? "/dev/shm" : undefined,
    prefix: "vblk-bench-",
  });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

async function isFolder(path: string): Promise<boolean> {
  return (await Deno.stat(path).catch(() => null))?.isDirectory ?? false;
}

/** Prints rows under a heading; numbers to the right. */
export function printTable(heading: string, rows: readonly (readonly string[])[]): void {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  console.log(`\n${heading}`);
  for (const row of rows) {
    console.log("  " + row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  "));
  }
}
