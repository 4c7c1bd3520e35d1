import { assert } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { makeImage, NEEDS_QEMU, pattern, writePatternFile } from "../image/qcow2/shapes.ts";
import { Random } from "../random.ts";
import { Folder } from "../storage/support.ts";
import { digHoles, hidesHoles, sameAsQemuImg } from "./qemu_img.ts";

const IMAGES = 30;

Deno.test({
  name: "map prints what qemu-img prints, in both forms, for any chain that QEMU makes",
  ...NEEDS_QEMU,
  async fn() {
    using folder = new Folder();
    pattern.path = writePatternFile(folder, new Random(0));
    let compared = 0;
    for (let seed = 1000; seed < 1000 + IMAGES; seed++) {
      const random = new Random(seed);
      const { path, sizeBytes, story } = await makeImage(folder, `disk-${seed}`, random);
      if (hidesHoles(path)) continue;
      compared++;
      // To vblk zeros are holes, since it can't ask where holes are. Make it true.
      if (existsSync(`${path}.base`)) digHoles(`${path}.base`);
      const range = ["-s", `${512 * random.below(sizeBytes / 512)}`, "-l", `${512 * random.between(1, 200)}`];
      for (const args of [[], ["--output=json"], [...range, "--output=json"]]) {
        await sameAsQemuImg(["map", ...args, path], `with seed ${seed}: ${story.join("\n")}`);
      }
    }
    assert(compared > IMAGES / 4);
  },
});
