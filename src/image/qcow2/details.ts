/**
 * Facts about a qcow2 image for people, under the names that QEMU prints them with.
 *
 * @module
 */

import type { Storage } from "../../storage/storage.ts";
import type { DetailValue, ImageDetails } from "../image.ts";
import type { BitmapDirectory } from "./extensions.ts";
import type { Qcow2Header } from "./header.ts";
import { corrupt } from "./refuse.ts";

/**
 * Collects the facts. Opens nothing; reads the directory of bitmaps, if there is one.
 *
 * @throws BlockError
 */
export async function detailsOf(storage: Storage, header: Qcow2Header): Promise<ImageDetails> {
  const clusterBytes = 2 ** header.clusterBits;
  const tableSpan = clusterBytes / (header.extendedL2 ? 16 : 8) * clusterBytes;
  return {
    clusterBytes,
    // The state of a virtual machine begins with the first L1 entry that is not the disk's ("Snapshots").
    vmStateOffset: Math.ceil(header.sizeBytes / tableSpan) * tableSpan,
    specific: header.version === 2
      ? { "compat": "0.10", "compression type": header.compression, "refcount bits": header.refcountBits }
      : await version3(storage, header),
  };
}

async function version3(storage: Storage, header: Qcow2Header): Promise<Record<string, DetailValue>> {
  const facts: Record<string, DetailValue> = {
    "compat": "1.1",
    "compression type": header.compression,
    "lazy refcounts": header.lazyRefcounts,
  };
  if (header.bitmaps !== null) facts["bitmaps"] = await readBitmaps(storage, header.bitmaps);
  facts["refcount bits"] = header.refcountBits;
  if (header.dataFileName !== null) facts["data file"] = header.dataFileName;
  if (header.externalData) facts["data file raw"] = header.externalDataRaw;
  facts["corrupt"] = header.corrupt;
  facts["extended l2"] = header.extendedL2;
  return facts;
}

/** Bits of a bitmap's flags, by the names that QEMU prints. */
const BITMAP_FLAGS = ["in-use", "auto"];

async function readBitmaps(storage: Storage, directory: BitmapDirectory): Promise<DetailValue[]> {
  const { readDirectory } = await import("./bitmap_directory.ts");
  const entries = await readDirectory(storage, directory);
  return entries.map(({ name, flags, granularityBits, position }) => {
    if (granularityBits > 31) {
      throw corrupt(storage.name, "open", "Broken bitmap directory", directory.offset + position);
    }
    return { flags: BITMAP_FLAGS.filter((_, bit) => (flags >>> bit) & 1), name, granularity: 2 ** granularityBits };
  });
}
