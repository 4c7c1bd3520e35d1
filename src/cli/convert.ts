/**
 * `vblk convert`: copies disks into an image of another format.
 *
 * @module
 */

import { copyImages, type CopyOptions } from "../image/copy.ts";
import { CopyError } from "../image/copy_source.ts";
import type { CompressedTarget } from "../image/copy_compressed.ts";
import {
  asksForHelp,
  CreateOptionsError,
  createOptionsHelp,
  type CreateValues,
  readCreateOptions,
} from "../image/create_options.ts";
import type { Image } from "../image/image.ts";
import { backingOf } from "../image/map_chain.ts";
import type { Qcow2Header } from "../image/qcow2/header.ts";
import { CACHE_MODES } from "../script/open_settings.ts";
import type { Output } from "../script/session.ts";
import {
  CONVERT_HELP,
  CONVERT_LETTERS,
  CONVERT_OPTIONS,
  type ConvertOptions,
  convertOptions,
} from "./convert_options.ts";
import { type ImageArguments, imageCommand } from "./image_command.ts";
import type { Subcommand } from "./main.ts";
import { addBacking, createFormat, createTarget } from "./new_image.ts";
import { type Progress, progressFor } from "./progress.ts";
import { checkCache, ImageCommandError, openForCommand, usage } from "./qemu_img.ts";

/** The subcommand. */
export const subcommand: Subcommand = imageCommand({
  name: "convert",
  help: CONVERT_HELP,
  options: CONVERT_OPTIONS,
  letters: CONVERT_LETTERS,
  run,
});

async function run(given: ImageArguments, output: Output): Promise<number> {
  const options = convertOptions(given);
  if (options.createOptions !== null && asksForHelp(options.createOptions)) {
    output.out(createOptionsHelp(createFormat(options.targetFormat), options.sources.length > 0));
    return 0;
  }
  if (options.sources.length === 0) throw usage("convert", "Must specify image file name");
  checkCache(options.sourceCache, "source cache");
  const progress = progressFor(given, 1);
  progress.set(0);
  const sources: Image[] = [];
  const { snapshot } = options;
  try {
    if (snapshot !== undefined && options.sources.length > 1) {
      throw new ImageCommandError("No support for concatenating multiple snapshot");
    }
    for (const name of options.sources) sources.push(await openSource(name, options));
    await convert(sources, options, progress, output);
    progress.set(100);
    return 0;
  } finally {
    progress.end();
    for (const source of sources) await source.close();
  }
}

async function openSource(name: string, options: ConvertOptions): Promise<Image> {
  const { sourceFormat: format, imageOpts, share, snapshot } = options;
  const image = await openForCommand(name, { format, imageOpts, share, readOnly: true });
  if (snapshot === undefined) return image;
  const { openSnapshotForCommand } = await import("./convert_snapshot.ts");
  return await openSnapshotForCommand(image, snapshot);
}

async function convert(
  sources: readonly Image[],
  options: ConvertOptions,
  progress: Progress,
  output: Output,
): Promise<void> {
  const { target: name, targetFormat } = options;
  const totalBytes = sources.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const values = options.noCreate ? null : createValues(options, totalBytes);
  const backing = values?.get("backing_file") ?? options.backing;
  checkWishes(options, values, backing !== undefined);
  // Hardly anybody has any: the code is loaded for those who do.
  const copier = options.bitmaps ? await import("./convert_bitmaps.ts") : null;
  const bitmaps = await copier?.sourceBitmaps(sources, options.skipBrokenBitmaps);
  if (values !== null) {
    const format = createFormat(targetFormat);
    await createTarget(name, format, values, `converting ${format}`);
  }
  checkCache(options.targetCache, "cache");
  const { noFlush } = CACHE_MODES[options.targetCache];
  const target = await openForCommand(name, { format: targetFormat, noFlush });
  try {
    copier?.checkTakesBitmaps(target);
    if (target.sizeBytes < totalBytes) throw new ImageCommandError("output file is smaller than input file");
    await copy(sources, target, options, backing !== undefined, progress, output);
    if (bitmaps !== undefined) {
      await copier?.copyBitmaps(bitmaps, target, (line) => {
        progress.clear();
        output.err([`vblk: ${line}`]);
      });
    }
    if (!noFlush) await target.flush();
  } finally {
    await target.close();
  }
}

/** The target's options: `-o`, and what has letters of its own. */
function createValues(options: ConvertOptions, totalBytes: number): CreateValues {
  const format = createFormat(options.targetFormat);
  try {
    const values = readCreateOptions(format, options.createOptions ?? "");
    values.set("size", totalBytes);
    addBacking(values, format, options);
    return values;
  } catch (error) {
    if (error instanceof CreateOptionsError) throw new ImageCommandError(error.message, { hint: error.hint });
    throw error;
  }
}

/** What does not go together, in the order in which qemu-img looks. */
function checkWishes(options: ConvertOptions, values: CreateValues | null, hasBacking: boolean): void {
  const { compress, sources, targetFormat } = options;
  const preallocation = values?.get("preallocation") ?? "off";
  const broken: readonly (readonly [boolean, string])[] = [
    [
      options.targetIsZero && hasBacking,
      "Cannot use --target-is-zero when the destination image has a backing file",
    ],
    [
      sources.length > 1 && hasBacking,
      "Having a backing file for the target makes no sense when concatenating multiple input images",
    ],
    [
      values !== null && hasBacking && !values.has("backing_fmt"),
      "Use of backing file requires explicit backing format",
    ],
    [compress && targetFormat === "raw", "Compression not supported for this file format"],
    [compress && preallocation !== "off", "Compression and preallocation not supported at the same time"],
  ];
  const first = broken.find(([is]) => is);
  if (first !== undefined) throw new ImageCommandError(first[1]);
}

async function copy(
  sources: readonly Image[],
  target: Image,
  options: ConvertOptions,
  hasBacking: boolean,
  progress: Progress,
  output: Output,
): Promise<void> {
  const clusterBytes = (await target.details?.())?.clusterBytes;
  const behindTargetBytes = hasBacking ? backingOf(target)?.sizeBytes ?? Infinity : undefined;
  const copyOptions: CopyOptions = {
    sparseBytes: options.sparseBytes,
    // A new file reads as zeros; with a backing file, that is read.
    targetIsZero: options.targetIsZero || (!options.noCreate && !hasBacking),
    behindTargetBytes,
    unitBytes: clusterBytes,
    bytesPerSecond: options.bytesPerSecond,
    onProgress: (done, total) => done < total && progress.set(100 * done / total),
    onUnreadable: options.salvage
      ? (offset, { reason }) => {
        if (options.quiet) return;
        progress.clear();
        output.err([`vblk: warning: error while reading offset ${offset}: ${reason}`]);
      }
      : undefined,
  };
  try {
    if (options.compress) await compressed(sources, target as CompressedTarget, clusterBytes, copyOptions);
    else await plain(sources, target, copyOptions, options);
  } catch (error) {
    if (!(error instanceof CopyError)) throw error;
    progress.clear();
    throw new ImageCommandError(copyFailure(error), { hint: error.cause.hint, cause: error });
  }
}

async function plain(
  sources: readonly Image[],
  target: Image,
  copyOptions: CopyOptions,
  { snapshot, sources: names }: ConvertOptions,
): Promise<void> {
  const { readAhead } = await import("./convert_ahead.ts");
  const isAlone = sources.length === 1 && snapshot === undefined;
  const reader = isAlone ? await readAhead(sources[0], names[0]) ?? undefined : undefined;
  try {
    await copyImages(sources, target, { ...copyOptions, reader });
  } finally {
    reader?.close();
  }
}

function copyFailure({ side, offset, cause }: CopyError): string {
  if (side === "map") return `error while reading block status at offset ${offset}: ${cause.reason}`;
  return `error while ${side === "read" ? "reading" : "writing"} at byte ${offset}: ${cause.reason}`;
}

/** Less than this is compressed before a thread could start. */
const THREADS_FROM_BYTES = 4 << 20;

async function compressed(
  sources: readonly Image[],
  target: CompressedTarget,
  clusterBytes: number | undefined,
  options: CopyOptions,
): Promise<void> {
  if (target.writeCompressedCluster === undefined || clusterBytes === undefined) {
    throw new ImageCommandError("Compression not supported for this file format");
  }
  const [{ copyCompressed }, { CompressorPool }] = await Promise.all([
    import("../image/copy_compressed.ts"),
    import("../image/qcow2/compressor_pool.ts"),
  ]);
  const { compression, externalData } = (target as CompressedTarget & { readonly header: Qcow2Header }).header;
  if (externalData) {
    throw new ImageCommandError("error while writing at byte 0: Operation not supported", {
      hint: "an image with an external data file has no compressed clusters",
    });
  }
  const total = sources.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const threads = total < THREADS_FROM_BYTES ? 0 : navigator.hardwareConcurrency;
  const pool = await CompressorPool.start(compression, threads);
  if (pool === null) {
    throw new ImageCommandError(`This Deno does not have ${compression}: 2.9 or newer does`);
  }
  try {
    await copyCompressed(sources, target, clusterBytes, pool, options);
  } finally {
    pool.close();
  }
}
