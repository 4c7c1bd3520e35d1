/**
 * qcow2 disks in memory over the space of the format's options, for tests that write to them.
 */

import { createQcow2 } from "../../src/image/qcow2/create.ts";
import { Qcow2Image } from "../../src/image/qcow2/qcow2_image.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import type { Storage } from "../../src/storage/storage.ts";
import type { Random } from "../random.ts";
import { Folder, run } from "../storage/support.ts";
import { ByteStorage } from "./byte_storage.ts";
import { SECTOR, sectorsOf } from "./sectors.ts";
import type { TestImage } from "./world.ts";

/** Options of an image. */
export interface Qcow2Shape {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly version: 2 | 3;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  readonly lazyRefcounts: boolean;
  readonly compression: "zlib" | "zstd";
  readonly dataFile: "none" | "plain" | "raw";
  readonly backing: "none" | "raw" | "qcow2";
  /** Size of the backing image. */
  readonly backingBytes: number;
}

/** What is not said otherwise. */
export const PLAIN: Qcow2Shape = {
  sizeBytes: 64 << 10,
  clusterBytes: 512,
  version: 3,
  refcountBits: 16,
  extendedL2: false,
  lazyRefcounts: false,
  compression: "zlib",
  dataFile: "none",
  backing: "none",
  backingBytes: 0,
};

/** Any combination that the format knows; small disks, of a few hundred sectors. */
export function pickQcow2Shape(random: Random): Qcow2Shape {
  const version = random.oneIn(4) ? 2 : 3;
  const extendedL2 = version === 3 && random.oneIn(4);
  const bits = extendedL2
    ? random.pick([14, 14, 15, 16])
    : random.oneIn(80)
    ? 21
    : random.pick([9, 9, 9, 10, 11, 12, 13, 14, 16]);
  const clusterBytes = 2 ** bits;
  const clusters = random.between(
    1,
    clusterBytes < 4096 ? 200 : clusterBytes < 65536 ? 40 : clusterBytes > 65536 ? 2 : 8,
  );
  const sizeBytes = SECTOR * Math.max(1, random.between(1, clusters * clusterBytes / SECTOR));
  const dataFile = version === 3 && random.oneIn(5) ? random.pick(["plain", "raw"] as const) : "none";
  const backing = dataFile !== "raw" && random.oneIn(3) ? random.pick(["raw", "qcow2"] as const) : "none";
  return {
    sizeBytes,
    clusterBytes,
    version,
    refcountBits: version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 32, 64]),
    extendedL2,
    lazyRefcounts: version === 3 && random.oneIn(4),
    compression: version === 3 && random.oneIn(3) ? "zstd" : "zlib",
    dataFile,
    backing,
    // Shorter, about as long, longer; few different ones, since they are kept.
    backingBytes: backing === "none"
      ? 0
      : Math.max(SECTOR, 2 ** (Math.round(Math.log2(sizeBytes)) + random.between(-1, 1)) - random.pick([0, 0, SECTOR])),
  };
}

/** An image in memory that can be opened as often as one likes. */
export interface Qcow2Disk {
  readonly shape: Qcow2Shape;
  /** The image file, and the data file if there is one. */
  readonly initial: readonly Uint8Array<ArrayBuffer>[];
  /** What each sector of the disk holds at first. */
  readonly tags: readonly number[];
  /** What is behind a sector. */
  behind(sector: number): number;
  /** Opens it on storages, one for each file, with what is behind it. */
  open(storages: readonly Storage[], options?: { readOnly?: boolean; l2CacheBytes?: number }): Promise<OpenQcow2>;
}

/** What is asked of a qcow2 image here. */
export type OpenQcow2 = Qcow2Image & TestImage;

/** The tag of a sector of a backing image; a few are zeros. */
const backingTag = (sector: number) => sector % 7 === 3 ? 0 : 0x2000_0000 + sector;

/** Makes a disk; `dataName` is what it records as its data file's name. */
export async function makeQcow2Disk(shape: Qcow2Shape, dataName = "data"): Promise<Qcow2Disk> {
  const initial = await create(shape, dataName);
  const behind = (sector: number) => (sector + 1) * SECTOR <= shape.backingBytes ? backingTag(sector) : 0;
  const backing = shape.backing === "none" ? null : backingFile(shape);
  return {
    shape,
    initial,
    tags: Array.from({ length: shape.sizeBytes / SECTOR }, (_, sector) => behind(sector)),
    behind,
    async open([image, data], options = {}) {
      const opened = await Qcow2Image.open(image, {
        readOnly: false,
        ...options,
        openBacking: () => openBacking(shape, backing!),
        openDataFile: () => data,
      });
      return opened as OpenQcow2;
    },
  };
}

async function openBacking(shape: Qcow2Shape, bytes: Uint8Array) {
  const storage = new ByteStorage(bytes, "base");
  return shape.backing === "raw" ? new RawImage(storage) : await Qcow2Image.open(storage, { readOnly: true });
}

const backings = new Map<string, Uint8Array>();

/** The backing image's file. */
export function backingFile({ backing, backingBytes }: Qcow2Shape): Uint8Array {
  const key = `${backing} ${backingBytes}`;
  let bytes = backings.get(key);
  if (bytes === undefined) {
    bytes = sectorsOf(Array.from({ length: backingBytes / SECTOR }, (_, sector) => backingTag(sector)));
    if (backing === "qcow2") {
      using folder = new Folder();
      const raw = folder.file("base.raw", bytes);
      run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", raw, folder.file("base"));
      bytes = Deno.readFileSync(folder.file("base"));
    }
    backings.set(key, bytes);
  }
  return bytes;
}

/** Options as `qemu-img create -o` takes them. */
export function optionsOf(shape: Qcow2Shape): string {
  const { clusterBytes, version, refcountBits, extendedL2, lazyRefcounts, compression } = shape;
  const options = [`cluster_size=${clusterBytes}`, `compat=${version === 2 ? "0.10" : "1.1"}`];
  if (version === 2) return options.join();
  options.push(`refcount_bits=${refcountBits}`, `compression_type=${compression}`);
  if (extendedL2) options.push("extended_l2=on");
  if (lazyRefcounts) options.push("lazy_refcounts=on");
  return options.join();
}

async function create(shape: Qcow2Shape, dataName: string): Promise<Uint8Array<ArrayBuffer>[]> {
  const image = new ByteStorage(new Uint8Array());
  const data = shape.dataFile === "none" ? undefined : new ByteStorage(new Uint8Array(), "data");
  await createQcow2(image, {
    ...shape,
    backingName: shape.backing === "none" ? null : "base",
    backingFormat: shape.backing === "none" ? null : shape.backing,
    dataFileName: data === undefined ? null : dataName,
    dataFileRaw: shape.dataFile === "raw",
  }, data);
  return data === undefined ? [image.bytes.slice()] : [image.bytes.slice(), data.bytes.slice()];
}
