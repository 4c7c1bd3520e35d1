/** Canaries: every assertion of the stand-in can fail, and passes when it should. Judged by `node:assert` itself. */

import * as std from "@std/assert";
import nodeAssert from "node:assert";

const wrong = () => {
  throw new RangeError("out of range");
};

/** What each assertion must let pass, what it must not, and words of what it says then. */
const CASES: readonly { name: keyof typeof std; pass: () => unknown; fail: () => unknown; says: RegExp }[] = [
  { name: "assert", pass: () => std.assert(1), fail: () => std.assert(0, "why"), says: /^why$/ },
  { name: "fail", pass: () => {}, fail: () => std.fail("why"), says: /Failed assertion: why/ },
  {
    name: "assertEquals",
    pass: () => std.assertEquals({ a: [1n, new Uint8Array(2)] }, { a: [1n, new Uint8Array(2)] }),
    fail: () => std.assertEquals([1, 2], [1, 3], "why"),
    says: /Values are not equal: why\n[^]*3/,
  },
  {
    name: "assertNotEquals",
    pass: () => std.assertNotEquals([1], [2]),
    fail: () => std.assertNotEquals([1], [1]),
    says: /Expected actual: [^]*1[^]* not to be: /,
  },
  {
    name: "assertStrictEquals",
    pass: () => std.assertStrictEquals(NaN, NaN),
    fail: () => std.assertStrictEquals<unknown>([], []),
    says: /same structure but are not reference-equal/,
  },
  {
    name: "assertExists",
    pass: () => std.assertExists(0),
    fail: () => std.assertExists(null),
    says: /"null" to not be null or undefined/,
  },
  {
    name: "assertInstanceOf",
    pass: () => std.assertInstanceOf(new RangeError(), Error),
    fail: () => std.assertInstanceOf("text", Error),
    says: /instance of "Error" but was "string"/,
  },
  {
    name: "assertMatch",
    pass: () => std.assertMatch("abc", /b/),
    fail: () => std.assertMatch("abc", /x/),
    says: /"abc" to match: "\/x\/"/,
  },
  {
    name: "assertStringIncludes",
    pass: () => std.assertStringIncludes("abc", "b"),
    fail: () => std.assertStringIncludes("abc", "x"),
    says: /"abc" to contain: "x"/,
  },
  { name: "assertGreater", pass: () => std.assertGreater(2, 1), fail: () => std.assertGreater(1, 1), says: /1 > 1/ },
  {
    name: "assertGreaterOrEqual",
    pass: () => std.assertGreaterOrEqual(1, 1),
    fail: () => std.assertGreaterOrEqual(0, 1),
    says: /0 >= 1/,
  },
  { name: "assertLess", pass: () => std.assertLess(1, 2), fail: () => std.assertLess(1, 1), says: /1 < 1/ },
  {
    name: "assertLessOrEqual",
    pass: () => std.assertLessOrEqual(1, 1),
    fail: () => std.assertLessOrEqual(1, 0),
    says: /1 <= 0/,
  },
  {
    name: "assertThrows",
    pass: () => nodeAssert.ok(std.assertThrows(wrong, RangeError, "of range") instanceof RangeError),
    fail: () => std.assertThrows(() => {}, "why"),
    says: /Expected function to throw: why/,
  },
  {
    name: "assertThrows",
    pass: () => std.assertThrows(wrong),
    fail: () => std.assertThrows(wrong, TypeError),
    says: /instance of "TypeError", but was "RangeError"/,
  },
  {
    name: "assertThrows",
    pass: () => std.assertThrows(wrong, Error),
    fail: () => std.assertThrows(wrong, RangeError, "too long"),
    says: /include "too long", but got "out of range"/,
  },
  {
    name: "assertRejects",
    pass: () => std.assertRejects(() => Promise.reject(new RangeError("x")), RangeError, "x"),
    fail: () => std.assertRejects(() => Promise.resolve()),
    says: /Expected function to reject/,
  },
  {
    name: "assertRejects",
    pass: () => std.assertRejects(() => Promise.reject(1)),
    fail: () => std.assertRejects(wrong),
    says: /throws when expected to reject/,
  },
];

for (const { name, pass, fail, says } of CASES) {
  Deno.test(`${name}() passes what it should, and else says ${says}`, async () => {
    await pass();
    // An async function, because some assertions throw and some reject.
    await nodeAssert.rejects(async () => await fail(), (error: Error) => {
      nodeAssert.ok(error instanceof std.AssertionError);
      nodeAssert.match(error.message, says);
      return true;
    });
  });
}

Deno.test("every exported assertion has its canary", () => {
  const names = new Set<string>(CASES.map(({ name }) => name));
  nodeAssert.deepStrictEqual(Object.keys(std).filter((name) => name !== "AssertionError" && !names.has(name)), []);
});
