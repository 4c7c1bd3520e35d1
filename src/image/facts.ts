/**
 * What there is to say about an image, without opening anything but its own file.
 *
 * @module
 */

import { DenoFileStorage } from "../storage/deno_file.ts";
import { type DetailValue, SECTOR_BYTES } from "./image.ts";
import { checkReadable, probe } from "./probe.ts";
import type { Snapshot } from "./qcow2/snapshot_table.ts";

/** The facts of any image. */
export interface ImageFacts {
  readonly path: string;
  readonly format: "raw" | "qcow2";
  /** Whether the format was guessed, and not said. */
  readonly probed: boolean;
  readonly sizeBytes: number;
  /** How much of the host's disk the file takes; `null` when nobody knows. */
  readonly diskBytes: number | null;
  /** The same for all names of the file; `null` when nobody knows. */
  readonly identity: string | null;
  readonly qcow2?: Qcow2Facts;
}

/** What only qcow2 images have. */
export interface Qcow2Facts {
  readonly clusterBytes: number;
  readonly dirty: boolean;
  readonly backingName: string | null;
  /** The name from where the user is; `null` when there is none. */
  readonly backingPath: string | null;
  readonly backingFormat: string | null;
  readonly snapshots: readonly Snapshot[];
  /** By the names that QEMU prints. */
  readonly specific: { readonly [name: string]: DetailValue };
  /** Memory for L2 tables, at most, and how much the tables of the whole disk would take, in bytes. */
  readonly l2CacheBytes: number;
  readonly l2TablesBytes: number;
}

/** How to open the file. */
export interface FactsOptions {
  readonly format?: string;
  /** Take no lock. */
  readonly share?: boolean;
}

/**
 * Reads the facts of an image.
 *
 * @throws BlockError
 */
export async function readFacts(path: string, { format, share }: FactsOptions): Promise<ImageFacts> {
  if (format !== undefined) checkReadable(path, format, "asked for");
  const storage = DenoFileStorage.open(path, { readOnly: true, share });
  try {
    const found = format ?? await probe(storage);
    checkReadable(path, found, "found");
    const { allocatedBytes: diskBytes, identity, sizeBytes } = storage;
    const facts = { path, probed: format === undefined, diskBytes, identity };
    if (found === "raw") {
      return { ...facts, format: "raw", sizeBytes: Math.ceil(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES };
    }
    return { ...facts, format: "qcow2", ...await qcow2Facts(storage) };
  } finally {
    storage.close();
  }
}

async function qcow2Facts(storage: DenoFileStorage): Promise<{ sizeBytes: number; qcow2: Qcow2Facts }> {
  const [{ readHeader }, { detailsOf }, { readSnapshots }, { L2_CACHE_DEFAULT_BYTES }] = await Promise.all([
    import("./qcow2/header.ts"),
    import("./qcow2/details.ts"),
    import("./qcow2/snapshot_table.ts"),
    import("./qcow2/qcow2_layout.ts"),
  ]);
  const header = await readHeader(storage);
  const { clusterBytes, specific } = await detailsOf(storage, header);
  const { sizeBytes, dirty, backingName, backingFormat } = header;
  return {
    sizeBytes,
    qcow2: {
      clusterBytes,
      dirty,
      backingName,
      backingPath: backingName === null ? null : besides(storage.name, backingName),
      backingFormat,
      snapshots: await readSnapshots(storage, header),
      specific,
      l2CacheBytes: L2_CACHE_DEFAULT_BYTES,
      l2TablesBytes: Math.ceil(sizeBytes / clusterBytes) * (header.extendedL2 ? 16 : 8),
    },
  };
}

/** A name in an image, from where the user is. */
function besides(path: string, name: string): string {
  if (name.startsWith("/") || /^[^/]*:/.test(name)) return name;
  return path.slice(0, path.lastIndexOf("/") + 1) + name;
}
