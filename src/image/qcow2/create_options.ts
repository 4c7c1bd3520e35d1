/**
 * What a new qcow2 image can be like, and which wishes exclude each other: checked before anything is written.
 *
 * @module
 */

import { SECTOR_BYTES } from "../image.ts";
import { BACKING_NAME_MAX_BYTES, CLUSTER_BITS, EXTENDED_L2_LEAST_CLUSTER_BITS, L1_MAX_BYTES } from "./qcow2_layout.ts";

/** Ways to give an image its space before anybody writes to it. */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** What a new image is to be like. All but the size have defaults, those of qemu-img. */
export interface Qcow2CreateOptions {
  /** Size of the disk, in bytes; rounded up to whole sectors. */
  readonly sizeBytes: number;
  /** Version of the format: 3 is `compat=1.1`. Default: 3. */
  readonly version?: 2 | 3;
  /** Default: 65536. */
  readonly clusterBytes?: number;
  /** Name to be recorded as the backing file's. Nothing is opened. */
  readonly backingName?: string | null;
  /** Format of the backing file, to be recorded. */
  readonly backingFormat?: string | null;
  /** Default: off; with `dataFileRaw`, metadata. */
  readonly preallocation?: Preallocation;
  /** Whether refcounts may be written late. Default: false. */
  readonly lazyRefcounts?: boolean;
  /** Default: 16. */
  readonly refcountBits?: number;
  /** Name to be recorded as the external data file's. */
  readonly dataFileName?: string | null;
  /** Whether the data file can be read as a raw image. Default: false. */
  readonly dataFileRaw?: boolean;
  /** Whether clusters have subclusters. Default: false. */
  readonly extendedL2?: boolean;
  /** Default: zlib. */
  readonly compression?: "zlib" | "zstd";
}

/** The options, complete. */
export type CompleteOptions = Required<Qcow2CreateOptions>;

/** The wish that cannot be had, in QEMU's words. */
export class CreateOptionsError extends Error {
  /** Always `"CreateOptionsError"`: what a stack trace begins with. */
  override readonly name = "CreateOptionsError";
  /** What the user can do about it. */
  readonly hint: string | undefined;

  /** Makes the error of its message. */
  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }
}

/**
 * Fills in what was not said, and checks what was, in QEMU's order.
 *
 * @throws CreateOptionsError
 */
export function completeOptions(given: Qcow2CreateOptions): CompleteOptions {
  const dataFileRaw = given.dataFileRaw ?? false;
  const preallocation = given.preallocation ?? "off";
  const options: CompleteOptions = {
    sizeBytes: Math.ceil(given.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES,
    version: given.version ?? 3,
    clusterBytes: given.clusterBytes ?? 65536,
    backingName: given.backingName ?? null,
    backingFormat: given.backingFormat ?? null,
    // A raw data file must read the same without the tables, so these must say of each cluster that it is there.
    preallocation: dataFileRaw && preallocation === "off" ? "metadata" : preallocation,
    lazyRefcounts: given.lazyRefcounts ?? false,
    refcountBits: given.refcountBits ?? 16,
    dataFileName: given.dataFileName ?? null,
    dataFileRaw,
    extendedL2: given.extendedL2 ?? false,
    compression: given.compression ?? "zlib",
  };
  const broken = RULES.find(([isBroken]) => isBroken({ ...options, preallocation }));
  if (broken !== undefined) throw new CreateOptionsError(broken[1]);
  checkSize(options);
  return options;
}

const LEVEL = "compatibility level 1.1 and above (use version=v3 or greater)";

const CLUSTER_SIZE = `Cluster size must be a power of two between ${2 ** CLUSTER_BITS.least} and ${
  2 ** (CLUSTER_BITS.most - 10)
}k`;
const EXTENDED_CLUSTER_SIZE = `Extended L2 entries are only supported with cluster sizes of at least ${
  2 ** EXTENDED_L2_LEAST_CLUSTER_BITS
} bytes`;
const REFCOUNT_WIDTH = "Refcount width must be a power of two and may not exceed 64 bits";

/** What must not be, and how QEMU says so, in the order in which it looks. */
const RULES: readonly (readonly [isBroken: (options: CompleteOptions) => boolean, message: string])[] = [
  [
    ({ version, extendedL2 }) => version < 3 && extendedL2,
    `Extended L2 entries are only supported with ${LEVEL}`,
  ],
  [({ clusterBytes }) => !isClusterSize(clusterBytes), CLUSTER_SIZE],
  [
    ({ extendedL2, clusterBytes }) => extendedL2 && clusterBytes < 2 ** EXTENDED_L2_LEAST_CLUSTER_BITS,
    EXTENDED_CLUSTER_SIZE,
  ],
  [
    ({ backingName, preallocation, extendedL2 }) => backingName !== null && preallocation !== "off" && !extendedL2,
    "Backing file and preallocation can only be used at the same time if extended_l2 is on",
  ],
  [
    ({ backingName, backingFormat }) => backingFormat !== null && backingName === null,
    "Backing format cannot be used without backing file",
  ],
  [
    ({ version, lazyRefcounts }) => version < 3 && lazyRefcounts,
    `Lazy refcounts only supported with ${LEVEL}`,
  ],
  [({ refcountBits }) => !isRefcountWidth(refcountBits), REFCOUNT_WIDTH],
  [
    ({ version, refcountBits }) => version < 3 && refcountBits !== 16,
    "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
  ],
  [({ dataFileRaw, dataFileName }) => dataFileRaw && dataFileName === null, "data-file-raw requires data-file"],
  [
    ({ dataFileRaw, backingName }) => dataFileRaw && backingName !== null,
    "Backing file and data-file-raw cannot be used at the same time",
  ],
  [
    ({ version, dataFileName }) => version < 3 && dataFileName !== null,
    `External data files are only supported with ${LEVEL}`,
  ],
  [
    ({ version, compression }) => version < 3 && compression !== "zlib",
    `Non-zlib compression type is only supported with ${LEVEL}`,
  ],
];

function isClusterSize(bytes: number): boolean {
  const bits = Math.log2(bytes);
  return Number.isInteger(bits) && bits >= CLUSTER_BITS.least && bits <= CLUSTER_BITS.most;
}

function isRefcountWidth(bits: number): boolean {
  return [1, 2, 4, 8, 16, 32, 64].includes(bits);
}

/** Checks a cluster size alone. */
export function checkClusterSize(bytes: number, extendedL2: boolean): void {
  if (!isClusterSize(bytes)) throw new CreateOptionsError(CLUSTER_SIZE);
  if (extendedL2 && bytes < 2 ** EXTENDED_L2_LEAST_CLUSTER_BITS) throw new CreateOptionsError(EXTENDED_CLUSTER_SIZE);
}

/** Checks a refcount width alone. */
export function checkRefcountBits(bits: number): void {
  if (!isRefcountWidth(bits)) throw new CreateOptionsError(REFCOUNT_WIDTH);
}

function checkSize({ sizeBytes, clusterBytes, extendedL2, backingName, backingFormat }: CompleteOptions): void {
  if (l1EntriesFor(sizeBytes, clusterBytes, extendedL2) * 8 > L1_MAX_BYTES) {
    throw new CreateOptionsError(
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    );
  }
  if (backingName !== null && new TextEncoder().encode(backingName).byteLength > BACKING_NAME_MAX_BYTES) {
    const format = backingFormat ?? "(null)";
    throw new CreateOptionsError(
      `Could not assign backing file '${backingName}' with format '${format}': Invalid argument`,
    );
  }
}

/** Entries of the L1 table that a disk needs. */
export function l1EntriesFor(sizeBytes: number, clusterBytes: number, extendedL2: boolean): number {
  return Math.ceil(Math.ceil(sizeBytes / clusterBytes) / (clusterBytes / (extendedL2 ? 16 : 8)));
}
