/**
 * What the device says about a driver that broke a rule: a value, never an exception, since a hostile or
 * half-written driver is the normal case here.
 *
 * @module
 */

/** A rule of the specification that the other side broke. */
export interface Violation {
  /** Short stable name of the rule, for tests and scripts: `"desc-loop"`. */
  readonly rule: string;
  /** Section of VIRTIO 1.4 that states it. */
  readonly section: string;
  /** What the rule asks, in plain words. */
  readonly expected: string;
  /** What was found instead, with the numbers. */
  readonly found: string;
}

/** A rule without its finding: one row of a table of rules. */
export interface Rule {
  /** Where VIRTIO 1.4 says it. */
  readonly section: string;
  /** What the rule asks for, in plain words. */
  readonly expected: string;
}

/** The printed form: `found; expected (VIRTIO 1.4 §section)`. */
export function formatViolation(violation: Violation): string {
  return `${violation.found}; ${violation.expected} (VIRTIO 1.4 §${violation.section})`;
}
