import { assert, assertEquals } from "@std/assert";
import { Histogram, HISTOGRAM_NUMBERS } from "../../src/trace/histogram.ts";
import { forSeeds } from "../random.ts";

/** Values from a nanosecond to minutes, all sizes equally often. */
function values(random: { below(n: number): number }, count: number): number[] {
  return Array.from({ length: count }, () => random.below(2 ** (1 + random.below(38))));
}

Deno.test("Histogram: count, sum, mean and max are exact, percentiles to within a sixteenth", () => {
  forSeeds(20, 1, (random) => {
    const all = values(random, 1 + random.below(500));
    const histogram = new Histogram();
    for (const value of all) histogram.add(value);
    const sum = all.reduce((a, b) => a + b, 0);
    assertEquals([histogram.count, histogram.sum, histogram.max], [all.length, sum, Math.max(...all)]);
    assertEquals(histogram.mean, sum / all.length);
    const sorted = all.toSorted((a, b) => a - b);
    for (const share of [0.01, 0.5, 0.9, 0.99, 1]) {
      const exact = sorted[Math.max(1, Math.ceil(share * sorted.length)) - 1];
      const found = histogram.percentile(share);
      assert(found >= exact && found <= exact * 17 / 16 + 1, `${share}: ${found} for ${exact}`);
    }
  });
});

Deno.test("Histogram.countBelow() is exact at powers of two", () => {
  forSeeds(20, 1, (random) => {
    const all = values(random, 300);
    const histogram = new Histogram();
    for (const value of all) histogram.add(value);
    for (let power = 4; power <= 40; power++) {
      assertEquals(histogram.countBelow(2 ** power), all.filter((value) => value < 2 ** power).length, `2^${power}`);
    }
  });
});

Deno.test("Histogram: two that look at one array see the same, from another thread too", () => {
  const memory = new Float64Array(new SharedArrayBuffer(8 * HISTOGRAM_NUMBERS));
  const [writer, reader] = [new Histogram(memory), new Histogram(memory)];
  writer.add(100);
  writer.add(2 ** 45);
  writer.add(-1);
  assertEquals([reader.count, reader.max, reader.percentile(0.5)], [3, 2 ** 45, 103]);
});
