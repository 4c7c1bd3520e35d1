import { assertEquals } from "@std/assert";
import { splitWords } from "../../src/script/words.ts";
import { editDistance, nearest } from "../../src/script/suggest.ts";

Deno.test("splitWords() gives each word the column where it stood, counted from 1", () => {
  assertEquals(splitWords("  read -v\t0  512\r"), [
    { text: "read", column: 3 },
    { text: "-v", column: 8 },
    { text: "0", column: 11 },
    { text: "512", column: 14 },
  ]);
  assertEquals(splitWords(" \t "), []);
});

Deno.test("editDistance() counts letters put in, taken out, replaced and swapped", () => {
  const cases: [string, string, number][] = [
    ["", "", 0],
    ["read", "read", 0],
    ["raed", "read", 1],
    ["rea", "read", 1],
    ["reads", "read", 1],
    ["reed", "read", 1],
    ["flush", "read", 5],
    ["", "abc", 3],
  ];
  for (const [a, b, distance] of cases) {
    assertEquals(editDistance(a, b), distance, `${a} ${b}`);
    assertEquals(editDistance(b, a), distance, `${b} ${a}`);
  }
});

Deno.test("nearest() names what was meant, and nothing when nothing is near", () => {
  const names = ["read", "readv", "write", "flush"];
  assertEquals(nearest("raed", names), "read");
  assertEquals(nearest("wirte", names), "write");
  assertEquals(nearest("FLUSH", names), "flush");
  assertEquals(nearest("zzzzzz", names), undefined);
  assertEquals(nearest("read".repeat(1000), ["read".repeat(1000)]), undefined);
});
