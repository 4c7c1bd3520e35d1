/**
 * The spec is the test plan: clauses.json lists the normative statements of VIRTIO 1.4, and here they are held
 * against the tests of this folder. Each clause names the tests that hold it or says why it does not apply
 * (`na`), and each test that it names exists.
 *
 * A test's name is read from the source, not from a run, so that this test needs no other to run first. The
 * name is the first argument of `Deno.test` or its `name`: a literal, literals joined by `+`, or a template, in
 * which each `${...}` stands for any text. So the tests that a loop makes from `${layout}: pop() refuses a loop`
 * are listed either as they print ("split: pop() refuses a loop") or once, as the template is written. A name
 * that has next to no words of its own would match anything and is not counted; neither is a test that is
 * always ignored, nor one that is made by a helper (steps are parts of a test, not tests).
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";

/** One normative statement; the fields of clauses.json. */
interface Clause {
  /** Section and ordinal within it. */
  id: string;
  section: string;
  /** Whose duty it is. */
  side: "driver" | "device";
  level: "MUST" | "MUST NOT" | "SHOULD" | "SHOULD NOT" | "MAY" | "states";
  /** Just enough words to find the clause. */
  quote: string;
  /** Names of the tests that hold it. */
  tests: string[];
  /** Why it does not apply to vblk. */
  na?: string;
}

const SIDES: unknown[] = ["driver", "device"];
const LEVELS: unknown[] = ["MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "states"];
const KEYS = ["id", "section", "side", "level", "quote", "tests", "na"];
/** The sections in scope: 2.1 to 2.9, 3.1 to 3.4, 4.2, 5.2 and 6. */
const SECTION = /^(2\.[1-9]|3\.[1-4]|4\.2|5\.2|6)(\.[1-9][0-9]*)*$/;
/** Quotes serve recognition; the text itself is OASIS's. */
const MAX_QUOTE_WORDS = 15;
/** A template with fewer letters than this outside its `${...}` says too little to recognise a test by. */
const MIN_OWN_LETTERS = 10;

/** What is wrong with the form of the list: fields, ids and order; nothing when it is sound. */
function formProblems(clauses: unknown): string[] {
  if (!Array.isArray(clauses) || clauses.length === 0) return ["clauses: not a list with something in it"];
  const problems: string[] = [];
  let before = { section: "", ordinal: 0 };
  clauses.forEach((clause, index) => {
    const say = (what: string) => problems.push(`${clause?.id ?? `clause ${index}`}: ${what}`);
    if (typeof clause !== "object" || clause === null) return say("not an object");
    const { id, section, side, level, quote, tests, na } = clause;
    for (const key of Object.keys(clause)) if (!KEYS.includes(key)) say(`unknown field ${key}`);
    if (typeof section !== "string" || !SECTION.test(section)) {
      return say(`section ${section} is not in scope`);
    }
    if (!SIDES.includes(side)) say(`side ${side}`);
    if (!LEVELS.includes(level)) say(`level ${level}`);
    if (!isText(quote) || quote.split(" ").length > MAX_QUOTE_WORDS) say("quote is missing or too long");
    if (!Array.isArray(tests) || !tests.every(isText)) say("tests is not a list of names");
    else if (new Set(tests).size !== tests.length) say("a test is listed twice");
    if (na !== undefined && !isText(na)) say("na gives no reason");
    // One check gives unique ids, no gaps and a stable order, which keep the file readable in diffs.
    const ordinal = section === before.section ? before.ordinal + 1 : 1;
    if (id !== `${section}-${ordinal}`) say(`expected the id ${section}-${ordinal}`);
    if (compareSections(before.section, section) > 0) say(`comes after §${before.section}`);
    before = { section, ordinal };
  });
  return problems;
}

/** Whether `value` is a string with something in it. */
function isText(value: unknown): value is string {
  return typeof value === "string" && value.trim() !== "";
}

/** Orders section numbers as the spec does: by number, a section before its parts. */
function compareSections(a: string, b: string): number {
  const [left, right] = [a, b].map((section) => section.split(".").map(Number));
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    if (left[i] !== right[i]) return left[i] - right[i];
  }
  return left.length - right.length;
}

/** The clauses with neither test nor reason, and those with both; nothing when each has exactly one of them. */
function coverageProblems(clauses: readonly Clause[]): string[] {
  return clauses.flatMap((clause) => {
    const tested = clause.tests.length > 0;
    const excused = clause.na !== undefined;
    if (tested !== excused) return [];
    const what = tested ? "has tests and an na" : "has neither test nor na";
    return [`${clause.id} ${what}: ${clause.side}, "${clause.quote}"`];
  });
}

/** The names listed in clauses that no test has. */
function unknownTests(clauses: readonly Clause[], names: readonly RegExp[]): string[] {
  return clauses.flatMap((clause) =>
    clause.tests.filter((test) => !names.some((name) => name.test(test)))
      .map((test) => `${clause.id} lists a test that does not exist: ${test}`)
  );
}

/** The names of the tests in a source text, as patterns. Deno's own parser reads it, so comments do not count. */
function testNames(source: string): RegExp[] {
  const names: RegExp[] = [];
  const collect = (call: Deno.lint.CallExpression) => {
    if (!isDenoTest(call.callee) || call.arguments.some(isIgnored)) return;
    const pattern = namePattern(call.arguments[0]);
    if (pattern !== undefined) names.push(pattern);
  };
  Deno.lint.runPlugin(
    { name: "spec", rules: { "test-names": { create: () => ({ CallExpression: collect }) } } },
    "source_test.ts",
    source,
  );
  return names;
}

/** Whether what is called is `Deno.test` or `Deno.test.only`. */
function isDenoTest(callee: Deno.lint.Node): boolean {
  if (callee.type !== "MemberExpression" || callee.property.type !== "Identifier") return false;
  if (callee.property.name === "only") return isDenoTest(callee.object);
  return callee.property.name === "test" && callee.object.type === "Identifier" &&
    callee.object.name === "Deno";
}

/** Whether an argument of `Deno.test` says `ignore: true`. A condition there is for the test run to report. */
function isIgnored(argument: Deno.lint.Node): boolean {
  const ignore = property(argument, "ignore");
  return ignore?.type === "Literal" && ignore.value === true;
}

/** The value of a property in an object literal. */
function property(node: Deno.lint.Node, name: string): Deno.lint.Node | undefined {
  if (node.type !== "ObjectExpression") return undefined;
  for (const item of node.properties) {
    if (item.type === "Property" && item.key.type === "Identifier" && item.key.name === name) {
      return item.value;
    }
  }
}

/** The pattern of a test's name, given the first argument of `Deno.test`. */
function namePattern(argument: Deno.lint.Node | undefined): RegExp | undefined {
  if (argument === undefined) return undefined;
  const parts = textParts(property(argument, "name") ?? argument);
  const letters = parts.join("").replace(/[^\p{Letter}]/gu, "").length;
  if (parts.includes(undefined) && letters < MIN_OWN_LETTERS) return undefined;
  // RegExp.escape guards the literal text: names are full of parentheses and dots.
  return new RegExp(
    `^${parts.map((part) => part === undefined ? ".*" : RegExp.escape(part)).join("")}$`,
    "s",
  );
}

/** The pieces of a text expression; `undefined` is a piece that only a run would tell. */
function textParts(node: Deno.lint.Node): (string | undefined)[] {
  if (node.type === "Literal" && typeof node.value === "string") return [node.value];
  if (node.type === "BinaryExpression" && node.operator === "+") {
    return [...textParts(node.left), ...textParts(node.right)];
  }
  if (node.type === "TemplateLiteral") {
    return node.quasis.flatMap((quasi, i) => i === 0 ? [quasi.cooked] : [undefined, quasi.cooked]);
  }
  return [undefined];
}

/** The files below `folder` that hold tests. */
function* testFiles(folder: URL): Generator<URL> {
  for (const entry of Deno.readDirSync(folder)) {
    if (entry.isDirectory) yield* testFiles(new URL(`${entry.name}/`, folder));
    else if (entry.name.endsWith("_test.ts")) yield new URL(entry.name, folder);
  }
}

/** The clauses of clauses.json. Reading it in each test keeps a broken file from breaking more than these tests. */
function readClauses(): Clause[] {
  return JSON.parse(Deno.readTextFileSync(new URL("clauses.json", import.meta.url))).clauses;
}

/** Fails with all problems, one on a line. */
function assertNone(problems: string[], what: string): void {
  assert(problems.length === 0, `${problems.length} ${what}:\n${problems.join("\n")}`);
}

Deno.test("clauses.json has well-formed clauses in the order of the sections, each once", () => {
  assertNone(formProblems(readClauses()), "problems of form");
});

Deno.test("every clause of VIRTIO 1.4 in scope has a test or a reason why it does not apply", () => {
  assertNone(coverageProblems(readClauses()), "clauses without exactly one of tests and na");
});

Deno.test("every test that a clause names exists", () => {
  const names = [...testFiles(new URL("../", import.meta.url))].flatMap((file) =>
    testNames(Deno.readTextFileSync(file))
  );
  const self = "every test that a clause names exists";
  assert(names.some((name) => name.test(self)), "the search for tests did not find the test that searches");
  assertNone(unknownTests(readClauses(), names), "names of tests that do not exist");
});

/** A sound clause, for canaries to break. */
const SOUND: Clause = {
  id: "2.1.1-1",
  section: "2.1.1",
  side: "driver",
  level: "MUST",
  quote: "words of the clause",
  tests: ["pop() refuses a loop"],
};

Deno.test("canary: a clause with neither test nor reason is reported, and one with both", () => {
  const reason = { ...SOUND, tests: [], na: "not offered" };
  assertEquals(coverageProblems([SOUND, reason]), []);
  assertEquals(coverageProblems([reason, { ...SOUND, tests: [] }]), [
    '2.1.1-1 has neither test nor na: driver, "words of the clause"',
  ]);
  assertEquals(coverageProblems([{ ...SOUND, na: "not offered" }]), [
    '2.1.1-1 has tests and an na: driver, "words of the clause"',
  ]);
  assertThrows(() => assertNone(["2.1.1-1 has ...", "2.1.1-2 has ..."], "clauses"), Error, "2.1.1-2 has ...");
});

Deno.test("canary: a clause that names a test that does not exist is reported", () => {
  const clause = { ...SOUND, tests: ["pop() refuses a loop", "pop() refuses nothing"] };
  assertEquals(unknownTests([clause], testNames('Deno.test("pop() refuses a loop", () => {});')), [
    "2.1.1-1 lists a test that does not exist: pop() refuses nothing",
  ]);
});

Deno.test("canary: each way in which clauses.json can be malformed is reported", () => {
  const second = { ...SOUND, id: "2.1.1-2" };
  const later = { ...SOUND, id: "2.10-1", section: "2.10" };
  const cases: [clauses: unknown, problems: string[]][] = [
    [[SOUND, second, { ...SOUND, id: "5.2.6.2-1", section: "5.2.6.2", na: "why" }], []],
    [{}, ["clauses: not a list with something in it"]],
    [[], ["clauses: not a list with something in it"]],
    [[null], ["clause 0: not an object"]],
    [[later], ["2.10-1: section 2.10 is not in scope"]],
    [[{ ...SOUND, "n/a": "why" }], ["2.1.1-1: unknown field n/a"]],
    [[{ ...SOUND, side: "both" }], ["2.1.1-1: side both"]],
    [[{ ...SOUND, level: "SHALL" }], ["2.1.1-1: level SHALL"]],
    [[{ ...SOUND, quote: "word ".repeat(16).trim() }], ["2.1.1-1: quote is missing or too long"]],
    [[{ ...SOUND, quote: undefined }], ["2.1.1-1: quote is missing or too long"]],
    [[{ ...SOUND, tests: "pop()" }], ["2.1.1-1: tests is not a list of names"]],
    [[{ ...SOUND, tests: ["a", "a"] }], ["2.1.1-1: a test is listed twice"]],
    [[{ ...SOUND, na: " " }], ["2.1.1-1: na gives no reason"]],
    [[SOUND, SOUND], ["2.1.1-1: expected the id 2.1.1-2"]],
    [[second], ["2.1.1-2: expected the id 2.1.1-1"]],
    [[{ ...SOUND, section: "2.7.10", id: "2.7.10-1" }, { ...SOUND, section: "2.7.9", id: "2.7.9-1" }], [
      "2.7.9-1: comes after §2.7.10",
    ]],
  ];
  for (const [clauses, problems] of cases) assertEquals(formProblems(clauses), problems);
});

Deno.test("the names of tests are read as they are written, and nothing else is taken for one", () => {
  const source = [
    'Deno.test("a literal", () => {});',
    "Deno.test('refuses (§2.7.5) a \"loop\"', () => {});",
    'Deno.test("joined " +',
    '  "by a plus", () => {});',
    'Deno.test({ fn() {}, permissions: {}, name: "in an object" });',
    'Deno.test.only("alone", () => {});',
    "for (const layout of LAYOUTS) Deno.test(`${layout}: pop() refuses a loop (${why(`x`)})`, () => {});",
    '// Deno.test("in a comment", () => {});',
    "const text = 'Deno.test(\"in a string\", () => {});';",
    'Deno.test.ignore("always ignored", () => {});',
    'Deno.test("ignored by an option", { ignore: true }, () => {});',
    "Deno.test(name, () => {});",
    "Deno.test(`${what} does ${that}`, () => {});",
    'other.test("of another", () => {});',
  ].join("\n");
  const names = testNames(source);
  const found = (name: string) => names.some((pattern) => pattern.test(name));
  const exist = [
    "a literal",
    'refuses (§2.7.5) a "loop"',
    "joined by a plus",
    "in an object",
    "alone",
    "split: pop() refuses a loop (size 4)",
    "${layout}: pop() refuses a loop (${why(`x`)})",
  ];
  assertEquals(exist.filter((name) => !found(name)), []);
  assertEquals(names.length, 6, "each test gives one pattern");
  const absent = [
    "a litera",
    "a literal!",
    "in a comment",
    "in a string",
    "always ignored",
    "of another",
    "name",
  ];
  assertEquals(absent.filter(found), []);
});
