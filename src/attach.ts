/**
 * The short way to a disk: a name in, a running machine out.
 *
 * @module
 */

import { openImage, type OpenOptions } from "./image/open.ts";
import { Machine, type MachineOptions } from "./machine.ts";

/**
 * Opens an image and boots a machine with it.
 *
 * @param name a path, or `mem:SIZE` for a disk in memory
 * @throws BlockError when the image can't be opened
 * @throws RangeError for an option that makes no sense
 */
export async function attach(name: string, options: OpenOptions & MachineOptions = {}): Promise<Machine> {
  const image = await openImage(name, options);
  try {
    return await Machine.start(image, options);
  } catch (error) {
    await image.close();
    throw error;
  }
}
