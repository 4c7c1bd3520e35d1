import { assert, assertEquals } from "@std/assert";
import { decompressorFor } from "../../../src/image/qcow2/compressed.ts";
import { compressBatch } from "../../../src/image/qcow2/compress_batch.ts";
import { compressorFor } from "../../../src/image/qcow2/compressor.ts";
import { CompressorPool } from "../../../src/image/qcow2/compressor_pool.ts";
import { Random } from "../../random.ts";
import { sameBytes } from "../../storage/support.ts";

function text(random: Random, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = 97 + random.below(4);
  return bytes;
}

for (const compression of ["zlib", "zstd"] as const) {
  Deno.test(`a cluster of any size comes back from ${compression}, and one of chance stays as it is`, () => {
    const random = new Random(1);
    const compress = compressorFor(compression)!;
    const decompress = decompressorFor(compression)!;
    for (let bits = 9; bits <= 21; bits++) {
      const cluster = text(random, 2 ** bits);
      const data = compress(cluster)!;
      assert(data.byteLength < cluster.byteLength / 2);
      // What follows in the last sector is not part of it.
      const stored = new Uint8Array(data.byteLength + 300).fill(0xaa);
      stored.set(data);
      assert(sameBytes(decompress(stored, cluster.byteLength)!, cluster));
      assertEquals(compress(random.bytes(2 ** bits)), null);
    }
  });
}

Deno.test("deflate looks back no further than the format allows: 4096 bytes", () => {
  // Chance that comes again after 8 KiB: a larger window would find it.
  const part = new Random(2).bytes(8192);
  const cluster = new Uint8Array(65536);
  for (let at = 0; at < cluster.byteLength; at += part.byteLength) cluster.set(part, at);
  assertEquals(compressorFor("zlib")!(cluster), null);
});

Deno.test("a pool with threads and one without give what a compressor gives, whoever ends first", async () => {
  const random = new Random(3);
  const clusterBytes = 4096;
  const batches = Array.from({ length: 12 }, () => {
    const clusters = new Uint8Array(random.between(1, 20) * clusterBytes);
    for (let at = 0; at < clusters.byteLength; at += clusterBytes) {
      clusters.set(random.oneIn(3) ? random.bytes(clusterBytes) : text(random, clusterBytes), at);
    }
    const count = clusters.byteLength / clusterBytes;
    return { clusters, wanted: Array.from({ length: count }, (_, i) => i).filter(() => random.oneIn(2)) };
  });
  for (const threads of [0, 2]) {
    const pool = (await CompressorPool.start("zlib", threads))!;
    assertEquals(pool.workers, threads);
    const results = await Promise.all(
      batches.map(({ clusters, wanted }) => pool.compress({ clusters: clusters.slice().buffer, clusterBytes, wanted })),
    );
    for (const [i, { clusters, wanted }] of batches.entries()) {
      const expected = compressBatch(
        { clusters: clusters.slice().buffer, clusterBytes, wanted },
        compressorFor("zlib")!,
      );
      assertEquals(results[i].lengths, expected.lengths);
      assert(sameBytes(new Uint8Array(results[i].data), new Uint8Array(expected.data)));
      // The buffer comes back with what was in it.
      assert(sameBytes(new Uint8Array(results[i].clusters), clusters));
    }
    pool.close();
  }
});
