/**
 * Changes what only a closed image's header says of it: names, features, version.
 *
 * @module
 */

import type { Qcow2Header } from "./header.ts";
import { changeHeader, writeHeader } from "./header_writer.ts";
import type { Qcow2File } from "./qcow2_file.ts";

/**
 * Replaces the header, safely, with the image clean and nobody writing (`Qcow2Image.exclusive`). What the image does
 * follows the header that it was opened with: after a change of version, features or tables it must be closed.
 *
 * @throws BlockError
 */
export async function replaceHeader(file: Qcow2File, change: Partial<Qcow2Header>): Promise<void> {
  await file.barrier();
  file.header = await writeHeader(file.storage, file.header, changeHeader(file.header, change));
}
