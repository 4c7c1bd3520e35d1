/**
 * What a check of a qcow2 image found: counts, and lines in the words of `qemu-img check`.
 *
 * @module
 */

/** The result of a check or a repair; a plain value. */
export interface CheckReport {
  /** Times that the check itself could not do its work; then the other numbers are incomplete. */
  readonly checkErrors: number;
  /** Damage that is there (still, after a repair). */
  readonly corruptions: number;
  /** Clusters whose refcount is above the number of references: lost space, no harm. */
  readonly leaks: number;
  /** Damage that was repaired. */
  readonly corruptionsFixed: number;
  /** Lost clusters that were given back. */
  readonly leaksFixed: number;
  /** Where the last cluster that is in use ends, in bytes. */
  readonly imageEndOffset: number;
  /** Clusters of the disk. */
  readonly totalClusters: number;
  /** How many of them have a place. */
  readonly allocatedClusters: number;
  /** How many of them are stored compressed. */
  readonly compressedClusters: number;
  /** How many of them do not follow the one before. */
  readonly fragmentedClusters: number;
  /** The first findings, as `qemu-img check` prints them. */
  readonly findings: readonly string[];
  /** Findings that are not among them. */
  readonly findingsLeftOut: number;
  /** Why the check ended early, in the words of strerror(3); `null` when it did not. */
  readonly failure: string | null;
}

/** What whoever has an image checked may say. */
export interface CheckOptions {
  /** Called now and then with the part that is done, 0 to 1. */
  readonly onProgress?: (part: number) => void;
  /** Called for each line that `qemu-img check` would print about a finding, up to a million. */
  readonly onFinding?: (line: string) => void;
}

/** Lines in a report; the callback gets more. */
const KEPT_LINES = 1000;
/** A hostile image may have billions of findings, which nobody would read. */
const MOST_LINES = 1 << 20;

/** The check can't go on; `message` is what strerror(3) says. */
export class CheckFailure extends Error {
  override readonly name = "CheckFailure";
}

/** Counts findings while a check runs. */
export class Findings {
  checkErrors = 0;
  corruptions = 0;
  leaks = 0;
  corruptionsFixed = 0;
  leaksFixed = 0;
  /** While not `null`, lines are put in here too. */
  captured: string[] | null = null;
  readonly lines: string[] = [];
  leftOut = 0;
  readonly #onFinding: ((line: string) => void) | undefined;
  #said = 0;

  constructor(onFinding?: (line: string) => void) {
    this.#onFinding = onFinding;
  }

  say(line: string): void {
    if (this.lines.length < KEPT_LINES) this.lines.push(line);
    else this.leftOut++;
    if (++this.#said > MOST_LINES) return;
    this.#onFinding?.(line);
    this.captured?.push(line);
  }

  /** @param times how many references lead to the place that is damaged: each counts */
  corruption(line: string, times = 1): void {
    this.corruptions += times;
    this.say(line);
  }

  checkError(line: string): void {
    this.checkErrors++;
    this.say(line);
  }
}
