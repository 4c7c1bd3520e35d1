import { assert, assertEquals } from "@std/assert";
import { allCommands, findCommand } from "../../src/script/registry.ts";
import { openSession } from "./capture.ts";

Deno.test("a failing line names its source, line and the column of what is wrong", async () => {
  await using session = await openSession();
  assertEquals(await session.run("length", "  read 0 x", "read -P 300 0 4", "discard 0 4k -z"), [
    "1 MiB",
    "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x",
    "2> vblk: test:2:10: Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x",
    "300 is not a valid pattern byte",
    "2> vblk: test:3:9: 300 is not a valid pattern byte",
    "discard [-Cq] off len -- says that a range is not needed any more",
    "2> vblk: test:4:14: discard: invalid option -- 'z'",
  ]);
});

Deno.test("an unknown command is answered with the one that was meant", async () => {
  await using session = await openSession();
  assertEquals(await session.run("raed 0 4k"), [
    '2> vblk: test:1:1: command "raed" not found',
    '2> hint: did you mean "read"?',
  ]);
  assertEquals(await session.run("xyzzy"), [
    '2> vblk: test:1:1: command "xyzzy" not found',
    "2> hint: 'help' lists them all",
  ]);
});

Deno.test("commands of qemu-io that vblk lacks are refused by name, with the reason", async () => {
  await using session = await openSession();
  for (const name of ["zone_report", "zone_append", "zone_reset"]) {
    const [line] = await session.run(`${name} 0 1`);
    assert(line.startsWith(`2> vblk: test:1:1: ${name} is not supported: `), line);
  }
});

Deno.test("the number of arguments is checked before anything else", async () => {
  await using session = await openSession();
  assertEquals(await session.run("read 0", "flush 1", "alloc", "truncate 1 2 3 4"), [
    "2> vblk: test:1:1: bad argument count 1 to read, expected at least 2 arguments",
    "2> vblk: test:2:7: bad argument count 1 to flush, expected 0 arguments",
    "2> vblk: test:3:1: bad argument count 0 to alloc, expected between 1 and 2 arguments",
    "2> vblk: test:4:16: bad argument count 4 to truncate, expected between 1 and 3 arguments",
  ]);
});

Deno.test("names that every JavaScript object has are no values of an option", async () => {
  await using session = await openSession();
  assertEquals(await session.run("truncate -m constructor 2M", "length"), [
    "2> vblk: test:1:13: Invalid preallocation mode 'constructor'",
    "1 MiB",
  ]);
});

Deno.test("a dump of any length is printed", async () => {
  await using session = await openSession({ image: "mem:4M" });
  const lines = await session.run("read -v 0 4M");
  assertEquals(lines.length, (4 << 20) / 16 + 2);
});

Deno.test("without an image only the commands that need none work", async () => {
  await using session = await openSession();
  assertEquals(await session.run("close", "read 0 4k", "sleep 0", "close", "open mem:2k", "length"), [
    "2> vblk: test:2:1: no file open, try 'help open'",
    "2> vblk: test:4:1: no file open, try 'help open'",
    "2 KiB",
  ]);
});

Deno.test("with JSON every command prints one object, failures too", async () => {
  await using session = await openSession({ json: true });
  const lines = await session.run("length", "read -qP 1 0 4", "map", "nope");
  const objects = lines.filter((line) => !line.startsWith("2> ")).map((line) => JSON.parse(line));
  assertEquals(objects[0], { command: "length", bytes: 1048576 });
  assertEquals(objects[1].error, "Pattern verification failed at offset 0, 4 bytes");
  assertEquals(objects[2].extents, [{ offset: 0, lengthBytes: 1048576, allocated: true }]);
  assertEquals(objects[3], { command: "nope", error: 'command "nope" not found' });
});

Deno.test("every command has a name and an alias of its own, and help", async () => {
  await using session = await openSession();
  const names = allCommands().flatMap(({ name, alias }) => alias === undefined ? [name] : [name, alias]);
  assertEquals(new Set(names).size, names.length);
  for (const name of names) {
    const [line] = await session.run(`help ${name}`);
    assert(line.startsWith(name) && line.endsWith(`-- ${findCommand(name)!.summary}`), line);
  }
});

Deno.test("the letters that a command takes are those in its usage line", () => {
  for (const { name, args = "", letters = "" } of allCommands()) {
    const shown = new Set([...args.matchAll(/(?<![a-z])-([A-Za-z]+)/g)].flatMap(([, cluster]) => [...cluster]));
    const taken = letters.replaceAll(":", "");
    // -p is taken for old scripts' sake and not worth a mention there; -i of open neither.
    for (const letter of taken) assert(shown.has(letter) || letter === "p" || name === "open", `${name} -${letter}`);
    for (const letter of shown) assert(taken.includes(letter), `${name} shows -${letter}`);
  }
});
