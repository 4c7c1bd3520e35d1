/** New images: what they hold, and what a crash while they are made leaves. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  CreateOptionsError,
  createQcow2,
  createRaw,
  type Qcow2CreateOptions,
  refcountClustersFor,
} from "../../../src/image/qcow2/create.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { Qcow2Image } from "../../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { forSeedsAsync, type Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { explore, hashOf } from "../../simulation/crash_explorer.ts";
import { Recorder, RecordingStorage } from "../../simulation/recording_storage.ts";

function pickOptions(random: Random): Qcow2CreateOptions {
  const extendedL2 = random.oneIn(4);
  return {
    sizeBytes: 512 * random.below(4000),
    clusterBytes: 2 ** (extendedL2 ? 14 : random.between(9, 14)),
    refcountBits: 2 ** random.below(7),
    preallocation: random.pick(["off", "off", "metadata", "full"]),
    extendedL2,
  };
}

async function made(options: Qcow2CreateOptions): Promise<ByteStorage> {
  const storage = new ByteStorage(new Uint8Array());
  await createQcow2(storage, options);
  return storage;
}

Deno.test("createQcow2: a crash at any write leaves the old image, no image, or the new one", async () => {
  let judged = 0;
  await forSeedsAsync(60, 1, async (random) => {
    const before = (await made({ ...pickOptions(random), sizeBytes: 512 * random.between(1, 300) })).bytes.slice();
    const recorder = new Recorder();
    const storage = new RecordingStorage(new ByteStorage(before), recorder);
    await createQcow2(storage, { ...pickOptions(random), sizeBytes: 512 * random.between(1, 300) });
    const sound = [before, storage.inner.bytes.slice()].map(hashOf);
    judged += await explore({
      initial: [before],
      operations: recorder.operations,
      random,
      judge: async ({ files: [file] }) => {
        if (sound.includes(hashOf(file))) return;
        const failure = await readHeader(new ByteStorage(file)).then(() => null, (error) => error);
        assert(failure instanceof BlockError, "something that is neither image is an image");
        assertEquals(failure.reason, "Image is not in qcow2 format");
      },
    });
  });
  assert(judged > 500, `${judged}`);
});

Deno.test("a new image is a disk of zeros, of the size that was asked for", async () => {
  await forSeedsAsync(60, 1, async (random) => {
    const options = pickOptions(random);
    const storage = await made(options);
    const image = await Qcow2Image.open(storage, { readOnly: true });
    assertEquals(image.sizeBytes, options.sizeBytes);
    const bytes = new Uint8Array(options.sizeBytes).fill(1);
    if (bytes.byteLength > 0) await image.read(0, SegmentList.over(bytes));
    assert(bytes.every((byte) => byte === 0));
    await image.close();
  });
});

Deno.test("refcounts of a new image count themselves, and nothing is wasted", () => {
  for (let others = 1; others < 3000; others++) {
    for (const [clusterBytes, bits] of [[512, 64], [512, 16], [1024, 64], [4096, 1]]) {
      const perBlock = clusterBytes * 8 / bits;
      const { tableClusters, blocks } = refcountClustersFor(others, clusterBytes, bits);
      const all = others + tableClusters + blocks;
      assert(blocks * perBlock >= all && tableClusters * clusterBytes / 8 >= blocks, `${others}`);
      assert((blocks - 1) * perBlock < all && (tableClusters - 1) * clusterBytes / 8 < blocks, `${others}`);
    }
  }
});

Deno.test("what excludes each other is refused before anything is written", async () => {
  const storage = new ByteStorage(Uint8Array.of(1, 2, 3));
  const refused: [Qcow2CreateOptions, string][] = [
    [{ sizeBytes: 0, clusterBytes: 256 }, "Cluster size must be a power of two between 512 and 2048k"],
    [{ sizeBytes: 0, version: 2, refcountBits: 8 }, "Different refcount widths than 16 bits"],
    [{ sizeBytes: 2 ** 50, clusterBytes: 512 }, "The image size is too large for file format 'qcow2'"],
    [{ sizeBytes: 0, backingName: "a".repeat(600), clusterBytes: 512 }, "No space left on device"],
  ];
  for (const [options, says] of refused) {
    await assertRejects(() => createQcow2(storage, options), CreateOptionsError, says);
  }
  assertEquals([...storage.bytes], [1, 2, 3]);
});

Deno.test("createRaw forgets what was there, and makes the file as long as the disk", async () => {
  for (const preallocation of ["off", "falloc", "full"] as const) {
    const storage = new ByteStorage(new Uint8Array(5000).fill(7));
    await createRaw(storage, 3 << 20, preallocation);
    assertEquals(storage.sizeBytes, 3 << 20);
    assert(storage.bytes.every((byte) => byte === 0));
  }
});
