/**
 * What must be true of a qcow2 image after a crash, or at any other time: it opens for writing, its tables are sound, and
 * the disk and its snapshots hold what the model says.
 */

import { checkQcow2 } from "../../src/image/qcow2/check.ts";
import { ByteStorage } from "./byte_storage.ts";
import type { CrashState } from "./crash_explorer.ts";
import type { ModelDisk } from "./model_disk.ts";
import { audit } from "./qcow2_audit.ts";
import type { OpenQcow2, Qcow2Disk } from "./qcow2_disk.ts";
import { tagsOf } from "./sectors.ts";
import { asSnapshot, snapshotsOf } from "./snapshots.ts";
import { readTags } from "./world.ts";

/** What a judge found besides faults, which it throws. */
export interface Verdict {
  /** The image file after it was opened, repaired and closed. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly wasDirty: boolean;
  readonly leaks: number;
}

/** Judges files as a crash at `tick` left them; without a tick, as they are when all has ended well. */
export async function judgeQcow2(
  disk: Qcow2Disk,
  model: ModelDisk,
  { files, tick }: Pick<CrashState, "files"> & { tick?: number },
): Promise<Verdict> {
  const before = audit(files[0]);
  // Version 2 has no dirty bit to say that a snapshot is being made: flags may be behind their refcounts.
  const flagsMayLag = disk.shape.version === 2 && tick !== undefined && model.isInSnapshotOperation(tick);
  faultless("before it is opened", before, flagsMayLag);
  const storages = files.map((bytes, i) => new ByteStorage(bytes, i === 0 ? "disk.qcow2" : "data"));
  const image = await disk.open(storages);
  const sizes = model.sizes(tick);
  if (!sizes.includes(image.sizeBytes)) throw new Error(`the disk has ${image.sizeBytes} bytes, not ${sizes}`);
  model.check(0, await readTags(image, 0, image.sizeBytes), { tick });
  if (disk.shape.dataFile === "raw") checkRawFile(model, storages[1].bytes, image.sizeBytes, tick);
  await checkSnapshots(disk, model, storages.map((storage) => storage.bytes), tick);
  const { corruptions, checkErrors, findings } = await checkQcow2(storages[0], image.header);
  if (checkErrors > 0 || (corruptions > 0 && !flagsMayLag)) throw new Error(`vblk's own check: ${findings.join("; ")}`);
  await image.close();
  const after = audit(storages[0].bytes);
  faultless("after it was opened and closed", after, flagsMayLag);
  if (after.dirty) throw new Error("the image is dirty after it was closed");
  return { bytes: storages[0].bytes, wasDirty: before.dirty, leaks: after.leaks };
}

function faultless(when: string, { errors, wrongFlags }: ReturnType<typeof audit>, flagsMayLag: boolean): void {
  const faults = flagsMayLag ? errors : [...errors, ...wrongFlags];
  if (faults.length > 0) throw new Error(`${when}: ${faults.slice(0, 5).join("; ")}`);
}

/** A raw data file must read as the disk does, without the tables. */
function checkRawFile(model: ModelDisk, bytes: Uint8Array<ArrayBuffer>, sizeBytes: number, tick?: number): void {
  const raw = new Uint8Array(sizeBytes);
  raw.set(bytes.subarray(0, sizeBytes));
  try {
    model.check(0, tagsOf(raw), { tick });
  } catch (error) {
    throw new Error(`the raw data file: ${(error as Error).message}`);
  }
}

async function checkSnapshots(disk: Qcow2Disk, model: ModelDisk, files: Uint8Array[], tick?: number): Promise<void> {
  const found = snapshotsOf(files[0]);
  const names = found.map(({ name }) => name);
  const { must, may } = model.snapshotsAt(tick);
  const wrong = [...must.filter((name) => !names.includes(name)), ...names.filter((name) => !may.includes(name))];
  if (wrong.length > 0) throw new Error(`snapshots are ${names}; expected ${must}, and perhaps ${may}`);
  for (const snapshot of found) {
    const copies = [asSnapshot(files[0], snapshot), ...files.slice(1)].map((bytes) => new ByteStorage(bytes));
    const image: OpenQcow2 = await disk.open(copies, { readOnly: true });
    model.checkSnapshot(snapshot.name, await readTags(image, 0, image.sizeBytes));
    await image.close();
  }
}
