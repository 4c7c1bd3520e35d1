import { assertEquals, assertThrows } from "@std/assert";
import { FORMAT, type ImageArguments, imageArguments, type ImageOption, OUTPUT } from "../../src/cli/image_command.ts";
import { ImageCommandError } from "../../src/cli/qemu_img.ts";

const ROWS: readonly ImageOption[] = [
  FORMAT,
  { name: "size", value: "required", letter: "s", number: "image size" },
  { name: "force", value: "none" },
  OUTPUT,
];

function read(...args: string[]): ImageArguments | null {
  return imageArguments({ name: "test", options: ROWS, letters: "x:" }, args);
}

function failure(...args: string[]): string[] {
  return [...assertThrows(() => read(...args), ImageCommandError).lines];
}

Deno.test("an option is known by its letter, or by its long name where it has no letter", () => {
  const given = read("-fraw", "--format=qcow2", "--force", "-x", "1", "--size", "1k", "image")!;
  assertEquals([given.has("f"), given.has("force"), given.has("format"), given.has("x")], [true, true, false, true]);
  assertEquals([given.last("f"), given.all("f"), given.number("s")], ["qcow2", ["raw", "qcow2"], 1024]);
  assertEquals([given.last("x", "f"), given.last("f", "x")], ["1", "1"]);
  assertEquals(given.operands, ["image"]);
  assertEquals(given.opening, { format: "qcow2", imageOpts: false, share: false });
  assertEquals([read()!.last("f"), read()!.number("s"), read()!.all("f")], [undefined, undefined, []]);
});

Deno.test("every value is looked at, in the order in which they are given", () => {
  const [size] = failure("-s", "many");
  const [output] = failure("--output", "xml");
  assertEquals(failure("-s", "many", "--output", "xml")[0], size);
  assertEquals(failure("--output", "xml", "-s", "many")[0], output);
  assertEquals(failure("-s", "many", "-s", "1k")[0], size);
});

Deno.test("the words about a wrong option are qemu-img's, and those before it count", () => {
  assertEquals(failure("-q"), ["unrecognized option '-q'"]);
  assertEquals(failure("--nope"), ["unrecognized option '--nope'"]);
  assertEquals(failure("-s"), ["missing argument for option '-s'"]);
  assertEquals(read("-h", "-q"), null);
  assertEquals(failure("-q", "-h"), ["unrecognized option '-q'"]);
});
