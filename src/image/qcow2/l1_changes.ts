/**
 * Changes of the L1 table, which reach the file behind the L2 tables that they refer to (see write_back.ts).
 *
 * @module
 */

import type { Qcow2Mapping } from "./mapping.ts";
import type { Qcow2File } from "./qcow2_file.ts";

/** L1 entries are written in units that no crash tears. */
const L1_SECTOR_BYTES = 512;

/** The entries that differ from the file. */
export class L1Changes {
  readonly #file: Qcow2File;
  readonly #mapping: Qcow2Mapping;
  readonly #dirty = new Set<number>();
  /** Those of them whose L2 tables nothing in the file can refer to yet. */
  readonly #new = new Set<number>();

  constructor(file: Qcow2File, mapping: Qcow2Mapping) {
    this.#file = file;
    this.#mapping = mapping;
  }

  /** Number of entries that differ. */
  get count(): number {
    return this.#dirty.size;
  }

  /** The indexes of entries that differ. */
  indexes(): number[] {
    return [...this.#dirty];
  }

  /** Whether nothing in the file can refer to the L2 table of an entry. */
  isNew(index: number): boolean {
    return this.#new.has(index);
  }

  /** Changes an entry, in memory. */
  set(index: number, tableOffset: number, copied: boolean): void {
    this.#mapping.setTableOffset(index, tableOffset, copied);
    this.#dirty.add(index);
  }

  /** Has an entry refer to a table that is not in the file yet. */
  setNew(index: number, tableOffset: number): void {
    this.set(index, tableOffset, true);
    this.#new.add(index);
  }

  /** Writes entries to the file. All L2 tables are there. */
  async write(indexes: readonly number[]): Promise<void> {
    // From here on the file may refer to them, even if what follows fails.
    this.#new.clear();
    const { l1 } = this.#mapping;
    const sectors = new Set(indexes.map((index) => Math.floor(index * 8 / L1_SECTOR_BYTES)));
    for (const sector of [...sectors].sort((a, b) => a - b)) {
      const from = sector * L1_SECTOR_BYTES;
      const length = Math.min(L1_SECTOR_BYTES, l1.byteLength - from);
      const bytes = new Uint8Array(l1.buffer, l1.byteOffset + from, length);
      await this.#file.event("l1_update");
      await this.#file.write("active L1 table", this.#file.header.l1Offset + from, bytes);
    }
  }

  /** What was written is on stable storage. */
  settle(indexes: readonly number[]): void {
    for (const index of indexes) this.#dirty.delete(index);
  }
}
