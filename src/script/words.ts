/**
 * A command line cut into words, each with the place where it stood, so that a message can point at it.
 *
 * @module
 */

/** One word of a line. */
export interface Word {
  readonly text: string;
  /** Column of its first character, counted from 1. */
  readonly column: number;
}

/**
 * Cuts a line at blanks, as qemu-io does: there are no quotes and no escapes. A tab cuts as well, and so does the
 * carriage return that an editor on another system may have left at the end of the line.
 */
export function splitWords(line: string): Word[] {
  return [...line.matchAll(/[^ \t\r]+/g)].map((match) => ({ text: match[0], column: match.index + 1 }));
}
