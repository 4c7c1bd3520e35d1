/**
 * Numbers of the qcow2 format (QEMU's docs/interop/qcow2, "Header", "Header extensions", "Cluster mapping"), and the
 * limits that vblk sets where the text sets none.
 *
 * @module
 */

/** "QFI" and 0xfb, the first four bytes. */
export const QCOW2_MAGIC = 0x514649fb;

/** Where the fields of the header start, in bytes. */
export const HEADER = {
  magic: 0,
  version: 4,
  backingFileOffset: 8,
  backingFileSize: 16,
  clusterBits: 20,
  size: 24,
  cryptMethod: 32,
  l1Size: 36,
  l1TableOffset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  nbSnapshots: 60,
  snapshotsOffset: 64,
  incompatibleFeatures: 72,
  compatibleFeatures: 80,
  autoclearFeatures: 88,
  refcountOrder: 96,
  headerLength: 100,
  compressionType: 104,
} as const;

/** Length of a version 2 header, in bytes. */
export const V2_HEADER_BYTES = 72;
/** Least length of a version 3 header, in bytes. */
export const V3_HEADER_BYTES = 104;
/** Length of a version 3 header with all fields that are known, and the padding behind the last, in bytes. */
export const KNOWN_HEADER_BYTES = 112;

/** Bits of `incompatible_features`. */
export const INCOMPATIBLE = {
  dirty: 1n << 0n,
  corrupt: 1n << 1n,
  externalData: 1n << 2n,
  compressionType: 1n << 3n,
  extendedL2: 1n << 4n,
} as const;

/** Bit of `compatible_features`: refcounts may be written late. */
export const COMPATIBLE_LAZY_REFCOUNTS = 1n << 0n;

/** Bits of `autoclear_features`. */
export const AUTOCLEAR = { bitmaps: 1n << 0n, rawExternalData: 1n << 1n } as const;

/** Types of header extensions. */
export const EXTENSION = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
} as const;

/** Smallest and largest cluster: 512 bytes by the text, 2 MiB as in QEMU. */
export const CLUSTER_BITS = { least: 9, most: 21 } as const;

/** An extended L2 entry describes so many subclusters. */
export const SUBCLUSTERS = 32;
/** With extended L2 entries a cluster is at least 16 KiB, so that a subcluster has 512 bytes. */
export const EXTENDED_L2_LEAST_CLUSTER_BITS = 14;

/** Largest active L1 table, as in QEMU. It is held in memory whole. */
export const L1_MAX_BYTES = 32 << 20;
/** Largest refcount table, as in QEMU. */
export const REFCOUNT_TABLE_MAX_BYTES = 8 << 20;
/** Most internal snapshots, as in QEMU; each takes 40 bytes or more of the snapshot table. */
export const SNAPSHOTS_MAX = 65536;
/** Largest snapshot table, and most extra data of one snapshot, as in QEMU. */
export const SNAPSHOT_TABLE_MAX_BYTES = 64 << 20;
export const SNAPSHOT_EXTRA_MAX_BYTES = 1024;
/** Longest backing file name. */
export const BACKING_NAME_MAX_BYTES = 1023;
/** Longest name of a format, and of a data file: as in QEMU. */
export const FORMAT_NAME_MAX_BYTES = 15;
export const DATA_FILE_NAME_MAX_BYTES = 1023;
/** Most persistent bitmaps, and the largest directory of them, as in QEMU. */
export const BITMAPS_MAX = 65535;
export const BITMAP_DIRECTORY_MAX_BYTES = 64 << 20;

/** L1 and L2 entries: bits 9 to 55 are an offset. Entries are read as two halves, so as to need no bigint. */
export const OFFSET_HIGH_MASK = 0x00ffffff;
export const OFFSET_LOW_MASK = 0xfffffe00;
/** Reserved bits of an L1 entry. */
export const L1_RESERVED_HIGH = 0x7f000000;
export const L1_RESERVED_LOW = 0x000001ff;
/** Reserved bits of a standard L2 entry; bit 0 is the zero flag. */
export const L2_RESERVED_HIGH = 0x3f000000;
export const L2_RESERVED_LOW = 0x000001fe;
/** Bit 0 of an L2 entry: reads as zeros. */
export const L2_ZERO_LOW = 1;
/** Bit 62 of an L2 entry, in its high half: compressed. */
export const L2_COMPRESSED_HIGH = 0x40000000;
/** Bit 63 of an L2 entry, in its high half: refcount is one. */
export const COPIED_HIGH = 0x80000000;

/** Unit of the length of a compressed cluster. */
export const COMPRESSED_SECTOR_BYTES = 512;

/** Memory for L2 tables when nothing is said, for an image and all that is behind it: as in QEMU. */
export const L2_CACHE_DEFAULT_BYTES = 32 << 20;
