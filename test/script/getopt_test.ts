import { assertEquals, assertThrows } from "@std/assert";
import { getopt, type LongOption, OptionError } from "../../src/script/getopt.ts";

const LONGS: readonly LongOption[] = [
  { name: "cache", value: "required", letter: "t" },
  { name: "cmd", value: "required", letter: "c" },
  { name: "trace", value: "optional" },
  { name: "stats", value: "none" },
];

function given(words: string[], letters = "vqP:", longs?: readonly LongOption[]) {
  const { options, operands } = getopt(words, letters, longs);
  return [options.map(({ name, value }) => value === null ? name : `${name}=${value}`), operands.map((i) => words[i])];
}

Deno.test("getopt() reads short options apart, clustered, and with a value joined or separate", () => {
  assertEquals(given(["-v", "-q", "0"]), [["v", "q"], ["0"]]);
  assertEquals(given(["-vq", "0"]), [["v", "q"], ["0"]]);
  assertEquals(given(["-P0xaa"]), [["P=0xaa"], []]);
  assertEquals(given(["-P", "0xaa"]), [["P=0xaa"], []]);
  assertEquals(given(["-vP", "-q", "1"]), [["v", "P=-q"], ["1"]]);
});

Deno.test("getopt() takes options behind operands, until --", () => {
  assertEquals(given(["0", "-v", "4k", "-q"]), [["v", "q"], ["0", "4k"]]);
  assertEquals(given(["0", "--", "-v", "--"]), [[], ["0", "-v", "--"]]);
  assertEquals(given(["-", "-v"]), [["v"], ["-"]]);
});

Deno.test("getopt() says which option is wrong, where, and what came before it", () => {
  const wrong = (words: string[], longs?: readonly LongOption[]) => {
    const { message, word, before } = assertThrows(() => getopt(words, "vP:", longs), OptionError);
    return [message, word, before.map(({ name }) => name)];
  };
  assertEquals(wrong(["-v", "-z"]), ["invalid option -- 'z'", 1, ["v"]]);
  assertEquals(wrong(["-v:"]), ["invalid option -- ':'", 0, ["v"]]);
  assertEquals(wrong(["0", "-P"]), ["option requires an argument -- 'P'", 1, []]);
  assertEquals(wrong(["--stats"]), ["invalid option -- '-'", 0, []]);
  assertEquals(wrong(["--nope"], LONGS), ["unrecognized option '--nope'", 0, []]);
  assertEquals(wrong(["--cache"], LONGS), ["option '--cache' requires an argument", 0, []]);
  assertEquals(wrong(["--stats=1"], LONGS), ["option '--stats' doesn't allow an argument", 0, []]);
  assertEquals(wrong(["--c=1"], LONGS), ["option '--c' is ambiguous; possibilities: '--cache' '--cmd'", 0, []]);
});

Deno.test("getopt() reads long options by any unambiguous beginning, and gives the letter that they stand for", () => {
  assertEquals(given(["--cache=none", "x"], "t:", LONGS), [["t=none"], ["x"]]);
  assertEquals(given(["--cache", "none"], "t:", LONGS), [["t=none"], []]);
  assertEquals(given(["--st"], "", LONGS), [["stats"], []]);
  assertEquals(given(["--trace", "x"], "", LONGS), [["trace"], ["x"]]);
  assertEquals(given(["--trace=json"], "", LONGS), [["trace=json"], []]);
});
