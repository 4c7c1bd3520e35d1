import { assertEquals } from "@std/assert";
import { MemoryRegion } from "../../src/memory/region.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { forSeeds, type Random } from "../random.ts";

/** A list of random segments of two regions, and beside it the place of each of its bytes. */
class Model {
  readonly regions = [0, 1].map((i) => new MemoryRegion(i * 4096, new Uint8Array(600)));
  readonly list = new SegmentList();
  /** By position in the list: index among all bytes of both regions. */
  readonly places: number[] = [];
  /** What all bytes of both regions must be. */
  readonly expected = new Uint8Array(1200);

  constructor(random: Random) {
    random.fill(this.expected);
    this.regions.forEach((region, i) => region.bytes.set(this.expected.subarray(i * 600, i * 600 + 600)));
    // Segments do not overlap, as the buffers of a well-behaved driver do not.
    for (let i = 0, at = 0; i < 12; i++) {
      const length = random.pick([0, 1, 5, 16, 32, 33, 70]);
      at += random.below(20);
      const index = at < 600 ? 0 : 1;
      if (at - index * 600 + length > 600) break;
      this.list.append(this.regions[index], at - index * 600, length);
      for (let k = 0; k < length; k++) this.places.push(at + k);
      at += length;
    }
  }

  check(what: string): void {
    const actual = this.regions.flatMap((region) => [...region.bytes]);
    const wrong = actual.findIndex((byte, i) => byte !== this.expected[i]);
    if (wrong >= 0) throw new Error(`${what}: byte ${wrong} is ${actual[wrong]}, not ${this.expected[wrong]}`);
  }
}

Deno.test("SegmentList.append() counts segments and bytes, and drops empty ranges", () => {
  const region = new MemoryRegion(0, new Uint8Array(64));
  const list = new SegmentList();
  for (const [offset, length] of [[0, 4], [9, 0], [60, 4], [2, 3]]) list.append(region, offset, length);
  const segments = Array.from({ length: list.count }, (_, i) => [list.offsetOf(i), list.lengthOf(i)]);
  assertEquals(segments, [[0, 4], [60, 4], [2, 3]]);
  assertEquals([list.byteLength, list.regionOf(1), list.viewOf(1).byteOffset], [11, region, 60]);
  list.clear();
  assertEquals([list.count, list.byteLength], [0, 0]);
});

Deno.test("SegmentList.over() covers the bytes themselves, not a copy, at an odd offset too", () => {
  const buffer = new Uint8Array(16);
  for (const offset of [0, 1, 4, 7]) {
    buffer.fill(9);
    const list = SegmentList.over(buffer.subarray(offset, offset + 5));
    assertEquals([list.count, list.byteLength], [1, 5]);
    list.copyFrom(Uint8Array.of(1, 2, 3, 4, 5));
    const expected = new Uint8Array(16).fill(9);
    expected.set([1, 2, 3, 4, 5], offset);
    assertEquals(buffer, expected);
    assertEquals([...list.viewOf(0)], [1, 2, 3, 4, 5]);
  }
  assertEquals(SegmentList.over(new Uint8Array(0)).count, 0);
});

Deno.test("SegmentList.copyTo() copies out what a flat array would, from anywhere and of any length", () => {
  forSeeds(300, 1, (random) => {
    const model = new Model(random);
    const total = model.places.length;
    for (let i = 0; i < 20; i++) {
      const [from, length] = [random.below(total + 3), random.below(total + 10)];
      const target = new Uint8Array(length).fill(0xee);
      const expected = new Uint8Array(length).fill(0xee);
      const places = model.places.slice(from, from + length);
      places.forEach((place, k) => expected[k] = model.expected[place]);
      assertEquals(model.list.copyTo(target, from), places.length);
      assertEquals(target, expected);
    }
    model.check("copyTo wrote to memory");
  });
});

Deno.test("SegmentList.copyFrom() and fill() change the bytes that they cover in a flat array, and no other", () => {
  forSeeds(300, 1000, (random) => {
    const model = new Model(random);
    const total = model.places.length;
    for (let i = 0; i < 20; i++) {
      const [from, length] = [random.below(total + 3), random.below(total + 10)];
      const places = model.places.slice(from, from + length);
      if (random.oneIn(2)) {
        const source = random.fill(new Uint8Array(length));
        assertEquals(model.list.copyFrom(source, from), places.length);
        places.forEach((place, k) => model.expected[place] = source[k]);
        model.check(`copyFrom(${length} bytes, ${from})`);
      } else {
        const value = random.below(256);
        model.list.fill(value, from, length);
        for (const place of places) model.expected[place] = value;
        model.check(`fill(${value}, ${from}, ${length})`);
      }
    }
    model.list.fill(7);
    for (const place of model.places) model.expected[place] = 7;
    model.check("fill(7)");
  });
});

Deno.test("SegmentList.appendRange() is the same bytes as the slice of a flat array", () => {
  forSeeds(300, 2000, (random) => {
    const model = new Model(random);
    const total = model.places.length;
    const target = new SegmentList();
    const places: number[] = [];
    for (let i = 0; i < 5; i++) {
      const from = random.below(total + 1);
      const length = random.below(total - from + 1);
      target.appendRange(model.list, from, length);
      places.push(...model.places.slice(from, from + length));
      const found = new Uint8Array(target.byteLength);
      assertEquals(target.byteLength, places.length);
      target.copyTo(found);
      assertEquals([...found], places.map((place) => model.expected[place]));
    }
  });
});

Deno.test("canary: the model of segment lists sees a wrong byte", () => {
  forSeeds(1, 1, (random) => {
    const model = new Model(random);
    model.regions[1].bytes[599] ^= 1;
    let message = "";
    try {
      model.check("canary");
    } catch (error) {
      message = (error as Error).message;
    }
    assertEquals(message.startsWith("canary: byte 1199 is "), true);
  });
});
