/**
 * Which changes of the disk may be under way together. A write of part of a sector reads the sector and writes it
 * back; whatever else changed it between the two would be lost.
 *
 * @module
 */

interface Change {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  readonly ended: Promise<void>;
}

/** Keeps exclusive changes apart from all others that overlap with them, in the order in which they come. */
export class WriteOrder {
  readonly #underWay = new Set<Change>();
  #exclusives = 0;

  /**
   * Carries out a change of the bytes from `start` up to `end`: at once, unless it has to wait for an earlier one.
   *
   * @param exclusive whether it reads what it then writes back
   */
  async run(start: number, end: number, exclusive: boolean, action: () => Promise<void>): Promise<void> {
    // Nobody waits for a later change, so nobody waits in a circle. Without exclusive ones there is nothing to search.
    const before = exclusive || this.#exclusives > 0 ? this.#conflicts(start, end, exclusive) : [];
    const { promise: ended, resolve } = Promise.withResolvers<void>();
    const change = { start, end, exclusive, ended };
    this.#underWay.add(change);
    if (exclusive) this.#exclusives++;
    try {
      if (before.length > 0) await Promise.all(before);
      await action();
    } finally {
      this.#underWay.delete(change);
      if (exclusive) this.#exclusives--;
      resolve();
    }
  }

  #conflicts(start: number, end: number, exclusive: boolean): Promise<void>[] {
    return [...this.#underWay]
      .filter((other) => (exclusive || other.exclusive) && other.start < end && start < other.end)
      .map(({ ended }) => ended);
  }
}
