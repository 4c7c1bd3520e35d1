/**
 * Internal snapshots of a qcow2 file, by the text of the format ("Snapshots") and not with the code under test.
 */

/** One entry of the snapshot table. */
export interface FoundSnapshot {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** The disk's size when it was taken; `null` where the entry does not say. */
  readonly sizeBytes: number | null;
}

/** The snapshot table of a file. */
export function snapshotsOf(bytes: Uint8Array): FoundSnapshot[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at: number, length: number) => new TextDecoder().decode(bytes.subarray(at, at + length));
  const found: FoundSnapshot[] = [];
  let at = Number(view.getBigUint64(64));
  for (let left = view.getUint32(60); left > 0; left--) {
    const idBytes = view.getUint16(at + 12);
    const nameBytes = view.getUint16(at + 14);
    const extraBytes = view.getUint32(at + 36);
    const idAt = at + 40 + extraBytes;
    found.push({
      id: text(idAt, idBytes),
      name: text(idAt + idBytes, nameBytes),
      l1Offset: Number(view.getBigUint64(at)),
      l1Entries: view.getUint32(at + 8),
      sizeBytes: extraBytes >= 16 ? Number(view.getBigUint64(at + 48)) : null,
    });
    at = Math.ceil((idAt + idBytes + nameBytes) / 8) * 8;
  }
  return found;
}

/** The file as it would be with a snapshot's tables for the disk's: good for reading, and for nothing else. */
export function asSnapshot(bytes: Uint8Array, snapshot: FoundSnapshot): Uint8Array<ArrayBuffer> {
  const copy = bytes.slice();
  const view = new DataView(copy.buffer);
  if (snapshot.sizeBytes !== null) view.setBigUint64(24, BigInt(snapshot.sizeBytes));
  view.setUint32(36, snapshot.l1Entries);
  view.setBigUint64(40, BigInt(snapshot.l1Offset));
  return copy;
}
