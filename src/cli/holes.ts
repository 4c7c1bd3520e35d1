/**
 * What `map` says beyond what a reader needs: holes of raw files, and places of clusters that read as zeros.
 *
 * @module
 */

import type { Extent, Image } from "../image/image.ts";
import type { MapChainOptions } from "../image/map_chain.ts";
import type { Qcow2Image } from "../image/qcow2/qcow2_image.ts";
import type { ZeroPlaces } from "../image/qcow2/zero_places.ts";

/** Options for the map of a chain that leaves nothing out. */
export function fullMap(): MapChainOptions {
  const known = new Map<Image, ZeroPlaces>();
  return {
    findHoles: mayHaveHoles,
    places: async (image: Image, extent: Extent) => {
      if (image.format !== "qcow2") return [extent];
      const { ZeroPlaces } = await import("../image/qcow2/zero_places.ts");
      const places = known.get(image) ?? new ZeroPlaces(image as Qcow2Image);
      known.set(image, places);
      return await places.split(extent);
    },
  };
}

/**
 * Whether a raw image takes less space than its size says. Deno can't ask a file system where holes are; whoever
 * wants to know must look for zeros, which is left out for files that can't have any.
 */
export function mayHaveHoles({ name }: Image): boolean {
  try {
    const { isFile, blocks, size } = Deno.statSync(name);
    // Where the system does not say (Windows), nothing is known, and all counts as data.
    return isFile && blocks !== null && blocks * 512 < size;
  } catch {
    // A disk in memory has no file.
    return false;
  }
}
