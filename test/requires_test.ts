import { assert, assertEquals, assertThrows } from "@std/assert";
import { missing, requires } from "./requires.ts";

/** Runs `body` with the variable set or unset, and puts back what was there. */
function withRefusal(value: string | undefined, body: () => void): void {
  const name = "VBLK_REFUSE_SKIPS";
  const set = (value: string | undefined) => value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
  const before = Deno.env.get(name);
  set(value);
  try {
    body();
  } finally {
    set(before);
  }
}

Deno.test("requires() runs a test whose programs are there", () => {
  withRefusal("1", () => assertEquals(requires("sh"), { ignore: false }));
});

Deno.test("requires() ignores a test that lacks a program", () => {
  withRefusal(undefined, () => assertEquals(requires("sh", "no-such-program"), { ignore: true }));
});

Deno.test("requires() refuses to ignore a test when VBLK_REFUSE_SKIPS=1", () => {
  withRefusal("1", () => {
    const error = assertThrows(() => requires("sh", "no-such-program"), Error);
    assert(error.message.startsWith("missing: no-such-program;"), error.message);
  });
});

Deno.test("missing() of nothing ignores nothing", () => {
  assertEquals(missing(""), { ignore: false });
});
