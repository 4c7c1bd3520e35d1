/**
 * Where an image's metadata is, so that nothing else is ever written over it: refcounts and entries may lie, by
 * accident or by design, and a write that believed them would turn one wrong number into a lost image.
 *
 * @module
 */

/** What a place belongs to, in QEMU's words. */
export type MetadataKind =
  | "qcow2_header"
  | "active L1 table"
  | "active L2 table"
  | "refcount table"
  | "refcount block"
  | "snapshot table"
  | "inactive L1 table"
  | "bitmap directory";

/** A set of clusters that may be large and changes little: sorted numbers, and what has changed since. */
class ClusterSet {
  #sorted: Float64Array = new Float64Array();
  readonly #added = new Set<number>();
  readonly #removed = new Set<number>();

  /** Takes the array over. */
  reset(clusters: Float64Array): void {
    this.#sorted = clusters.sort();
    this.#added.clear();
    this.#removed.clear();
  }

  add(cluster: number): void {
    this.#removed.delete(cluster);
    this.#added.add(cluster);
  }

  remove(cluster: number): void {
    this.#added.delete(cluster);
    this.#removed.add(cluster);
  }

  hasAny(first: number, end: number): boolean {
    if (this.#added.size > 0) {
      for (let cluster = first; cluster < end; cluster++) {
        if (this.#added.has(cluster)) return true;
      }
    }
    for (let i = this.#find(first); i < this.#sorted.length && this.#sorted[i] < end; i++) {
      if (!this.#removed.has(this.#sorted[i])) return true;
    }
    return false;
  }

  /** Position of the first number that is not below `cluster`. */
  #find(cluster: number): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sorted[middle] < cluster) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

interface Range {
  readonly kind: MetadataKind;
  readonly start: number;
  readonly end: number;
}

/** Knows the places of all metadata but inactive L2 tables, which would take long to find. */
export class MetadataMap {
  readonly #clusterBytes: number;
  #ranges: Range[] = [];
  /** Where the ranges before and at each position end at most. */
  #ends: number[] = [];
  readonly #tables: Readonly<Record<"active L2 table" | "refcount block", ClusterSet>> = {
    "active L2 table": new ClusterSet(),
    "refcount block": new ClusterSet(),
  };

  constructor(clusterBytes: number) {
    this.#clusterBytes = clusterBytes;
  }

  /** Replaces all ranges of a kind. Empty ones are left out. */
  setRanges(kind: MetadataKind, places: readonly { readonly offset: number; readonly lengthBytes: number }[]): void {
    const others = this.#ranges.filter((range) => range.kind !== kind);
    const own = places.filter(({ lengthBytes }) => lengthBytes > 0)
      .map(({ offset, lengthBytes }) => ({ kind, start: offset, end: offset + lengthBytes }));
    this.#ranges = [...others, ...own].sort((a, b) => a.start - b.start);
    let end = 0;
    this.#ends = this.#ranges.map((range) => end = Math.max(end, range.end));
  }

  /** Replaces all tables of a kind, each a cluster, by their offsets. */
  setTables(kind: "active L2 table" | "refcount block", offsets: Float64Array): void {
    this.#tables[kind].reset(offsets.map((offset) => Math.floor(offset / this.#clusterBytes)));
  }

  addTable(kind: "active L2 table" | "refcount block", offset: number): void {
    this.#tables[kind].add(Math.floor(offset / this.#clusterBytes));
  }

  removeTable(kind: "active L2 table" | "refcount block", offset: number): void {
    this.#tables[kind].remove(Math.floor(offset / this.#clusterBytes));
  }

  /** What in a range of the file is metadata, but for that of the kind which is to be written; `null` when nothing is. */
  overlap(start: number, lengthBytes: number, own?: MetadataKind): MetadataKind | null {
    const end = start + lengthBytes;
    const range = this.#range(start, end, own);
    if (range !== null) return range;
    const first = Math.floor(start / this.#clusterBytes);
    const last = Math.ceil(end / this.#clusterBytes);
    if (own !== "active L2 table" && this.#tables["active L2 table"].hasAny(first, last)) return "active L2 table";
    if (own !== "refcount block" && this.#tables["refcount block"].hasAny(first, last)) return "refcount block";
    return null;
  }

  #range(start: number, end: number, own: MetadataKind | undefined): MetadataKind | null {
    // Nearly always there is none: then nothing need be looked at one by one.
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ranges[middle].start < end) low = middle + 1;
      else high = middle;
    }
    if (low === 0 || this.#ends[low - 1] <= start) return null;
    for (let i = low - 1; i >= 0 && this.#ends[i] > start; i--) {
      const { kind, end: rangeEnd } = this.#ranges[i];
      if (rangeEnd > start && kind !== own) return kind;
    }
    return null;
  }
}
