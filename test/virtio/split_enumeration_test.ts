/**
 * Every small descriptor table of a split ring, against a walk that is written from the text of §2.7.5 alone. The
 * reference decides field by field while it walks, so each table that differs in what a device may look at is tried
 * once; what the device must not look at is filled with ones.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Choose, everyChoice } from "./every_choice.ts";
import { type Desc, INDIRECT, NEXT, segments, SplitRing, WRITE } from "./ring_harness.ts";

/** What a walk must come to: rules of which one is broken first, or a chain. */
interface Expected {
  broken?: string[];
  readable: [number, number][];
  writable: [number, number][];
  /** The rule that the chain breaks although it could be walked. */
  violation?: string;
  ringDescriptors: number;
}

const ONES: Desc = { address: 2n ** 64n - 1n, length: 0xffffffff, flags: 0xffff, next: 0xffff };

/** A table that is written while it is read. */
class LazyTable {
  readonly descs: (Desc | undefined)[];
  constructor(size: number, readonly make: (index: number) => Desc) {
    this.descs = new Array(size).fill(undefined);
  }
  at(index: number): Desc {
    return this.descs[index] ??= this.make(index);
  }
}

/** §2.7.5 and §2.7.5.3, from the text: follows next from `first`; a chain longer than `limit` is too long. */
function follow(table: LazyTable, first: number, limit: number): { path: Desc[]; broken?: string } {
  const path: Desc[] = [];
  for (let index = first;;) {
    if (path.length === limit) return { path, broken: "chain-too-long" };
    const desc = table.at(index);
    path.push(desc);
    if (desc.flags! & INDIRECT || !(desc.flags! & NEXT)) return { path };
    if (desc.next! >= table.descs.length) return { path, broken: "desc-range" };
    index = desc.next!;
  }
}

/** What the elements of a walked chain come to. */
function elements(path: readonly Desc[], ringDescriptors: number): Expected {
  const real = path.filter(({ length }) => length > 0);
  const isWritable = (desc: Desc) => (desc.flags! & WRITE) !== 0;
  const place = ({ address, length }: Desc): [number, number] => [Number(address), length];
  const firstWritable = real.findIndex(isWritable);
  const disorder = firstWritable >= 0 && real.slice(firstWritable).some((desc) => !isWritable(desc));
  return {
    readable: real.filter((desc) => !isWritable(desc)).map(place),
    writable: real.filter(isWritable).map(place),
    violation: disorder ? "readable-after-writable" : undefined,
    ringDescriptors,
  };
}

/** The rules that a descriptor with INDIRECT breaks by itself. */
function indirectRules(desc: Desc, negotiated: boolean): string[] {
  return [
    ...negotiated ? [] : ["indirect-not-negotiated"],
    ...desc.flags! & NEXT ? ["indirect-next"] : [],
    ...desc.length === 0 || desc.length % 16 !== 0 ? ["indirect-length"] : [],
  ];
}

/** Pops what is in the ring and compares it with what is expected. */
function compare(ring: SplitRing, expected: Expected, what: () => string): void {
  const { queue, chain } = ring;
  const popped = queue.pop(chain);
  if (expected.broken !== undefined) {
    if (popped || queue.violation === null || !expected.broken.includes(queue.violation.rule)) {
      throw new Error(`${what()}: got ${queue.violation?.rule ?? "a chain"}, expected ${expected.broken.join(" or ")}`);
    }
    return;
  }
  const found: Expected = {
    broken: queue.violation === null ? undefined : [queue.violation.rule],
    readable: segments(chain.readable),
    writable: segments(chain.writable),
    violation: chain.violation?.rule,
    ringDescriptors: chain.descriptorCount,
  };
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  if (!popped || left !== right) throw new Error(`${what()}: got ${left}, expected ${right}`);
}

/** Chooses an element: `next` among all indexes of the table, and two that are outside. */
function element(choose: Choose, ring: SplitRing, index: number, size: number, flags: readonly number[]): Desc {
  const chosen = choose(flags);
  const next = chosen & NEXT && !(chosen & INDIRECT)
    ? choose([...Array.from({ length: size }, (_, i) => i), size, 0xffff])
    : 0xffff;
  return { address: ring.data + 64 * index, length: choose([8, 0]), flags: chosen, next };
}

const DIRECT = [0, WRITE, NEXT, NEXT | WRITE];
const ALL = [...DIRECT, ...DIRECT.map((flags) => flags | INDIRECT)];

/** Writes the tables that were made, and ones everywhere else. */
function write(ring: SplitRing, table: LazyTable): void {
  for (let i = 0; i < table.descs.length; i++) ring.setDesc(i, table.descs[i] ?? ONES);
}

for (const size of [1, 2, 4]) {
  Deno.test(`SplitVirtqueue.pop() takes and refuses every direct chain of a queue of ${size} as the text says (VIRTIO 1.4 §2.7.5, §2.7.5.3.1)`, () => {
    // One ring and one memory for all; each run takes a fresh queue.
    const runs = everyChoice((choose) => {
      const ring = new SplitRing({ size, indirect: choose([true, false]) });
      const head = choose([...Array.from({ length: size }, (_, i) => i), size, 0xffff]);
      const table = new LazyTable(size, (i) => element(choose, ring, i, size, ALL));
      let expected: Expected = { readable: [], writable: [], ringDescriptors: 0 };
      if (head >= size) {
        expected.broken = ["head-range"];
      } else {
        const { path, broken } = follow(table, head, size);
        const last = path[path.length - 1];
        if (broken !== undefined) {
          expected.broken = [broken];
        } else if (last.flags! & INDIRECT) {
          // Their length is 8 or 0 here: no table at all. Tables are enumerated below.
          expected.broken = indirectRules(last, ring.options.indirect);
        } else {
          expected = elements(path, path.length);
        }
      }
      write(ring, table);
      ring.offerHead(head);
      compare(ring, expected, () => `head ${head}, table ${print(table.descs)}`);
    });
    assert(runs > 4 ** size, `only ${runs} tables`);
  });
}

for (const entries of [1, 2, 3]) {
  Deno.test(`SplitVirtqueue.pop() takes and refuses every indirect table of ${entries} behind 0 to 2 direct descriptors as the text says (VIRTIO 1.4 §2.7.5.3)`, () => {
    const runs = everyChoice((choose) => {
      const ring = new SplitRing({ size: 4, indirect: choose([true, false]) });
      const direct = choose([0, 1, 2]);
      const tableAddress = ring.data + 0x8000;
      const lead = Array.from({ length: direct }, (_, i): Desc => ({
        address: ring.far + 64 * i,
        length: 4,
        flags: NEXT | choose([0, WRITE]),
        next: i + 1,
      }));
      const pointer: Desc = {
        address: tableAddress,
        length: entries * 16 + choose([0, 1, 8]),
        flags: INDIRECT | choose([0, WRITE, NEXT]),
        next: 3,
      };
      const table = new LazyTable(
        entries,
        (i) => element(choose, ring, i, entries, [0, WRITE, NEXT, NEXT | WRITE, INDIRECT, INDIRECT | NEXT]),
      );
      let expected: Expected = { readable: [], writable: [], ringDescriptors: 0 };
      const broken = indirectRules(pointer, ring.options.indirect);
      if (broken.length > 0) {
        expected.broken = broken;
      } else {
        // A table's chain has no more descriptors than the table, or it has a loop.
        const inner = follow(table, 0, entries);
        const nested = inner.path.some(({ flags }) => flags! & INDIRECT);
        if (nested) expected.broken = ["indirect-nested"];
        else if (inner.broken !== undefined) expected.broken = [inner.broken];
        else expected = elements([...lead, ...inner.path], direct + 1);
      }
      [...lead, pointer].forEach((desc, i) => ring.setDesc(i, desc));
      for (let i = 0; i < entries; i++) ring.writeDesc(tableAddress + 16 * i, table.descs[i] ?? ONES);
      // Behind the table is what no device may take for its entry.
      ring.writeDesc(tableAddress + 16 * entries, ONES);
      ring.offerHead(0);
      compare(ring, expected, () => `behind ${direct}, pointer ${print([pointer])}, table ${print(table.descs)}`);
    });
    assert(runs > 100, `only ${runs} tables`);
  });
}

function print(descs: readonly (Desc | undefined)[]): string {
  const one = (desc: Desc | undefined) =>
    desc === undefined ? "-" : `(len ${desc.length} flags ${desc.flags} next ${desc.next})`;
  return descs.map(one).join(" ");
}

Deno.test("canary: the comparison with the reference walk sees a wrong rule, a missing violation and a wrong segment", () => {
  const offer = (...descs: Desc[]) => {
    const ring = new SplitRing({ size: 4 });
    ring.offerRaw(descs);
    return ring;
  };
  const readable: Desc = { address: 0x2_0000, length: 8 };
  const chain: Expected = { readable: [], writable: [], ringDescriptors: 1 };
  const wrong: [ring: SplitRing, expected: Expected, message: string][] = [
    [
      offer({ ...readable, flags: NEXT, next: 9 }),
      { ...chain, broken: ["chain-too-long"] },
      "got desc-range, expected",
    ],
    [offer(readable), { ...chain, broken: ["desc-range"] }, "got a chain, expected desc-range"],
    [offer(readable), chain, "got {"],
    [offer({ ...readable, flags: NEXT, next: 9 }), chain, 'got {"broken":["desc-range"]'],
  ];
  for (const [ring, expected, message] of wrong) {
    assertThrows(() => compare(ring, expected, () => "canary"), Error, `canary: ${message}`);
  }
});

Deno.test("canary: everyChoice() runs each combination once, with as many choices as each run asks for", () => {
  const seen: string[] = [];
  const runs = everyChoice((choose) => {
    const first = choose(["a", "b"]);
    seen.push(first === "a" ? first : first + choose(["x", "y", "z"]));
  });
  assertEquals([runs, seen], [4, ["a", "bx", "by", "bz"]]);
});
