import { assert, assertEquals } from "@std/assert";
import { preallocate } from "../../../src/image/preallocate.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { audit } from "../../simulation/qcow2_audit.ts";
import { makeQcow2Disk, PLAIN, type Qcow2Shape } from "../../simulation/qcow2_disk.ts";
import { readBytes } from "../../storage/support.ts";

const SHAPES: readonly Partial<Qcow2Shape>[] = [
  {},
  { version: 2 },
  { clusterBytes: 16 << 10, extendedL2: true },
  { lazyRefcounts: true },
];

for (const shape of SHAPES) {
  for (const mode of ["metadata", "falloc", "full"] as const) {
    const name = `preallocate() with ${mode} shows nothing of what was in the clusters that it takes: ${
      JSON.stringify(shape)
    }`;
    Deno.test(name, async () => {
      const sizeBytes = 128 << 10;
      const disk = await makeQcow2Disk({ ...PLAIN, sizeBytes, ...shape });
      // This one fills with junk what is given up.
      const storage = new ByteStorage(disk.initial[0]);
      const image = await disk.open([storage]);
      await image.write(0, SegmentList.over(new Uint8Array(sizeBytes).fill(7)));
      await image.discard(0, sizeBytes);
      await image.flush();
      const half = sizeBytes / 2;
      await preallocate(image, half, sizeBytes, mode);
      assert(
        (await readBytes(image, 0, sizeBytes)).every((byte) => byte === 0),
        "it reads as something else than zeros",
      );
      const fileBytes = storage.sizeBytes;
      // There is a place for everything already.
      await image.write(half, SegmentList.over(new Uint8Array(half).fill(9)));
      await image.close();
      assertEquals(storage.sizeBytes, fileBytes);
      assertEquals(audit(storage.bytes).errors, []);
      const again = await disk.open([storage]);
      assert((await readBytes(again, half, half)).every((byte) => byte === 9));
      await again.close();
    });
  }
}
