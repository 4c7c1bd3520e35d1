/**
 * Changes what a qcow2 image is like: `amend`. The wishes are checked first, then done one after the other; each of them
 * is safe against a crash, and leaves a good image.
 *
 * @module
 */

import type { CreateValues } from "../create_options.ts";
import { CreateOptionsError } from "./create_options.ts";
import type { Qcow2Header } from "./header.ts";
import type { Qcow2Image } from "./qcow2_image.ts";
import { replaceHeader } from "./replace_header.ts";
import { rewriteSnapshots } from "./snapshots.ts";

/** What is wanted; what is left out stays as it is. */
interface Wishes {
  readonly version: 2 | 3;
  readonly refcountBits: number;
  readonly lazyRefcounts: boolean;
  readonly externalDataRaw: boolean;
  /** Empty for none. */
  readonly dataFileName: string | undefined;
  readonly sizeBytes: number;
}

/** Told how far the work has come: one of `steps` steps, which begin with 0, and the part of it that is done. */
export type AmendProgress = (step: number, steps: number, part: number) => void;

/**
 * Amends an image.
 *
 * @param open opens it for writing, each time anew: an image in use does not change its format under its own feet
 * @throws CreateOptionsError when it can't be done, before anything is; BlockError
 */
export async function amendQcow2(
  open: () => Promise<Qcow2Image>,
  values: CreateValues,
  onProgress: AmendProgress,
): Promise<void> {
  let wishes: Wishes | undefined;
  let steps = 0;
  let step = 0;
  let isDowngrade = false;
  const using = async (action: (image: Qcow2Image, wishes: Wishes) => Promise<void>) => {
    const image = await open();
    try {
      wishes ??= wishesFrom(values, image.header);
      await action(image, wishes);
    } finally {
      await image.close();
    }
  };
  const done = (part: number) => onProgress(step, steps, part);
  await using(async (image, { version, refcountBits }) => {
    const isUpgrade = version > image.header.version;
    steps = Number(version !== image.header.version) + Number(refcountBits !== image.header.refcountBits);
    if (!isUpgrade) return;
    await image.exclusive((tables) => upgrade(tables));
    done(1);
    step++;
  });
  await using(async (image, { refcountBits }) => {
    if (refcountBits === image.header.refcountBits) return;
    const { changeRefcountBits } = await import("./amend_refcounts.ts");
    await image.exclusive((tables) => changeRefcountBits(tables, refcountBits, done));
    step++;
  });
  await using(async (image, wishes) => {
    await change(image, changesOf(image.header, wishes));
    if (wishes.sizeBytes > 0) await image.resize(wishes.sizeBytes);
    // Last, as nothing can open the image any more when the new file is not there yet.
    await change(image, dataFileChange(image.header, wishes));
    isDowngrade = wishes.version < image.header.version;
  });
  if (!isDowngrade) return;
  await using(async (image) => {
    const { downgrade } = await import("./amend_downgrade.ts");
    await image.exclusive((tables) => downgrade(tables, done));
  });
}

async function upgrade(tables: Parameters<typeof rewriteSnapshots>[0]): Promise<void> {
  // Version 3 asks for more of each snapshot than version 2; what version 2 does not know it skips.
  if (tables.file.header.snapshotCount > 0) await rewriteSnapshots(tables);
  await tables.flush();
  await replaceHeader(tables.file, { version: 3 });
}

async function change(image: Qcow2Image, fields: Partial<Qcow2Header>): Promise<void> {
  if (Object.keys(fields).length > 0) await image.exclusive(({ file }) => replaceHeader(file, fields));
}

function changesOf(header: Qcow2Header, { lazyRefcounts, externalDataRaw }: Wishes): Partial<Qcow2Header> {
  return {
    ...lazyRefcounts === header.lazyRefcounts ? {} : { lazyRefcounts },
    ...externalDataRaw === header.externalDataRaw ? {} : { externalDataRaw },
  };
}

function dataFileChange(header: Qcow2Header, wishes: Wishes): Partial<Qcow2Header> {
  const name = wishes.dataFileName === "" ? null : wishes.dataFileName;
  return name === undefined || name === header.dataFileName ? {} : { dataFileName: name };
}

/** Checks the options in QEMU's order. */
function wishesFrom(values: CreateValues, header: Qcow2Header): Wishes {
  const version = versionOf(values.get("compat"), header.version);
  if ([...values.keys()].some((name) => name.startsWith("encrypt."))) {
    throw new CreateOptionsError("Can't amend encryption options - encryption not present");
  }
  const refcountBits = (values.get("refcount_bits") ?? header.refcountBits) as number;
  if (refcountBits <= 0 || refcountBits > 64 || !Number.isInteger(Math.log2(refcountBits))) {
    throw new CreateOptionsError("Refcount width must be a power of two and may not exceed 64 bits");
  }
  const dataFileName = values.get("data_file") as string | undefined;
  if (dataFileName !== undefined && !header.externalData) {
    throw new CreateOptionsError("data-file can only be set for images that use an external data file");
  }
  const externalDataRaw = (values.get("data_file_raw") ?? header.externalDataRaw) as boolean;
  if (externalDataRaw && !header.externalDataRaw) {
    throw new CreateOptionsError("data-file-raw cannot be set on existing images");
  }
  if (version < 3 && refcountBits !== 16 && refcountBits !== header.refcountBits) throw needsVersion3(REFCOUNT_WIDTHS);
  checkBacking(values, header);
  const lazyRefcounts = (values.get("lazy_refcounts") ?? header.lazyRefcounts) as boolean;
  if (version < 3 && lazyRefcounts && !header.lazyRefcounts) throw needsVersion3(LAZY_REFCOUNTS);
  const sizeBytes = (values.get("size") ?? 0) as number;
  return { version, refcountBits, lazyRefcounts, externalDataRaw, dataFileName, sizeBytes };
}

const REFCOUNT_WIDTHS = "Refcount widths other than 16 bits require compatibility level 1.1 or above";
const LAZY_REFCOUNTS = "Lazy refcounts only supported with compatibility level 1.1 and above";

function needsVersion3(what: string): CreateOptionsError {
  return new CreateOptionsError(`${what} (use compat=1.1 or greater)`);
}

function versionOf(compat: CreateValues extends Map<string, infer V> ? V | undefined : never, version: 2 | 3): 2 | 3 {
  if (compat === undefined) return version;
  if (compat === "0.10" || compat === "v2") return 2;
  if (compat === "1.1" || compat === "v3") return 3;
  throw new CreateOptionsError(`Unknown compatibility level ${compat}`);
}

/** That can only be said again. */
function checkBacking(values: CreateValues, { backingName, backingFormat }: Qcow2Header): void {
  const [name = null, format = null] = [values.get("backing_file"), values.get("backing_fmt")];
  if (name === null && format === null) return;
  if (name === backingName && format === backingFormat) return;
  throw new CreateOptionsError("Cannot amend the backing file", "You can use 'vblk rebase' instead.");
}
