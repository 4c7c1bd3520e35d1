/**
 * Gives a part of a disk its space before anybody writes to it.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Image } from "./image.ts";
import type { Preallocation } from "./qcow2/create_options.ts";

const CHUNK_BYTES = 2 << 20;

/**
 * Gives the bytes from `from` to `to` their space; they read as zeros, before and afterwards.
 *
 * `metadata` makes the places and leaves them empty; that only qcow2 has. `falloc` and `full` write zeros: the host's
 * file API has no other way to get space.
 *
 * @throws BlockError
 */
export async function preallocate(image: Image, from: number, to: number, mode: Preallocation): Promise<void> {
  if (mode === "off") return;
  if (mode === "metadata") {
    const { isQcow2, preallocateMetadata } = await import("./qcow2/preallocate.ts");
    if (isQcow2(image)) return await image.exclusive((tables) => preallocateMetadata(tables, from, to));
  }
  const zeros = new Uint8Array(Math.min(CHUNK_BYTES, to - from));
  for (let at = from; at < to;) {
    const take = Math.min(CHUNK_BYTES - at % CHUNK_BYTES, to - at);
    await image.write(at, SegmentList.over(zeros.subarray(0, take)));
    at += take;
  }
}
