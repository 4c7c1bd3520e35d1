/** Mutated images: open, read all, map; the answer is data or a BlockError, soon, and nothing else. */

import { assert, assertEquals } from "@std/assert";
import zlib from "node:zlib";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import { forSeedsAsync, type Random } from "../../random.ts";
import { build, type Built, type Plan, storageOf } from "./build.ts";
import { change } from "./mutate.ts";

const packed = new Uint8Array(zlib.deflateRawSync(new Uint8Array(512).fill(8)));
const packedZstd = new Uint8Array(zlib.zstdCompressSync(new Uint8Array(16384).fill(8)));
const text = (value: string) => new TextEncoder().encode(value);

/** Small images, with one of everything. */
const SOUND: readonly Plan[] = [
  { clusters: [{ data: 1 }, undefined, { entry: 1n }, { data: packed, compressed: true }, { data: 2 }] },
  { version: 2, clusters: [{ data: 1 }, { data: 2 }, { data: packed, compressed: true }] },
  {
    incompatible: 24n,
    compressionType: 1,
    clusterBits: 14,
    clusters: [{ data: 3, bitmap: 0xff00_0000_00ff_00ffn }, { data: packedZstd, compressed: true, bitmap: 0n }],
  },
  { backing: "base", extensions: [[0xe2792aca, text("raw")]], clusters: [undefined, { data: 1 }, undefined] },
  { incompatible: 4n, extensions: [[0x44415441, text("data")]], clusters: [{ entry: 1n << 63n }, undefined] },
  { autoclear: 1n, extensions: [[0x6803f857, new Uint8Array(96)]], clusters: [{ data: 1 }] },
];

const MUTATIONS = 24_000;
/** Most bytes that are read from the start of a mutated disk, and again before its end. */
const READ_BYTES = 1 << 17;

function mutate({ bytes, l1Offset, dataOffset }: Built, random: Random): void {
  // Half of the changes go to the header, the others to anything before the data.
  for (let n = random.between(1, 3); n > 0; n--) {
    const at = random.oneIn(2) ? random.below(160) : l1Offset + random.below(dataOffset - l1Offset);
    change(bytes, at, dataOffset, random);
  }
}

/** What became of an image; "data" or the kind of the error. */
async function outcome(bytes: Uint8Array): Promise<string> {
  try {
    const storage = storageOf(bytes);
    // Nothing outside the file may even be asked for.
    storage.hook = ({ kind, offset, lengthBytes }) => {
      assertEquals(kind, "read");
      assert(offset >= 0 && offset + lengthBytes <= bytes.byteLength, `read ${offset} ${lengthBytes}`);
      assert(lengthBytes <= bytes.byteLength);
    };
    const image = await Qcow2Image.open(storage, {
      openBacking: () => Promise.resolve(new RawImage(new MemoryStorage(700))),
      openDataFile: () => new MemoryStorage(600),
    });
    const length = Math.min(image.sizeBytes, READ_BYTES);
    for (const offset of [0, image.sizeBytes - length]) {
      await image.read(offset, SegmentList.over(new Uint8Array(length)));
      const extents = await image.map(offset, length);
      assertEquals(extents.reduce((total, extent) => total + extent.lengthBytes, 0), length);
    }
    await image.details();
    image.close();
    return "data";
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    assert(["corrupt", "unsupported"].includes(error.kind), error.message);
    return error.kind;
  }
}

Deno.test(`${MUTATIONS} mutated images end in data or in a BlockError; nothing outside the file is read`, async () => {
  const before = Deno.memoryUsage().rss;
  const seen: Record<string, number> = {};
  const images = SOUND.map(build);
  await forSeedsAsync(MUTATIONS, 1, async (random) => {
    const sound = random.pick(images);
    const bytes = sound.bytes.slice();
    mutate({ ...sound, bytes, view: new DataView(bytes.buffer) }, random);
    const end = random.oneIn(20) ? random.below(bytes.byteLength) : bytes.byteLength;
    const result = await outcome(bytes.subarray(0, end));
    seen[result] = (seen[result] ?? 0) + 1;
  });
  // The mutations are neither all deadly nor all harmless.
  assert(
    Object.keys(seen).length === 3 && Object.values(seen).every((count) => count > MUTATIONS / 100),
    JSON.stringify(seen),
  );
  assert(Deno.memoryUsage().rss - before < 1 << 30);
});

Deno.test("the images that are mutated are sound, and a broken one is noticed (canary)", async () => {
  for (const plan of SOUND) assertEquals(await outcome(build(plan).bytes), "data");
  const { bytes, view, l1Offset } = build(SOUND[0]);
  view.setBigUint64(l1Offset, 513n);
  assertEquals(await outcome(bytes), "corrupt");
});
