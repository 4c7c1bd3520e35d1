/**
 * A small check of qcow2 files, for every state that a simulation comes through: by the text of the format, and not with
 * the code under test. It counts references to clusters and compares them with the refcounts.
 *
 * The file is a sound image's, or nearly: nothing is done against hostile ones but to stop.
 */

/** What was found. */
export interface Audit {
  /** Wrong in a way that can lose data. */
  readonly errors: string[];
  /** Flags "refcount is one" that do not fit the refcount; not among the errors. */
  readonly wrongFlags: string[];
  /** Clusters that are counted and not used. */
  readonly leaks: number;
  /** The dirty bit: refcounts may be stale, and were not looked at. */
  readonly dirty: boolean;
}

/** Checks a file. */
export function audit(bytes: Uint8Array): Audit {
  return new Auditor(bytes).run();
}

class Auditor {
  readonly #view: DataView;
  readonly #errors: string[] = [];
  readonly #wrongFlags: string[] = [];
  readonly #clusterBits: number;
  readonly #clusterBytes: number;
  readonly #refcountBits: number;
  readonly #entryBytes: number;
  readonly #externalData: boolean;
  readonly #dirty: boolean;
  readonly #used = new Map<number, number>();
  readonly #blocks: number[] = [];

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const old = this.#u32(4) === 2;
    const incompatible = old ? 0 : this.#u32(76);
    this.#clusterBits = this.#u32(20);
    this.#clusterBytes = 2 ** this.#clusterBits;
    this.#refcountBits = old ? 16 : 2 ** this.#u32(96);
    this.#dirty = (incompatible & 1) !== 0;
    this.#externalData = (incompatible & 4) !== 0;
    this.#entryBytes = (incompatible & 16) !== 0 ? 16 : 8;
    if ((incompatible & 2) !== 0) this.#errors.push("it is marked corrupt");
  }

  run(): Audit {
    this.#use(0, this.#clusterBytes, "header");
    this.#readRefcounts();
    this.#readTables(this.#offset(40), this.#u32(36), true);
    this.#readSnapshots();
    const leaks = this.#dirty ? 0 : this.#compare();
    return { errors: this.#errors, wrongFlags: this.#wrongFlags, leaks, dirty: this.#dirty };
  }

  #readRefcounts(): void {
    const at = this.#offset(48);
    const lengthBytes = this.#u32(56) * this.#clusterBytes;
    this.#use(at, lengthBytes, "refcount table");
    for (let i = 0; i < lengthBytes && at + i < this.#view.byteLength; i += 8) {
      const block = this.#offset(at + i);
      this.#blocks.push(block);
      if (block !== 0) this.#use(block, this.#clusterBytes, "refcount block");
    }
  }

  #readSnapshots(): void {
    let at = this.#offset(64);
    const start = at;
    for (let left = this.#u32(60); left > 0 && at < this.#view.byteLength; left--) {
      this.#readTables(this.#offset(at), this.#u32(at + 8), false);
      const lengthBytes = 40 + this.#u32(at + 36) + this.#view.getUint16(at + 12) + this.#view.getUint16(at + 14);
      at += Math.ceil(lengthBytes / 8) * 8;
    }
    if (at > start) this.#use(start, at - start, "snapshot table");
  }

  #readTables(l1: number, entries: number, active: boolean): void {
    this.#use(l1, entries * 8, "L1 table");
    for (let i = 0; i < entries && l1 + i * 8 < this.#view.byteLength; i++) {
      const table = this.#offset(l1 + i * 8);
      if (table === 0) continue;
      this.#use(table, this.#clusterBytes, "L2 table");
      if (active) this.#checkFlag(l1 + i * 8, table, "L1 entry");
      if (table + this.#clusterBytes > this.#view.byteLength) continue;
      for (let k = 0; k < this.#clusterBytes; k += this.#entryBytes) this.#readEntry(table + k, active);
    }
  }

  #readEntry(at: number, active: boolean): void {
    const high = this.#u32(at);
    if (high === 0 && this.#u32(at + 4) === 0) return;
    if ((high & 0x4000_0000) !== 0) return this.#readCompressed(at);
    const cluster = this.#offset(at);
    if (this.#externalData) {
      if (active && (high >>> 31) === 0 && (this.#u32(at + 4) & 1) === 0 && cluster !== 0) {
        this.#flag(at, "L2 entry", 1);
      }
      return;
    }
    if (cluster === 0) return;
    this.#use(cluster, this.#clusterBytes, "data");
    if (active) this.#checkFlag(at, cluster, "L2 entry");
  }

  #readCompressed(at: number): void {
    const entry = this.#view.getBigUint64(at) & (1n << 62n) - 1n;
    if (this.#u32(at) >>> 31 === 1) this.#errors.push('a compressed cluster has "refcount is one"');
    const shift = BigInt(62 - (this.#clusterBits - 8));
    const start = Number(entry & (1n << shift) - 1n);
    const from = Math.floor(start / 512) * 512;
    this.#use(from, (Number(entry >> shift) + 1) * 512, "compressed data");
  }

  #checkFlag(at: number, cluster: number, what: string): void {
    const refcount = this.#refcount(cluster / this.#clusterBytes);
    if (!this.#dirty && (refcount === 1) !== (this.#u32(at) >>> 31 === 1)) this.#flag(at, what, refcount);
  }

  #flag(at: number, what: string, refcount: number): void {
    this.#wrongFlags.push(`${what} at 0x${at.toString(16)} has a wrong "refcount is one" (refcount ${refcount})`);
  }

  #compare(): number {
    for (const [cluster, uses] of this.#used) {
      const refcount = this.#refcount(cluster);
      if (refcount < uses) this.#errors.push(`cluster ${cluster} is used ${uses} times, refcount ${refcount}`);
    }
    return this.#blocks.reduce((leaks, block, i) => block === 0 ? leaks : leaks + this.#leaksIn(block, i), 0);
  }

  #leaksIn(block: number, index: number): number {
    const perWord = 64 / this.#refcountBits;
    const first = index * this.#clusterBytes / 8 * perWord;
    let leaks = 0;
    for (let at = 0; at < this.#clusterBytes; at += 8) {
      // Most of a block is zeros, often.
      if (this.#u32(block + at) === 0 && this.#u32(block + at + 4) === 0) continue;
      for (let cluster = first + at / 8 * perWord, n = perWord; n > 0; n--, cluster++) {
        if (this.#refcount(cluster) > (this.#used.get(cluster) ?? 0)) leaks++;
      }
    }
    return leaks;
  }

  #refcount(cluster: number): number {
    const perBlock = this.#clusterBytes * 8 / this.#refcountBits;
    const block = this.#blocks[Math.floor(cluster / perBlock)] ?? 0;
    if (block === 0 || block + this.#clusterBytes > this.#view.byteLength) return 0;
    const bit = (cluster % perBlock) * this.#refcountBits;
    const at = block + Math.floor(bit / 8);
    switch (this.#refcountBits) {
      case 64:
        return Number(this.#view.getBigUint64(at));
      case 32:
        return this.#u32(at);
      case 16:
        return this.#view.getUint16(at);
      default:
        return this.#view.getUint8(at) >> bit % 8 & (2 ** this.#refcountBits - 1);
    }
  }

  /** Counts references. What is written to must be in the file, but for data, which a hole at the end may stand for. */
  #use(from: number, lengthBytes: number, what: string): void {
    if (lengthBytes === 0) return;
    if (lengthBytes > this.#view.byteLength + this.#clusterBytes * 64) {
      this.#errors.push(`${what} at 0x${from.toString(16)} has ${lengthBytes} bytes`);
      return;
    }
    const aligned = what === "compressed data" || from % this.#clusterBytes === 0;
    const isTable = what !== "data" && what !== "compressed data";
    if (!aligned) this.#errors.push(`${what} at 0x${from.toString(16)} is not aligned`);
    if (isTable && from + (what === "snapshot table" ? lengthBytes : 1) > this.#view.byteLength) {
      this.#errors.push(`${what} at 0x${from.toString(16)} is behind the end of the file`);
    }
    if (what !== "header" && from === 0) this.#errors.push(`${what} is on the header`);
    const last = Math.floor((from + lengthBytes - 1) / this.#clusterBytes);
    for (let cluster = Math.floor(from / this.#clusterBytes); cluster <= last; cluster++) {
      this.#used.set(cluster, (this.#used.get(cluster) ?? 0) + 1);
      if (this.#used.size > 1 << 20) throw new Error(`${what} at 0x${from.toString(16)}: too large`);
    }
  }

  /** An offset in a field or in an entry: bits 9 to 55. */
  #offset(at: number): number {
    return (this.#u32(at) & 0x00ff_ffff) * 2 ** 32 + ((this.#u32(at + 4) & 0xffff_fe00) >>> 0);
  }

  #u32(at: number): number {
    return at + 4 <= this.#view.byteLength ? this.#view.getUint32(at) : 0;
  }
}
