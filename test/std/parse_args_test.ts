import { assertEquals } from "@std/assert";
import { parseArgs, type ParseOptions } from "@std/cli/parse-args";

/** Command lines, and what the original makes of them. */
const CASES: readonly [law: string, args: string[], options: ParseOptions, result: Record<string, unknown>][] = [
  ["a value follows, or is joined by =", ["--a", "x", "--b=y=z"], {}, { a: "x", b: "y=z", _: [] }],
  ["numbers become numbers", ["--a", "0x10", "5"], {}, { a: 16, _: [5] }],
  ["strings stay strings", ["--a", "0x10", "5"], { string: ["a", "_"] }, { a: "0x10", _: ["5"] }],
  ["an option is not a value", ["--a", "--b"], { string: "a" }, { a: "", b: true, _: [] }],
  ["a boolean takes no value", ["--a", "x"], { boolean: "a" }, { a: true, _: ["x"] }],
  ["a boolean takes true and false", ["--a", "false", "--b=false"], { boolean: ["a", "b"] }, {
    a: false,
    b: false,
    _: [],
  }],
  ["booleans that are absent are false", [], { boolean: "a" }, { a: false, _: [] }],
  ["short options can be joined", ["-ab", "-n5", "-o=x"], { boolean: ["a", "b"] }, {
    a: true,
    b: true,
    n: 5,
    o: "x",
    _: [],
  }],
  ["a short option takes the next argument", ["-c", "x", "-d", "-"], {}, { c: "x", d: "-", _: [] }],
  ["- is an argument", ["-"], {}, { _: ["-"] }],
  ["collected options are arrays", ["-c", "x", "-c", "y"], { string: ["c", "d"], collect: ["c", "d"] }, {
    c: ["x", "y"],
    d: [],
    _: [],
  }],
  ["an alias sets all names", ["-h"], { boolean: "help", alias: { help: "h" } }, { h: true, help: true, _: [] }],
  ["defaults fill in", ["--a", "1"], { default: { a: 2, b: 3 } }, { a: 1, b: 3, _: [] }],
  ["--no- negates what is negatable", ["--no-a", "--no-b"], { negatable: "a" }, { a: false, "no-b": true, _: [] }],
  ["-- ends the options", ["--a=1", "--", "--b"], {}, { a: 1, _: ["--b"] }],
  ["-- can have its own list", ["x", "--", "--b"], { "--": true }, { _: ["x"], "--": ["--b"] }],
  ["stopEarly ends them too", ["--a=1", "x", "--b"], { stopEarly: true }, { a: 1, _: ["x", "--b"] }],
];

for (const [law, args, options, result] of CASES) {
  Deno.test(`parseArgs(): ${law}`, () => {
    assertEquals<Record<string, unknown>>({ ...parseArgs(args, options) }, result);
  });
}

Deno.test("parseArgs() shows unknown() what was not declared, and drops it on false", () => {
  const seen: unknown[][] = [];
  const unknown = (...call: unknown[]) => {
    seen.push(call);
    return false;
  };
  const args = parseArgs(["--a=1", "--b=2", "x"], { string: "a", unknown });
  assertEquals<Record<string, unknown>>({ ...args }, { a: "1", _: [] });
  assertEquals(seen, [["--b=2", "b", "2"], ["x"]]);
});
