/**
 * Enumeration by replay: a body asks for choices as it goes, and is run once for each sequence of answers. So only
 * what is looked at is enumerated: descriptors that a walk never reaches cost nothing.
 *
 * @module
 */

/** Picks one of the options; each run of the body sees another combination. */
export type Choose = <T>(options: readonly T[]) => T;

/** Runs `body` for every sequence of choices; returns how many there were. */
export function everyChoice(body: (choose: Choose) => void): number {
  const taken: number[] = [];
  const counts: number[] = [];
  for (let runs = 1;; runs++) {
    let depth = 0;
    body((options) => {
      if (depth === taken.length) {
        taken.push(0);
        counts.push(options.length);
      }
      return options[taken[depth++]];
    });
    // The next sequence: the last choice that has another option takes it, and what came behind is forgotten.
    while (taken.length > 0 && taken[taken.length - 1] + 1 === counts[counts.length - 1]) {
      taken.pop();
      counts.pop();
    }
    if (taken.length === 0) return runs;
    taken[taken.length - 1]++;
  }
}
