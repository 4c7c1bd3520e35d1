/**
 * Damage to images that QEMU made: one field changed, somewhere that a check looks. Finds its way by the text of the
 * format, and not with the code that checks.
 */

import type { Random } from "../../random.ts";

/** The bytes of an image, and where its parts are. */
export class Anatomy {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
  readonly clusterBytes: number;
  readonly version: number;
  readonly refcountBits: number;
  readonly entryBytes: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly refcountTable: number;
  readonly snapshots: number;
  readonly snapshotCount: number;

  constructor(bytes: Uint8Array<ArrayBuffer>) {
    this.bytes = bytes;
    const view = this.view = new DataView(bytes.buffer);
    this.clusterBytes = 2 ** view.getUint32(20);
    this.version = view.getUint32(4);
    this.refcountBits = this.version === 2 ? 16 : 2 ** view.getUint32(96);
    this.entryBytes = this.version === 3 && (view.getUint32(76) & 16) !== 0 ? 16 : 8;
    this.l1Offset = Number(view.getBigUint64(40));
    this.l1Entries = view.getUint32(36);
    this.refcountTable = Number(view.getBigUint64(48));
    this.snapshots = Number(view.getBigUint64(64));
    this.snapshotCount = view.getUint32(60);
  }

  u64(at: number): bigint {
    return at + 8 <= this.bytes.byteLength ? this.view.getBigUint64(at) : 0n;
  }

  set64(at: number, value: bigint): void {
    if (at + 8 <= this.bytes.byteLength) this.view.setBigUint64(at, value);
  }

  /** Where L2 tables are that are in the file as a whole. */
  l2Tables(): number[] {
    const tables: number[] = [];
    for (let i = 0; i < this.l1Entries; i++) {
      const offset = Number(this.u64(this.l1Offset + i * 8) & 0xfffffffffffe00n);
      if (offset !== 0 && offset + this.clusterBytes <= this.bytes.byteLength) tables.push(offset);
    }
    return tables;
  }

  /** Where L2 entries are that are not zero. */
  l2Entries(): number[] {
    const found: number[] = [];
    for (const table of this.l2Tables()) {
      for (let at = table; at < table + this.clusterBytes; at += this.entryBytes) {
        if (this.u64(at) !== 0n) found.push(at);
      }
    }
    return found;
  }

  refcountBlocks(): number[] {
    const blocks: number[] = [];
    for (let i = 0; i < this.clusterBytes / 8; i++) {
      const offset = Number(this.u64(this.refcountTable + i * 8) & 0xfffffffffffe00n);
      if (offset !== 0 && offset + this.clusterBytes <= this.bytes.byteLength) blocks.push(offset);
    }
    return blocks;
  }
}

/** A kind of damage; says what it did, or nothing when the image has no such place. */
export type Damage = (image: Anatomy, random: Random) => string | null;

const pick = (random: Random, places: number[]) => places.length === 0 ? null : random.pick(places);

function changed(image: Anatomy, at: number | null, what: string, change: (entry: bigint) => bigint): string | null {
  if (at === null) return null;
  const before = image.u64(at);
  image.set64(at, BigInt.asUintN(64, change(before)));
  return `${what} at ${at}: ${before.toString(16)} -> ${image.u64(at).toString(16)}`;
}

const someCluster = (image: Anatomy, random: Random) =>
  BigInt(random.below(Math.ceil(image.bytes.byteLength / image.clusterBytes) + 2) * image.clusterBytes);

/** Kinds by name. */
export const DAMAGES: Readonly<Record<string, Damage>> = {
  refcount(image, random) {
    const block = pick(random, image.refcountBlocks());
    if (block === null) return null;
    const clusters = Math.ceil(image.bytes.byteLength / image.clusterBytes);
    const used = Math.ceil(Math.min(clusters * image.refcountBits / 8, image.clusterBytes));
    const at = block + random.below(used);
    const before = image.bytes[at];
    image.bytes[at] = random.pick([0, 1, 2, 3, 255]);
    return `refcount byte at ${at}: ${before} -> ${image.bytes[at]}`;
  },
  copied: (image, random) =>
    changed(image, pick(random, image.l2Entries()), "COPIED of L2 entry", (entry) => entry ^ (1n << 63n)),
  l1Copied: (image, random) =>
    changed(image, image.l1Offset + 8 * random.below(Math.max(1, image.l1Entries)), "COPIED of L1 entry", (entry) => {
      return entry === 0n ? entry : entry ^ (1n << 63n);
    }),
  l2Bit: (image, random) =>
    changed(
      image,
      pick(random, image.l2Entries()),
      "bit of L2 entry",
      (entry) => entry ^ (1n << BigInt(random.below(64))),
    ),
  l2Elsewhere: (image, random) =>
    changed(image, pick(random, image.l2Entries()), "place of L2 entry", (entry) => {
      return (entry & 0xff000000000001ffn) | someCluster(image, random);
    }),
  subclusters: (image, random) => {
    const at = image.entryBytes === 16 ? pick(random, image.l2Entries()) : null;
    return changed(
      image,
      at === null ? null : at + 8,
      "subclusters",
      (entry) => entry ^ (1n << BigInt(random.below(64))),
    );
  },
  zeroUnaligned: (image, random) =>
    changed(image, pick(random, image.l2Entries()), "unaligned zero cluster", (entry) => {
      return image.clusterBytes > 512 ? entry & ~(1n << 62n) | 1n | 0x200n : entry;
    }),
  l1Bit: (image, random) =>
    changed(
      image,
      image.l1Offset + 8 * random.below(Math.max(1, image.l1Entries)),
      "bit of L1 entry",
      (entry) => entry ^ (1n << BigInt(random.below(64))),
    ),
  l1Elsewhere: (image, random) =>
    changed(image, image.l1Offset + 8 * random.below(Math.max(1, image.l1Entries)), "place of L1 entry", () => {
      return (1n << 63n) | someCluster(image, random);
    }),
  refcountTable: (image, random) =>
    changed(image, image.refcountTable + 8 * random.below(3), "refcount table entry", (entry) => {
      return random.pick([0n, entry ^ 1n, entry ^ 0x200n, someCluster(image, random), entry | (1n << 40n)]);
    }),
  snapshotL1: (image, random) => {
    const at = image.snapshotCount > 0 ? image.snapshots : null;
    return changed(image, at, "L1 table of snapshot", (entry) => {
      return random.pick([entry ^ 0x100n, 0n, someCluster(image, random), entry | (1n << 50n)]);
    });
  },
  snapshotSizes: (image, random) => {
    if (image.snapshotCount === 0) return null;
    const at = image.snapshots + random.pick([8, 12, 14, 36]);
    const byte = at + random.below(at === image.snapshots + 8 || at === image.snapshots + 36 ? 4 : 2);
    image.bytes[byte] = random.next();
    return `size in snapshot at ${byte}: ${image.bytes[byte]}`;
  },
  cut: (image, random) => {
    // Only what is read is cut: the storage is made from what is left.
    const bytes = Math.max(image.clusterBytes, image.bytes.byteLength - random.between(1, 3) * image.clusterBytes);
    const at = bytes - bytes % 512;
    image.bytes.fill(0, at);
    return `zeros from ${at}`;
  },
};

/** An image with one or a few kinds of damage, and what they are. */
export function damaged(
  sound: Uint8Array<ArrayBuffer>,
  random: Random,
  kinds: readonly string[] = Object.keys(DAMAGES),
): { bytes: Uint8Array<ArrayBuffer>; done: string[] } {
  const bytes = sound.slice();
  const done: string[] = [];
  for (let n = random.pick([1, 1, 1, 2, 4]); n > 0; n--) {
    const what = DAMAGES[random.pick(kinds)](new Anatomy(bytes), random);
    if (what !== null) done.push(what);
  }
  return { bytes, done };
}
