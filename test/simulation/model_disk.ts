/**
 * The disk that a test expects: for each sector what was written to it and when, so that it can say what a reader may
 * find, now or after a crash. Sectors are told apart by tags (sectors.ts).
 */

import { SECTOR, TORN } from "./sectors.ts";

/** A value that was given to something. */
interface Version {
  /** Any of these. */
  readonly values: readonly number[];
  /** When a reader found which of them it is. */
  settled?: number;
  readonly begun: number;
  /** Infinity while it is under way, and when it failed: then it may have happened or not, to any part. */
  ended: number;
}

/** A snapshot that was taken. */
interface ModelSnapshot {
  readonly name: string;
  readonly begun: number;
  ended: number;
  deleteBegun: number;
  deleteEnded: number;
  /** What each sector may hold. */
  readonly sectors: readonly (readonly number[])[];
}

/** An operation on the model that is under way. */
export interface Change {
  /** It was successful. */
  end(): void;
}

/** What is expected. */
export class ModelDisk {
  readonly snapshots: ModelSnapshot[] = [];
  readonly #clock: () => number;
  readonly #sectors: Version[][] = [];
  readonly #sizes: Version[];
  #lastTag = 0;
  /** Operations on snapshots as a whole. */
  readonly #windows: { begun: number; ended: number }[] = [];
  readonly #flushes: { begun: number; ended: number }[] = [];

  /** A disk that was there before the clock started. */
  constructor(tags: ArrayLike<number>, clock: () => number) {
    this.#clock = clock;
    for (let i = 0; i < tags.length; i++) this.#sectors.push([first(tags[i])]);
    this.#sizes = [first(tags.length * SECTOR)];
  }

  /** The size of the disk, in bytes; while a change of it is in doubt, the one before. */
  get sizeBytes(): number {
    return this.#sizes.findLast((version) => version.ended < Infinity)!.values[0];
  }

  /** The first of so many tags that nobody has had. */
  newTags(count: number): number {
    this.#lastTag += count;
    return this.#lastTag - count + 1;
  }

  /** Tells of the size that an image was found to have after a resize that failed. */
  settleSize(sizeBytes: number): void {
    if (!this.sizes().includes(sizeBytes)) throw new Error(`the size is ${sizeBytes}, not one of ${this.sizes()}`);
    if (sizeBytes !== this.sizeBytes) this.resize(sizeBytes).end();
  }

  /** New values for sectors from `offset` on: `values(i)` are those that sector `i` of the range may have. */
  change(offset: number, lengthBytes: number, values: (index: number) => readonly number[]): Change {
    const begun = this.#clock();
    const versions: Version[] = [];
    for (let i = 0; i < lengthBytes / SECTOR; i++) {
      const version = { values: values(i), begun, ended: Infinity };
      (this.#sectors[offset / SECTOR + i] ??= []).push(version);
      versions.push(version);
    }
    return { end: () => this.#end(versions) };
  }

  /** The sectors may keep what they have, or read as zeros, or as `others` says. */
  discard(offset: number, lengthBytes: number, others: (sector: number) => readonly number[] = () => []): Change {
    return this.change(offset, lengthBytes, (i) => {
      const sector = offset / SECTOR + i;
      return [...new Set([...this.expected(sector), 0, ...others(sector)])];
    });
  }

  /** Sectors that are new read as zeros. */
  resize(sizeBytes: number): Change {
    const grown = this.change(this.sizeBytes, Math.max(0, sizeBytes - this.sizeBytes), () => [0]);
    const version: Version = { values: [sizeBytes], begun: this.#clock(), ended: Infinity };
    this.#sizes.push(version);
    return {
      end: () => {
        grown.end();
        this.#end([version]);
      },
    };
  }

  /** What had ended before the flush began is certain when it has ended. */
  flush(): Change {
    const begun = this.#clock();
    return { end: () => void this.#flushes.push({ begun, ended: this.#clock() }) };
  }

  /** The machine crashes now: what is not certain may be as it was, or not. */
  crash(): void {
    const tick = this.#clock();
    const frozen = (values: readonly number[]): Version[] => [{ values, begun: 0, ended: 0 }];
    for (let i = 0; i < this.#sectors.length; i++) this.#sectors[i] = frozen(this.expected(i, tick));
    this.#sizes.splice(0, this.#sizes.length, ...frozen(this.sizes(tick)));
  }

  createSnapshot(name: string): Change {
    const count = this.sizeBytes / SECTOR;
    const sectors = Array.from({ length: count }, (_, sector) => this.expected(sector));
    const never = { ended: Infinity, deleteBegun: Infinity, deleteEnded: Infinity };
    const snapshot = { name, begun: this.#clock(), ...never, sectors };
    this.snapshots.push(snapshot);
    return this.#inWindow({ end: () => void (snapshot.ended = this.#clock()) });
  }

  deleteSnapshot(name: string): Change {
    const snapshot = this.#find(name);
    snapshot.deleteBegun = this.#clock();
    return this.#inWindow({ end: () => void (snapshot.deleteEnded = this.#clock()) });
  }

  /** Names of snapshots that are there. */
  get snapshotNames(): string[] {
    return this.snapshots.filter((s) => s.ended < Infinity && s.deleteBegun === Infinity).map((s) => s.name);
  }

  applySnapshot(name: string): Change {
    const { sectors } = this.#find(name);
    const resized = this.resize(sectors.length * SECTOR);
    const changed = this.change(0, sectors.length * SECTOR, (i) => sectors[i]);
    return this.#inWindow({
      end: () => {
        resized.end();
        changed.end();
      },
    });
  }

  /** Whether an operation on snapshots was under way. */
  isInSnapshotOperation(tick: number): boolean {
    return this.#windows.some(({ begun, ended }) => begun <= tick && tick <= ended);
  }

  /** What a sector may hold: now, or after a crash at `tick`. */
  expected(sector: number, tick?: number): readonly number[] {
    return allowed(this.#sectors[sector] ?? [], ...this.#horizon(tick));
  }

  /** What the disk holds, or a snapshot; there must be no doubt. */
  tags(snapshot?: string): number[] {
    const count = this.sizeBytes / SECTOR;
    const sectors = snapshot === undefined
      ? Array.from({ length: count }, (_, sector) => this.expected(sector))
      : this.#find(snapshot).sectors;
    return sectors.map((values, sector) => {
      if (values.length !== 1) throw new Error(`sector ${sector} may hold any of ${values}`);
      return values[0];
    });
  }

  /** Sizes that the disk may have. */
  sizes(tick?: number): readonly number[] {
    return allowed(this.#sizes, ...this.#horizon(tick));
  }

  /** How many promises had been made: a flush or a snapshot is one. */
  epoch(tick: number): number {
    const kept = this.#flushes.filter((flush) => flush.ended <= tick).length;
    return kept + this.snapshots.filter((s) => s.ended <= tick).length +
      this.snapshots.filter((s) => s.deleteEnded <= tick).length;
  }

  /** Compares what was read from `offset` on; with `settle`, what was found is what must be found again. */
  check(offset: number, tags: Int32Array, options: { tick?: number; settle?: boolean } = {}): void {
    const horizon = this.#horizon(options.tick);
    for (let i = 0; i < tags.length; i++) {
      const sector = offset / SECTOR + i;
      const values = allowed(this.#sectors[sector] ?? [], ...horizon);
      if (!values.includes(tags[i])) throw new Error(describe(sector, tags[i], values));
      if (options.settle && values.length > 1) this.#settle(sector, tags[i]);
    }
  }

  /** Sectors of a snapshot, as they were found. */
  checkSnapshot(name: string, tags: Int32Array): void {
    const { sectors } = this.#find(name);
    if (tags.length !== sectors.length) throw new Error(`snapshot ${name} has ${tags.length} sectors`);
    for (let i = 0; i < tags.length; i++) {
      if (!sectors[i].includes(tags[i])) throw new Error(`snapshot ${name}: ${describe(i, tags[i], sectors[i])}`);
    }
  }

  /** Names that must, and that may, be there: now, or after a crash. */
  snapshotsAt(tick = Number.MAX_SAFE_INTEGER): { must: string[]; may: string[] } {
    const may = this.snapshots.filter((s) => s.begun <= tick && s.deleteEnded > tick);
    const must = may.filter((s) => s.ended <= tick && s.deleteBegun > tick);
    return { must: must.map((s) => s.name), may: may.map((s) => s.name) };
  }

  #inWindow(change: Change): Change {
    const window = { begun: this.#clock(), ended: Infinity };
    this.#windows.push(window);
    return {
      end: () => {
        change.end();
        window.ended = this.#clock();
      },
    };
  }

  #find(name: string): ModelSnapshot {
    return this.snapshots.findLast((snapshot) => snapshot.name === name)!;
  }

  #end(versions: readonly Version[]): void {
    const ended = this.#clock();
    for (const version of versions) version.ended = ended;
  }

  #settle(sector: number, tag: number): void {
    const versions = this.#sectors[sector];
    const last = versions.at(-1)!;
    if (last.ended < Infinity) last.settled = tag;
    // Something failed, and this is what came of it.
    else versions.push({ values: [tag], begun: last.begun, ended: this.#clock() });
  }

  /** Until when versions are certain, and from when on they are the future. */
  #horizon(tick: number | undefined): [certain: number, tick: number] {
    if (tick === undefined) return [Infinity, Infinity];
    let certain = 0;
    for (const { begun, ended } of this.#flushes) if (ended <= tick) certain = Math.max(certain, begun);
    return [certain, tick];
  }
}

function first(value: number): Version {
  return { values: [value], begun: 0, ended: 0 };
}

/** The last version that is certain, or any later one that had begun. */
function allowed(versions: readonly Version[], certain: number, tick: number): readonly number[] {
  const last = versions.findLastIndex(({ ended }) => ended < Infinity && ended <= certain);
  const later = versions.slice(last + 1).filter(({ begun }) => begun <= tick);
  const base = last < 0 ? [0] : versions[last].settled === undefined ? versions[last].values : [versions[last].settled];
  return later.length === 0 ? base : [...new Set([base, ...later.map(({ values }) => values)].flat())];
}

function describe(sector: number, tag: number, values: readonly number[]): string {
  const found = tag === TORN ? "nothing that was ever written" : `0x${tag.toString(16)}`;
  return `sector ${sector} (offset ${sector * SECTOR}) holds ${found}; expected ${
    values.map((value) => `0x${value.toString(16)}`).join(" or ")
  }`;
}
