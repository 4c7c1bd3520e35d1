/**
 * "Did you mean": the known name that is nearest to what was typed.
 *
 * @module
 */

/**
 * The nearest of `names`, if it is near enough to have been meant: at most one edit for three letters.
 */
export function nearest(typed: string, names: Iterable<string>): string | undefined {
  // Nobody means a name by a text that is much longer, and to compare the two takes time.
  if (typed.length > 64) return undefined;
  const limit = Math.max(1, Math.floor((typed.length + 1) / 3));
  let best: string | undefined;
  let bestDistance = limit + 1;
  for (const name of names) {
    const distance = editDistance(typed.toLowerCase(), name.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [name, distance];
  }
  return best;
}

/** How many letters must be put in, taken out, replaced, or swapped with their neighbour. */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      row[j] = Math.min(row[j - 1] + 1, last[j] + 1, last[j - 1] + (same ? 0 : 1));
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) row[j] = Math.min(row[j], beforeLast[j - 2] + 1);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length];
}
