/** The table of snapshots: what is written is read back, what QEMU writes is understood, and lies are refused. */

import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { Qcow2Header } from "../../../src/image/qcow2/header.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { newHeader } from "../../../src/image/qcow2/header_writer.ts";
import {
  encodeSnapshots,
  readSnapshots,
  readSnapshotTable,
  type Snapshot,
} from "../../../src/image/qcow2/snapshot_table.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { forSeedsAsync, Random } from "../../random.ts";
import { Folder } from "../../storage/support.ts";
import { storageOf } from "./build.ts";
import { NEEDS_QEMU, start } from "./shapes.ts";

const OFFSET = 512;

function pickSnapshot(random: Random): Snapshot {
  return {
    id: String(random.below(1000)),
    name: "näme ".repeat(random.below(random.pick([3, 300]))),
    l1Offset: 512 * random.below(2 ** 31),
    l1Entries: random.next(),
    dateSeconds: random.next(),
    dateNanoseconds: random.below(1e9),
    vmClockNanoseconds: BigInt(random.next()) << BigInt(random.below(33)),
    vmStateBytes: random.pick([0, 4096, 2 ** 40]),
    diskBytes: 512 * random.next(),
    icount: random.oneIn(2) ? null : BigInt(random.next()) << 20n,
    extraData: random.bytes(random.oneIn(2) ? 0 : random.below(100)),
  };
}

function tableAt(table: Uint8Array, snapshotCount: number) {
  const bytes = new Uint8Array(OFFSET + table.byteLength);
  bytes.set(table, OFFSET);
  const header: Qcow2Header = {
    ...newHeader({ version: 3, clusterBits: 9, refcountBits: 16 }),
    sizeBytes: 1 << 20,
    snapshotsOffset: OFFSET,
    snapshotCount,
  };
  return [storageOf(bytes), header] as const;
}

Deno.test("a table of snapshots is read back as it was written", async () => {
  await forSeedsAsync(200, 1, async (random) => {
    const snapshots = Array.from({ length: random.between(0, 40) }, () => pickSnapshot(random));
    const bytes = encodeSnapshots(snapshots);
    const found = await readSnapshotTable(...tableAt(bytes, snapshots.length));
    assertEquals(found.snapshots, snapshots);
    assertEquals(found.lengthBytes, bytes.byteLength);
  });
});

Deno.test({
  name: "QEMU's snapshots are understood, and written as QEMU writes them",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk.qcow2");
    for (const compat of ["0.10", "1.1"]) {
      await start("qemu-img", "create", "-q", "-f", "qcow2", "-o", `compat=${compat}`, path, "3M");
      await start("qemu-img", "snapshot", "-c", "first", path);
      await start("qemu-io", "-f", "qcow2", "-c", "write 0 1M", path);
      await start("qemu-img", "snapshot", "-c", "zweiter", path);
      const bytes = Deno.readFileSync(path);
      const header = await readHeader(storageOf(bytes));
      const { snapshots, lengthBytes } = await readSnapshotTable(storageOf(bytes), header);
      assertEquals(snapshots.map(({ id, name, diskBytes }) => [id, name, diskBytes]), [
        ["1", "first", 3 << 20],
        ["2", "zweiter", 3 << 20],
      ]);
      const table = bytes.subarray(header.snapshotsOffset, header.snapshotsOffset + lengthBytes);
      assertEquals(encodeSnapshots(snapshots), table.slice());
    }
  },
});

Deno.test("an old table without the extra fields means the disk as it is now", async () => {
  const snapshot = pickSnapshot(new Random(1));
  const table = encodeSnapshots([{ ...snapshot, vmStateBytes: 77, extraData: new Uint8Array() }]);
  const short = new Uint8Array([...table.subarray(0, 40), ...table.subarray(64)]);
  new DataView(short.buffer).setUint32(36, 0);
  const [found] = await readSnapshots(...tableAt(short, 1));
  assertEquals([found.vmStateBytes, found.diskBytes, found.icount], [77, 1 << 20, null]);
  assertEquals([found.id, found.name], [snapshot.id, snapshot.name]);
});

Deno.test("a table that lies is refused", async () => {
  const one = encodeSnapshots([{ ...pickSnapshot(new Random(1)), id: "1", name: "x", extraData: new Uint8Array() }]);
  const changed = (at: number, ...values: number[]) => {
    const copy = one.slice();
    copy.set(values, at);
    return copy;
  };
  const rows: [table: Uint8Array, count: number, says: string][] = [
    [one, 2, "beyond the end of the file"],
    [one, 65536, "beyond the end of the file"],
    [changed(36, 0xff, 0xff, 0xff, 0xff), 1, "Too much extra metadata in snapshot table entry 0"],
    [changed(12, 0xff, 0xff), 1, "beyond the end of the file"],
    [changed(0, 0xff), 1, "L1 table offset is too large"],
    [changed(48, 0xff), 1, "disk is too large"],
    [changed(one.byteLength - 1, 0), 1, "contains a NUL"],
    [changed(one.byteLength - 1, 0xff), 1, "is not UTF-8"],
  ];
  for (const [table, count, says] of rows) {
    await assertRejects(() => readSnapshots(...tableAt(table, count)), BlockError, says);
  }
});

Deno.test("names that no table can hold are refused", () => {
  const snapshot = pickSnapshot(new Random(1));
  assertThrows(() => encodeSnapshots([{ ...snapshot, name: "x".repeat(65536) }]), RangeError);
  assertThrows(() => encodeSnapshots([{ ...snapshot, extraData: new Uint8Array(1024) }]), RangeError);
});
