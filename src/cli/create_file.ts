/**
 * Makes the files of a new image: its own, and the external data file.
 *
 * @module
 */

import {
  type CreateFormat,
  type CreateValues,
  filePath,
  qcow2OptionsOf,
  rawPreallocationOf,
} from "../image/create_options.ts";
import { createQcow2, createRaw } from "../image/qcow2/create.ts";
import { completeOptions } from "../image/qcow2/create_options.ts";
import { DenoFileStorage } from "../storage/deno_file.ts";

/**
 * Makes an image. Wishes that can't be had, and files that somebody else uses, are refused before anything is changed. A
 * file that is new goes away again when it can't be finished.
 *
 * @param path the file; `file:` may be before it
 * @param values the options, the size of the disk among them
 * @throws CreateOptionsError, BlockError
 */
export async function createImageFile(path: string, format: CreateFormat, values: CreateValues): Promise<void> {
  if (format === "raw") {
    const preallocation = rawPreallocationOf(values);
    const sizeBytes = Math.ceil(Number(values.get("size") ?? 0) / 512) * 512;
    return await withFiles([path], ([storage]) => createRaw(storage, sizeBytes, preallocation));
  }
  const options = completeOptions(qcow2OptionsOf(values));
  const paths = options.dataFileName === null ? [path] : [path, options.dataFileName];
  await withFiles(paths, ([storage, dataStorage]) => createQcow2(storage, options, dataStorage));
}

/** Opens files that may not exist yet, and closes them; those that are new are removed when the action fails. */
async function withFiles(paths: readonly string[], action: (files: DenoFileStorage[]) => Promise<void>): Promise<void> {
  const files: DenoFileStorage[] = [];
  const added: string[] = [];
  try {
    for (const path of paths.map(filePath)) {
      const { storage, isNew } = DenoFileStorage.create(path);
      if (isNew) added.push(path);
      files.push(storage);
    }
    await action(files);
  } catch (error) {
    for (const path of added) Deno.removeSync(path);
    throw error;
  } finally {
    for (const file of files) file.close();
  }
}
