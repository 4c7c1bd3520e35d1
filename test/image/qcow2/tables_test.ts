/** L1 and L2 entries that break the format, each on the way of a guest's read. */

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import zlib from "node:zlib";
import { GuestIoError } from "../../../src/guest/guest_error.ts";
import { Machine } from "../../../src/machine.ts";
import type { BlockError } from "../../../src/storage/block_error.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import type { TraceEvent } from "../../../src/trace/events.ts";
import { failureOf, readBytes } from "../../storage/support.ts";
import { build, type Built, COPIED, openBuilt, type Plan, storageOf } from "./build.ts";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";

const K16 = { incompatible: 16n, clusterBits: 14 };
const DATA_FILE: Plan = { incompatible: 4n, extensions: [[0x44415441, new TextEncoder().encode("data")]] };

/** The second of three clusters is broken, or its table. */
const CORRUPT: readonly (readonly [what: string, says: string, plan: Plan, entry?: bigint, bitmap?: bigint])[] = [
  ["an L2 entry with bit 1 set", "has reserved bits set", {}, COPIED | 0xa02n],
  ["an L2 entry with bit 56 set", "has reserved bits set", {}, COPIED | 1n << 56n | 0xa00n],
  ["a zero flag in version 2", "has reserved bits set", { version: 2 }, 1n],
  ["a zero flag with subclusters", "has reserved bits set", K16, 1n],
  ["an unaligned cluster", "not the start of a cluster", { clusterBits: 12 }, COPIED | 0x1200n],
  ["a cluster at the end of the file", "but the file ends at", {}, COPIED | 1n << 20n],
  ["a cluster at 2^56 - 512", "but the file ends at", {}, COPIED | 0xfffffffffffe00n],
  ["compressed data at the end of the file", "but the file ends at", {}, 1n << 62n | 1n << 30n],
  ["compressed data with bits above 55", "has reserved bits set", {}, 1n << 62n | 1n << 57n],
  ["compressed data that are none", "compressed with zlib is not", {}, 1n << 62n | 0x200n],
  ["compressed data in an image with a data file", "external data file cannot have", DATA_FILE, 1n << 62n],
  ["an offset in a data file that is not the guest's", "which is not the guest's", DATA_FILE, COPIED | 0x800n],
  ["a subcluster that is allocated and zero", "subclusters that are", K16, undefined, 1n << 32n | 1n],
  ["a subcluster without a cluster", "subclusters that are", K16, 0n, 1n],
  ["compressed data with subclusters", "compressed cluster and has subclusters", K16, 1n << 62n | 0x200n, 1n],
];

/** A machine with the image, and what went wrong. */
async function machineOf(image: Built, events?: TraceEvent[]) {
  const errors: BlockError[] = [];
  const openDataFile = () => new MemoryStorage(1 << 20);
  const opened = await Qcow2Image.open(storageOf(image.bytes), { openDataFile });
  const trace = events === undefined ? undefined : (event: TraceEvent) => void events.push(event);
  const options = { ramBytes: 4 << 20, trace, hostError: (error: BlockError) => void errors.push(error) };
  return { machine: await Machine.start(opened, { ...options, device: { readOnly: true } }), errors };
}

async function assertBroken(image: Built, clusterBytes: number, says: string): Promise<void> {
  const events: TraceEvent[] = [];
  const { machine, errors } = await machineOf(image, events);
  await assertRejects(() => machine.guest.read(clusterBytes, 512), GuestIoError, "S_IOERR");
  assertEquals(errors.length, 1);
  assertEquals([errors[0].kind, errors[0].path, errors[0].operation], ["corrupt", "disk.qcow2", "read"]);
  assertStringIncludes(errors[0].message, says);
  // Where compressed data are is no matter of what they are.
  if (!says.startsWith("compressed with")) {
    assertEquals((await failureOf(() => machine.image.map(0, 3 * clusterBytes))).kind, "corrupt");
  }
  await machine.close();
}

for (const [what, says, plan, entry, bitmap] of CORRUPT) {
  Deno.test(`${what}: the guest's read ends in S_IOERR, its neighbours are read, the device goes on`, async () => {
    const first = plan === DATA_FILE ? { entry: COPIED } : { data: 5 };
    const third = plan === DATA_FILE ? { entry: COPIED | 1024n } : { data: 6 };
    const image = build({ ...plan, clusters: [first, { entry, bitmap }, third] });
    const clusterBytes = 2 ** (plan.clusterBits ?? 9);
    await assertBroken(image, clusterBytes, says);
    const { machine } = await machineOf(image);
    const expected = plan === DATA_FILE ? [0, 0] : [5, 6];
    assertEquals(
      [(await machine.guest.read(0, 512))[0], (await machine.guest.read(2 * clusterBytes, 512))[0]],
      expected,
    );
    await machine.close();
  });
}

const L1_CORRUPT: readonly (readonly [what: string, says: string, entry: bigint])[] = [
  ["a reserved bit in an L1 entry", "has reserved bits set", COPIED | 1n << 60n],
  ["a low reserved bit in an L1 entry", "has reserved bits set", 0x601n],
  ["an unaligned L2 table", "which is not the start of a cluster", COPIED | 0x1200n],
  ["an L2 table behind the end", "but the file ends at", COPIED | 1n << 40n],
  ["an L2 table that goes over the end", "but the file ends at", COPIED | 0x7000n],
];

for (const [what, says, entry] of L1_CORRUPT) {
  Deno.test(`${what}: the guest's read ends in S_IOERR`, async () => {
    const image = build({ clusterBits: 12, clusters: [{ data: 1 }, { data: 2 }] });
    image.bytes = image.bytes.slice(0, 0x7800);
    image.view = new DataView(image.bytes.buffer);
    image.view.setBigUint64(image.l1Offset, entry);
    await assertBroken(image, 4096, says);
  });
}

Deno.test("an image without a fault has none (canary)", async () => {
  const { machine, errors } = await machineOf(build({ clusters: [{ data: 5 }, { data: 6 }, { data: 7 }] }));
  assertEquals((await machine.guest.read(512, 512))[0], 6);
  assertEquals(errors, []);
  await machine.close();
});

Deno.test("the last cluster of a file that is cut inside it reads as zeros behind the cut, as in QEMU", async () => {
  const { bytes } = build({ clusterBits: 12, clusters: [{ data: 9 }] });
  const image = await openBuilt({ bytes: bytes.subarray(0, bytes.byteLength - 1000) });
  const expected = new Uint8Array(4096);
  expected.fill(9, 0, 3096);
  assertEquals(await readBytes(image, 0, 4096), expected);
});

Deno.test("what zeros, subclusters and missing entries read as does not depend on what is stored behind them", async () => {
  // Allocated: even subclusters. Zero: every fourth odd one. The rest is the backing image's, which ends early.
  const evens = 0x55555555n;
  const zeros = 0x22222222n;
  const plan = { ...K16, backing: "base", clusters: [{ data: 3, bitmap: zeros << 32n | evens }] };
  const { RawImage } = await import("../../../src/image/raw/raw_image.ts");
  const base = new MemoryStorage(8192);
  const { SegmentList } = await import("../../../src/memory/segment_list.ts");
  base.write(0, SegmentList.over(new Uint8Array(8192).fill(4)));
  const image = await openBuilt(build(plan), { openBacking: () => Promise.resolve(new RawImage(base)) });
  const found = await readBytes(image, 0, 16384);
  for (let sub = 0; sub < 32; sub++) {
    const expected = sub % 2 === 0 ? 3 : sub % 4 === 1 ? 0 : sub < 16 ? 4 : 0;
    assert(found.subarray(sub * 512, sub * 512 + 512).every((byte) => byte === expected), `subcluster ${sub}`);
  }
});

for (const compression of ["zlib", "zstd"] as const) {
  const pack = (data: Uint8Array) =>
    new Uint8Array(compression === "zlib" ? zlib.deflateRawSync(data) : zlib.zstdCompressSync(data));
  const plan = { clusterBits: 12, ...compression === "zstd" ? { incompatible: 8n, compressionType: 1 } : {} };
  const good = new Uint8Array(4096).map((_, i) => i >> 4);

  Deno.test(`a cluster compressed with ${compression} may be followed by anything in its last sector`, async () => {
    for (const rest of [0, 0xff, 0x28]) {
      const packed = pack(good);
      const data = new Uint8Array(Math.ceil(packed.byteLength / 512) * 512).fill(rest);
      data.set(packed);
      const image = await openBuilt(build({ ...plan, clusters: [{ data, compressed: true }] }));
      assertEquals(await readBytes(image, 0, 4096), good);
    }
  });

  const bad = {
    "less than a cluster": pack(good.subarray(0, 4095)),
    "256 MiB": pack(new Uint8Array(256 << 20)).subarray(0, 4096),
    "what was cut off": pack(good).subarray(0, pack(good).byteLength - 9),
    "zeros": new Uint8Array(100),
  };
  for (const [what, data] of Object.entries(bad)) {
    Deno.test(`a compressed cluster (${compression}) of ${what} is corrupt, whatever it would grow to`, async () => {
      const image = await openBuilt(build({ ...plan, clusters: [{ data, compressed: true }] }));
      assertEquals((await failureOf(() => readBytes(image, 0, 512))).kind, "corrupt");
    });
  }
}
