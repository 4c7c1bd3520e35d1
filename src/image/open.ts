/**
 * From what the user called an image to an open image: name, format, storage.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import { BlockError } from "../storage/block_error.ts";
import { DenoFileStorage } from "../storage/deno_file.ts";
import { MEMORY_STORAGE_MAX_BYTES, MemoryStorage } from "../storage/memory.ts";
import { OverlayStorage } from "../storage/overlay.ts";
import type { Storage } from "../storage/storage.ts";
import type { Image } from "./image.ts";
import type { Layer } from "./qcow2/chain.ts";
import type { Qcow2Image } from "./qcow2/qcow2_image.ts";
import { RawImage } from "./raw/raw_image.ts";
import { parseSize } from "./size.ts";

/** How to open an image. */
export interface OpenOptions {
  /** Name of the format; found out when not given. */
  format?: string;
  /** Open for reading only. Default: false. */
  readOnly?: boolean;
  /** Keep all writes in memory and forget them at the end. Default: false. */
  snapshot?: boolean;
  /** Take no lock. Default: false. */
  share?: boolean;
  /** Most memory for the tables of a qcow2 image and of what is behind it, in bytes. Default: 32 MiB. */
  l2CacheBytes?: number;
}

/** Formats by what their first bytes look like: offset, bytes. */
const MAGICS: readonly (readonly [format: string, offset: number, magic: string])[] = [
  ["qcow", 0, "QFI\xfb\0\0\0\x01"],
  ["qcow2", 0, "QFI\xfb"],
  ["qed", 0, "QED\0"],
  ["vmdk", 0, "KDMV"],
  ["vmdk", 0, "COWD"],
  ["vmdk", 0, "# Disk DescriptorFile"],
  ["vdi", 64, "\x7f\x10\xda\xbe"],
  ["vhdx", 0, "vhdxfile"],
  ["vpc", 0, "conectix"],
  ["parallels", 0, "WithoutFreeSpace"],
  ["parallels", 0, "WithouFreSpacExt"],
  ["luks", 0, "LUKS\xba\xbe"],
  ["bochs", 0, "Bochs Virtual HD Image"],
];

const PROBE_BYTES = 128;

/** Formats that are read. */
const READABLE = ["raw", "qcow2"];

/**
 * Opens an image: a path, or `mem:SIZE` for a disk in memory that starts as zeros.
 *
 * A qcow2 image is opened with the files that it names, each for reading only. Those are paths and nothing else,
 * relative to the image's folder, in the formats that the image records. Where it records none the file is probed, as
 * in QEMU; but what was found by probing may lead to no further file, since a guest may have written that name.
 *
 * @throws BlockError
 */
export async function openImage(name: string, options: OpenOptions = {}): Promise<Image> {
  const image = await openLayer(name, options, []);
  const length = chainLength(image);
  if (length > 1) (image as Qcow2Image).shareCache(length);
  return image;
}

function chainLength(image: Image): number {
  const { backing = null } = image as Partial<Qcow2Image>;
  return backing === null ? 1 : 1 + chainLength(backing);
}

/** Opens an image behind those of `above`; the user named the first of all. */
async function openLayer(name: string, options: OpenOptions, above: readonly Layer[]): Promise<Image> {
  const { format } = options;
  if (format !== undefined && !READABLE.includes(format)) throw refusedFormat(name, format, "asked for");
  const storage = openStorage(name, options);
  try {
    const found = format ?? await probe(storage);
    if (!READABLE.includes(found)) throw refusedFormat(name, found, "found");
    if (found === "raw") return new RawImage(storage);
    // Only those who have such an image wait for the code that reads it.
    const [{ Qcow2Image, WRITE_REASON }, { backingOpener, dataFileOpener }] = await Promise.all([
      import("./qcow2/qcow2_image.ts"),
      import("./qcow2/chain.ts"),
    ]);
    if (!options.readOnly || options.snapshot) {
      throw new BlockError({
        kind: "unsupported",
        path: name,
        operation: "open",
        reason: WRITE_REASON,
        hint: "give -r to read only, or convert it with 'qemu-img convert -O raw'",
      });
    }
    const identity = storage instanceof DenoFileStorage ? storage.identity : null;
    const layers = [...above, { path: name, identity, recorded: format !== undefined || above.length === 0 }];
    const { share, l2CacheBytes } = options;
    return await Qcow2Image.open(storage, {
      l2CacheBytes,
      openBacking: backingOpener(
        layers,
        (path, format) => openLayer(path, { format, readOnly: true, share, l2CacheBytes }, layers),
      ),
      openDataFile: dataFileOpener(layers, (path) => DenoFileStorage.open(path, { readOnly: true, share })),
    });
  } catch (error) {
    storage.close();
    throw error;
  }
}

function openStorage(name: string, options: OpenOptions): Storage {
  if (name.startsWith("mem:")) {
    const size = parseSize(name.slice(4));
    if (typeof size !== "number" || size > MEMORY_STORAGE_MAX_BYTES) {
      throw new BlockError({
        kind: "invalid",
        path: name,
        operation: "open",
        reason: size === "not-a-number" ? "The size is not a number" : "The size is too large: it must be below 16 TiB",
        hint: "write it as in mem:64M",
      });
    }
    return new MemoryStorage(size, { name, readOnly: options.readOnly });
  }
  if (!options.snapshot) return DenoFileStorage.open(name, options);
  return new OverlayStorage(DenoFileStorage.open(name, { ...options, readOnly: true }), options.readOnly);
}

/** The format that the first bytes belong to; `"raw"` when to none that is known. */
async function probe(storage: Storage): Promise<string> {
  const bytes = new Uint8Array(Math.min(PROBE_BYTES, storage.sizeBytes));
  await storage.read(0, SegmentList.over(bytes));
  const text = String.fromCharCode(...bytes);
  return MAGICS.find(([, offset, magic]) => text.startsWith(magic, offset))?.[0] ?? "raw";
}

function refusedFormat(path: string, format: string, how: "asked for" | "found"): BlockError {
  const known = MAGICS.some(([name]) => name === format);
  return new BlockError({
    kind: "unsupported",
    path,
    operation: "open",
    reason: known ? `The image's format is ${format}, which vblk does not read` : `Unknown driver '${format}'`,
    hint: how === "found"
      ? `convert it with 'qemu-img convert -O raw', or give -f raw to see its bytes as they are`
      : "vblk reads raw and qcow2 images: give -f raw, or convert it with 'qemu-img convert -O raw'",
  });
}
