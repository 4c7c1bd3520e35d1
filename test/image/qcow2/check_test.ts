import { assert, assertEquals } from "@std/assert";
import { checkQcow2, type CheckReport } from "../../../src/image/qcow2/check.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { repairQcow2 } from "../../../src/image/qcow2/repair.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { DenoFileStorage } from "../../../src/storage/deno_file.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import type { Storage } from "../../../src/storage/storage.ts";
import { forSeedsAsync, Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { Folder } from "../../storage/support.ts";
import { build, COPIED, storageOf } from "./build.ts";
import { Anatomy, damaged } from "./damage.ts";
import { change } from "./mutate.ts";
import { makeImage, NEEDS_QEMU, pattern, writePatternFile } from "./shapes.ts";

const IMAGES = 14;
const DAMAGED = 6;

async function check(storage: Storage): Promise<CheckReport> {
  return await checkQcow2(storage, await readHeader(storage, { forCheck: true }));
}

async function checkFile(path: string): Promise<CheckReport | null> {
  const storage = DenoFileStorage.open(path, { readOnly: true });
  try {
    return await check(storage);
  } catch (error) {
    if (error instanceof BlockError) return null;
    throw error;
  } finally {
    storage.close();
  }
}

/** What `qemu-img check` says, under our names. */
async function theirReport(path: string) {
  const args = ["check", "--output=json", "-f", "qcow2", path];
  const { stdout, stderr } = await new Deno.Command("qemu-img", { args }).output();
  const text = new TextDecoder().decode(stdout);
  if (text === "") return null;
  const json = JSON.parse(text) as Record<string, number | undefined>;
  // A warning of the image's opening, which has no end of line.
  const warning = "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.";
  const lines = new TextDecoder().decode(stderr).replace(warning, "").split("\n");
  return {
    checkErrors: json["check-errors"] ?? 0,
    corruptions: json["corruptions"] ?? 0,
    leaks: json["leaks"] ?? 0,
    imageEndOffset: json["image-end-offset"] ?? 0,
    totalClusters: json["total-clusters"] ?? 0,
    allocatedClusters: json["allocated-clusters"] ?? 0,
    compressedClusters: json["compressed-clusters"] ?? 0,
    fragmentedClusters: json["fragmented-clusters"] ?? 0,
    findings: lines.filter((line) => line !== "" && !/^(?:qemu-img|qcow2): /.test(line)).slice(0, 1000),
  };
}

function ourReport(report: CheckReport | null) {
  if (report === null || report.failure !== null) return null;
  const { corruptionsFixed: _, leaksFixed: __, findingsLeftOut: ___, failure: ____, ...rest } = report;
  return rest;
}

Deno.test({
  name: "check finds in any image that QEMU makes, sound or damaged, what qemu-img finds, in its words",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    const seen = { clean: 0, damaged: 0 };
    for (let seed = 1; seed <= IMAGES; seed++) {
      const random = new Random(seed);
      const { path, story } = await makeImage(folder, `disk-${seed}`, random);
      const sound = Deno.readFileSync(path);
      for (let i = 0; i <= DAMAGED; i++) {
        const { bytes, done } = i === 0 ? { bytes: sound, done: [] } : damaged(sound, random);
        Deno.writeFileSync(path, bytes);
        const [ours, theirs] = [ourReport(await checkFile(path)), await theirReport(path)];
        assertEquals(ours, theirs, `with seed ${seed}, image ${i}: ${[...story, ...done].join("\n")}`);
        if (ours !== null) seen[ours.corruptions + ours.leaks + ours.checkErrors === 0 ? "clean" : "damaged"]++;
      }
    }
    assert(seen.clean >= IMAGES && seen.damaged >= IMAGES, JSON.stringify(seen));
  },
});

Deno.test({
  name: "check counts the clusters of bitmaps, of their tables and of the directory",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk.qcow2");
    const run = async (program: string, ...args: string[]) => {
      const { success } = await new Deno.Command(program, { args, stdout: "null" }).output();
      assert(success);
    };
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "4M");
    await run("qemu-img", "bitmap", "--add", "-g", "512", path, "b0");
    await run("qemu-img", "bitmap", "--add", path, "b1");
    await run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "write 1M 4k", path);
    const sound = Deno.readFileSync(path);
    assertEquals(ourReport(await checkFile(path)), await theirReport(path));
    // Without the extension's bit nobody refers to them, and they are leaked.
    sound[95] &= ~1;
    Deno.writeFileSync(path, sound);
    const report = ourReport(await checkFile(path));
    assertEquals(report, await theirReport(path));
    assert(report!.leaks >= 4, `${report!.leaks}`);
  },
});

/** An image in a sparse file, with an L1 table as large as can be. */
async function hugeL1(entry: bigint): Promise<MemoryStorage> {
  const { bytes, view } = build({ clusterBits: 9, clusters: [{ data: 1 }] });
  const entries = 4 << 20;
  view.setUint32(36, entries);
  view.setBigUint64(40, 1n << 20n);
  const storage = new MemoryStorage((1 << 20) + entries * 8);
  await storage.write(0, SegmentList.over(bytes));
  const table = new DataView(new ArrayBuffer(entries * 8));
  for (let i = 0; i < entries; i++) table.setBigUint64(i * 8, entry);
  await storage.write(1 << 20, SegmentList.over(new Uint8Array(table.buffer)));
  return storage;
}

Deno.test("check reads an L2 table that four million entries refer to once, and counts it as often", async () => {
  const { l2Offset } = build({ clusterBits: 9, clusters: [{ data: 1 }] });
  const report = await check(await hugeL1(COPIED | BigInt(l2Offset)));
  assertEquals(report.failure, null);
  assertEquals(report.allocatedClusters, 4 << 20);
  // A refcount of 16 bits can't count so many references to the table and to its one cluster: each is one finding.
  const overflows = 2 * ((4 << 20) - 0xffff);
  assert(report.corruptions >= overflows, `${report.corruptions}`);
});

Deno.test("check refuses an image whose unaligned tables lie over each other to keep it busy", async () => {
  const { bytes, view } = build({ clusterBits: 21, clusters: [{ data: 1 }] });
  const entries = 200_000;
  view.setUint32(36, entries);
  view.setBigUint64(40, 64n << 20n);
  const storage = new MemoryStorage(128 << 20);
  await storage.write(0, SegmentList.over(bytes));
  const table = new DataView(new ArrayBuffer(entries * 8));
  for (let i = 0; i < entries; i++) table.setBigUint64(i * 8, COPIED | BigInt(512 + i * 512));
  await storage.write(64 << 20, SegmentList.over(new Uint8Array(table.buffer)));
  let message = "";
  await check(storage).catch((error) => message = error.message);
  assert(message.includes("Tables overlap so often that the image can't be checked"), message);
});

Deno.test("check of a sparse file takes memory for what is in use, not for the file's size", async () => {
  const { bytes, view } = build({ clusterBits: 16, clusters: [{ data: 1 }] });
  const refcounts = BigInt(8 << 20);
  view.setBigUint64(48, refcounts);
  const storage = new MemoryStorage(2 ** 44 - 4096);
  await storage.write(0, SegmentList.over(bytes));
  const before = Deno.memoryUsage();
  const report = await check(storage);
  const after = Deno.memoryUsage();
  assertEquals(report.failure, null);
  assert(report.corruptions > 3);
  // A number for each of the 2^28 clusters would be a gigabyte.
  assert(after.external - before.external < 64 << 20, `${after.external - before.external}`);
});

Deno.test("check says so when a file has more clusters than can be counted", async () => {
  const { bytes } = build({ clusterBits: 9, clusters: [{ data: 1 }] });
  const storage = new MemoryStorage(2 ** 41);
  await storage.write(0, SegmentList.over(bytes));
  const report = await check(storage);
  assertEquals([report.failure, report.checkErrors], ["File too large", 1]);
});

Deno.test("check looks at an image without a refcount table, which nothing else opens", async () => {
  const { bytes, view } = build({ clusters: [{ data: 1 }] });
  view.setUint32(56, 0);
  await assertRejectsOpen(storageOf(bytes));
  const report = await check(storageOf(bytes));
  assertEquals([report.failure, report.leaks], [null, 0]);
  // Header, L1 table, L2 table, data; and two COPIED flags without a refcount of one.
  assertEquals(report.corruptions, 6, report.findings.join("\n"));
});

async function assertRejectsOpen(storage: Storage): Promise<void> {
  let opened = true;
  await readHeader(storage).catch(() => opened = false);
  assertEquals(opened, false);
}

const MUTATIONS = 1000;

Deno.test("check and repair of mutated images end in a report or a BlockError, and read nothing outside the file", async () => {
  const ends: Record<string, number> = { report: 0, failure: 0, error: 0 };
  const plans = [
    build({ clusters: [{ data: 1 }, { entry: 1n }, { data: new Uint8Array(300), compressed: true }, { data: 3 }] }),
    build({ incompatible: 16n, clusterBits: 14, clusters: [{ data: 3, bitmap: 0xff00ffn }, undefined, { data: 2 }] }),
    build({ version: 2, clusters: [{ data: 1 }, { data: 2 }] }),
  ];
  // With refcounts, and snapshots that share all of it.
  const sound: Uint8Array<ArrayBuffer>[] = [];
  for (const { bytes, view, l1Offset } of plans) {
    view.setUint32(60, 2);
    const clusterBytes = 2 ** view.getUint32(20);
    const whole = new Uint8Array(bytes.byteLength + 2 * clusterBytes);
    whole.set(bytes);
    whole.copyWithin(bytes.byteLength + clusterBytes, l1Offset, l1Offset + 8);
    const table = new DataView(whole.buffer, bytes.byteLength);
    new DataView(whole.buffer).setBigUint64(64, BigInt(bytes.byteLength));
    table.setBigUint64(0, BigInt(bytes.byteLength + clusterBytes));
    table.setUint32(8, 1);
    const storage = new ByteStorage(whole);
    await repairQcow2(storage, await readHeader(storage), "all");
    assertEquals((await check(storage)).corruptions, 0);
    sound.push(storage.bytes.slice());
  }
  await forSeedsAsync(MUTATIONS, 1, async (random) => {
    const bytes = random.pick(sound).slice();
    const { l1Offset } = new Anatomy(bytes);
    for (let n = random.between(1, 3); n > 0; n--) {
      const at = random.oneIn(3) ? random.below(112) : random.oneIn(2) ? l1Offset + random.below(1100) : random.below(
        bytes.byteLength - 8,
      );
      change(bytes, Math.min(at, bytes.byteLength - 8), bytes.byteLength, random);
    }
    const storage = new ByteStorage(bytes);
    try {
      const first = await check(storage);
      ends[first.failure === null ? "report" : "failure"]++;
      const header = await readHeader(storage, { forCheck: true });
      await repairQcow2(storage, header, random.pick(["leaks", "all"]));
      const last = await check(storage);
      if (first.failure === null && first.corruptions === 0) assertEquals(last.corruptions, 0);
      // A repair adds refcounts at most: a few clusters, which a changed header may say have 2 MiB.
      assert(storage.sizeBytes <= 16 << 20, `${storage.sizeBytes}`);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      ends.error++;
    }
  });
  for (const count of Object.values(ends)) assert(count > 10, JSON.stringify(ends));
});
