import { assert, assertEquals } from "@std/assert";
import { checkQcow2 } from "../../../src/image/qcow2/check.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { repairDirty, repairQcow2 } from "../../../src/image/qcow2/repair.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import type { Storage } from "../../../src/storage/storage.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { explore } from "../../simulation/crash_explorer.ts";
import { Recorder, RecordingStorage } from "../../simulation/recording_storage.ts";
import { Folder, run, sameBytes } from "../../storage/support.ts";
import { damaged } from "./damage.ts";
import { makeImage, NEEDS_QEMU, pattern, writePatternFile } from "./shapes.ts";

const IMAGES = 12;
const DAMAGED = 4;

/** Damage that leads no entry to somewhere else. */
const KINDS = ["refcount", "copied", "l1Copied", "zeroUnaligned", "refcountTable", "snapshotSizes"];

/** All of a disk; `null` when the image can't be read in full. What is behind it does not matter here. */
async function contents(bytes: Uint8Array): Promise<Uint8Array | null> {
  try {
    const image = await Qcow2Image.open(new ByteStorage(bytes), {
      readOnly: true,
      openBacking: () => Promise.resolve(new RawImage(new MemoryStorage(0))),
      openDataFile: () => new MemoryStorage(8 << 20),
    });
    const disk = new Uint8Array(image.sizeBytes);
    await image.read(0, SegmentList.over(disk));
    return disk;
  } catch (error) {
    if (error instanceof BlockError) return null;
    throw error;
  }
}

async function repair(storage: Storage, kind: "leaks" | "all") {
  return await repairQcow2(storage, await readHeader(storage, { forCheck: true }), kind);
}

async function check(storage: Storage) {
  return await checkQcow2(storage, await readHeader(storage, { forCheck: true }));
}

function qemuCheck(path: string, ...args: string[]) {
  const { code, stdout } = new Deno.Command("qemu-img", { args: ["check", "--output=json", ...args, path] })
    .outputSync();
  const text = new TextDecoder().decode(stdout);
  const json = text === "" ? {} : JSON.parse(text) as Record<string, number | undefined>;
  return { code, fixed: [json["leaks-fixed"] ?? 0, json["corruptions-fixed"] ?? 0], end: json["image-end-offset"] };
}

Deno.test({
  name: "repair makes of a damaged image what qemu-img makes of it, and keeps all data that could be read",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    let repaired = 0;
    for (let seed = 500; seed < 500 + IMAGES; seed++) {
      const random = new Random(seed);
      const { path, story } = await makeImage(folder, `disk-${seed}`, random);
      const sound = Deno.readFileSync(path);
      for (let i = 0; i < DAMAGED; i++) {
        const misled = random.oneIn(2);
        const { bytes, done } = damaged(sound, random, misled ? undefined : KINDS);
        const told = `with seed ${seed}, image ${i}: ${[...story, ...done].join("\n")}`;
        const kind = random.pick(["leaks", "all", "all"] as const);
        Deno.writeFileSync(path, bytes);
        const theirs = qemuCheck(path, "-r", kind);
        const storage = new ByteStorage(bytes);
        const before = await contents(bytes);
        const report = await repair(storage, kind).catch((error) => {
          if (!(error instanceof BlockError)) throw error;
          return null;
        });
        Deno.writeFileSync(path, storage.bytes);
        const { code, end } = qemuCheck(path);
        // Where an entry leads to metadata, data change with them.
        if (before !== null && !misled) assert(sameBytes(before, (await contents(storage.bytes))!), told);
        if (theirs.code !== 0) continue;
        assertEquals(code, 0, told);
        repaired++;
        // A refcount block far behind the end is where QEMU makes the file longer, and vblk writes the refcounts anew.
        if (report!.findings.some((line) => line.includes("is outside image"))) continue;
        assertEquals([report!.leaksFixed, report!.corruptionsFixed, end], [...theirs.fixed, theirs.end], told);
      }
    }
    assert(repaired >= IMAGES, `${repaired}`);
  },
});

/** Harm that a crash may not add: refcounts below the number of references, and COPIED where it should not be. */
function harms(findings: readonly string[], clusterBytes: number): Set<string> {
  const harms = new Set<string>();
  // Who owns what is only counted too often may write it in place.
  const owned = new Set(findings.map((line) => /^Leaked cluster (\d+) .* reference=1$/.exec(line)?.[1]));
  for (const line of findings) {
    const cluster = /^ERROR cluster (\d+) /.exec(line)?.[1];
    const entry = /OFLAG_COPIED.*_entry=([0-9a-f]+) refcount=(\d+)$/.exec(line);
    if (cluster !== undefined) harms.add(`cluster ${cluster}`);
    else if (entry === null && line.startsWith("ERROR")) harms.add(line);
    else if (entry !== null && entry[2] !== "1") {
      const place = Number(BigInt(`0x${entry[1]}`) & 0xfffffffffffe00n) / clusterBytes;
      if (!owned.has(`${place}`)) harms.add(`COPIED ${entry[1]}`);
    }
  }
  return harms;
}

Deno.test({
  name: "repair cut short by a crash leaves no harm that was not there, and all data; a second one finishes the work",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    let states = 0;
    let sound = new Uint8Array();
    for (let seed = 40; seed < 80; seed++) {
      const random = new Random(seed);
      if (seed % 5 === 0) sound = Deno.readFileSync((await makeImage(folder, `disk-${seed}`, random)).path);
      const { bytes, done } = damaged(sound, random, KINDS);
      if (bytes.byteLength > 3 << 20) continue;
      const first = await check(new ByteStorage(bytes));
      const data = await contents(bytes);
      const recorder = new Recorder();
      const whole = new ByteStorage(bytes);
      await repair(new RecordingStorage(whole, recorder), "all");
      const last = await check(whole);
      // What can't be repaired has no end to be compared with.
      if (first.failure !== null || last.failure !== null || last.corruptions > 0) continue;
      const clusterBytes = 2 ** bytes[23];
      const before = harms(first.findings, clusterBytes);
      states += await explore({
        initial: [bytes],
        operations: recorder.operations,
        random,
        samples: 1,
        states: 60,
        judge: async ({ files: [file] }) => {
          const found = await check(new ByteStorage(file));
          assertEquals(found.failure, null);
          for (const harm of harms(found.findings, clusterBytes)) {
            assert(before.has(harm), `${harm}\n${done.join("\n")}`);
          }
          if (data !== null) assert(sameBytes(data, (await contents(file))!), "data");
          const again = new ByteStorage(file);
          await repair(again, "all");
          const { corruptions, leaks, checkErrors } = await check(again);
          assertEquals([corruptions, leaks, checkErrors], [0, 0, 0]);
        },
      });
    }
    assert(states > 100, `${states}`);
  },
});

Deno.test({
  name: "repairDirty mends an image that was not closed, and drops the dirty bit; so does repair with the corrupt bit",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k", path, "4M");
    const args = ["-c", "write -P 7 0 1M", "-c", "abort", path];
    new Deno.Command("qemu-io", { args, stdout: "null", stderr: "null" }).outputSync();
    const storage = new ByteStorage(Deno.readFileSync(path));
    const header = await readHeader(storage);
    assertEquals(header.dirty, true);
    assert((await check(storage)).corruptions > 200);
    const repaired = await repairDirty(storage, header);
    assertEquals([repaired.dirty, repaired.incompatible], [false, 0n]);
    assertEquals((await contents(storage.bytes))!.subarray(0, 1 << 20).every((byte) => byte === 7), true);
    storage.bytes[79] |= 2;
    assertEquals((await readHeader(storage)).corrupt, true);
    await repair(storage, "leaks");
    assertEquals((await readHeader(storage)).corrupt, false);
    Deno.writeFileSync(path, storage.bytes);
    assertEquals(qemuCheck(path).code, 0);
  },
});

Deno.test({
  name: "repair says when only new refcounts would help and leaks alone are to be repaired, and changes nothing",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    const path = folder.file("disk.qcow2");
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "4M");
    const storage = new ByteStorage(Deno.readFileSync(path));
    storage.bytes.fill(0, 0x20000, 0x20002);
    const before = storage.bytes.slice();
    const report = await repair(storage, "leaks");
    assertEquals([report.failure, report.checkErrors], ["Input/output error", 1]);
    assertEquals(sameBytes(storage.bytes, before), true);
  },
});
