/**
 * Places for clusters that nobody has written to.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import type { Image } from "../image.ts";
import { CORRUPT, UNALLOCATED, writeEntry, writeSubclusters, ZERO } from "./l2_entry.ts";
import type { Qcow2Image } from "./qcow2_image.ts";
import type { WriteBack } from "./write_back.ts";

/** Whether an image is one of this format's. */
export function isQcow2(image: Image): image is Qcow2Image {
  return image.format === "qcow2" && "exclusive" in image;
}

const ALL_SUBCLUSTERS = 0xffffffff;

/**
 * Gives each cluster from `from` to `to` that has none a place in the file. In version 3 the clusters are marked as zeros,
 * so that whatever is in that place is never shown; version 2 has no such mark, and zeros are written. The image is clean, and nobody writes.
 *
 * @throws BlockError
 */
export async function preallocateMetadata(tables: WriteBack, from: number, to: number): Promise<void> {
  const { file, mapping, refcounts } = tables;
  const { clusterBytes, header } = file;
  let end = 0;
  const isExtended = mapping.subclusters > 1;
  for (let at = from - from % clusterBytes; at < to; at += clusterBytes) {
    await tables.relieve();
    const slice = await tables.tableFor(at);
    const place = mapping.inSlice(at);
    const kind = mapping.entry.read(slice, place, at);
    if (kind === CORRUPT) throw mapping.corruptEntry(at, "write");
    if (mapping.entry.placed || (kind !== UNALLOCATED && kind !== ZERO)) continue;
    const hostOffset = header.externalData ? at : await refcounts.allocate(1);
    if (header.version === 2) await file.writeData(hostOffset, SegmentList.over(new Uint8Array(clusterBytes)));
    if (!header.externalData) end = Math.max(end, hostOffset + clusterBytes);
    writeEntry(slice, place, hostOffset, true, header.version >= 3 && !isExtended);
    if (isExtended) writeSubclusters(slice, place, 0, ALL_SUBCLUSTERS);
  }
  await tables.flush();
  // Places are inside the file, as programs expect that read no refcounts.
  if (end <= file.storage.sizeBytes) return;
  await file.storage.truncate(end);
  file.noteEnd(end);
  mapping.grow(end);
}
