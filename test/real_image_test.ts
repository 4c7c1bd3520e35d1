import { assertEquals } from "@std/assert";
import { realImage } from "./real_image.ts";

const image = await realImage();

Deno.test({
  name: "the real image is what it is taken for: bootable as a disk (boot signature) and as a CD (ISO 9660)",
  ...image.requirement,
  async fn() {
    const bytes = await Deno.readFile(image.path);
    assertEquals(bytes.byteLength % 512, 0);
    assertEquals([...bytes.subarray(510, 512)], [0x55, 0xaa]);
    // The first volume descriptor is in the 16th block of 2048 bytes, after its type.
    assertEquals(new TextDecoder().decode(bytes.subarray(0x8001, 0x8006)), "CD001");
  },
});
