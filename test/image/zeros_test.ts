import { assertEquals } from "@std/assert";
import { firstDifferentSector } from "../../src/image/compare.ts";
import { firstNonZero, isZeros } from "../../src/image/zeros.ts";
import { forSeeds } from "../random.ts";

Deno.test("isZeros and firstNonZero find every byte that is not zero, wherever the buffer starts", () => {
  forSeeds(300, 1, (random) => {
    const whole = new Uint8Array(12_000);
    const start = random.below(40);
    const bytes = whole.subarray(start, start + random.between(1, 11_000));
    // What lies around the buffer must not matter.
    whole.fill(1, 0, start);
    whole.fill(1, start + bytes.byteLength);
    assertEquals([isZeros(bytes, 0, bytes.byteLength), firstNonZero(bytes)], [true, -1]);
    const at = random.below(bytes.byteLength);
    bytes[at] = 0x80;
    assertEquals([isZeros(bytes, 0, bytes.byteLength), firstNonZero(bytes)], [false, at]);
    assertEquals([isZeros(bytes, 0, at), isZeros(bytes, at + 1, bytes.byteLength)], [true, true]);
  });
});

Deno.test("firstDifferentSector finds the sector of the first byte that differs", () => {
  forSeeds(300, 1, (random) => {
    const a = random.bytes(random.between(1, 3000));
    const b = a.slice();
    assertEquals(firstDifferentSector(a, b), -1);
    const at = random.below(a.byteLength);
    b[at] ^= 1 << random.below(8);
    b[random.between(at, a.byteLength - 1)] ^= 0;
    assertEquals(firstDifferentSector(a, b), at - at % 512);
  });
});
