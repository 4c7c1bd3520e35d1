/** What only shows in a process of its own: streams, permissions, locks, modules, the terminal. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "node:path";
import { requires } from "../requires.ts";
import { CLI, inFolder, vblk } from "./vblk.ts";

const IMAGE = new Uint8Array(4096).fill(0x55);

async function withImage<T>(action: (folder: string) => Promise<T>): Promise<T> {
  return await inFolder(async (folder) => {
    await Deno.writeFile(join(folder, "disk.img"), IMAGE);
    return await action(folder);
  });
}

Deno.test("lines on standard input are run without a prompt, and a failing one is named", async () => {
  const { code, stdout, stderr } = await vblk(["attach", "mem:1M"], {
    input: "length\n# a comment\n\n  read 0 x\nlength",
  });
  assertEquals(code, 1);
  assertEquals(stdout.split("\n"), [
    "1 MiB",
    "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x",
    "1 MiB",
    "",
  ]);
  assertMatch(stderr, /^vblk: standard input:4:10: Parsing error/);
});

Deno.test("quit ends standard input, commands and scripts, and the exit code is that of what was run", async () => {
  assertEquals((await vblk(["attach", "mem:1M"], { input: "quit\nnonsense\n" })).code, 0);
  assertEquals((await vblk(["attach", "mem:1M", "-c", "q", "-c", "nonsense", "--script", "/nonexistent"])).code, 0);
  assertEquals((await vblk(["attach", "mem:1M", "-c", "nonsense", "-c", "q"])).code, 1);
});

Deno.test("without permissions the message says which flags to add, and shows no stack trace", async () => {
  await withImage(async (cwd) => {
    const attach = (args: string[], permissions: string[]) => vblk(["attach", ...args], { cwd, permissions });
    const refused = (flags: string) =>
      "vblk: can't open device disk.img: Could not open 'disk.img': Deno was not given the permission\n" +
      `hint: run again with ${flags} (right after 'deno run')\n`;
    const none = await attach(["disk.img", "-c", "length"], []);
    assertEquals([none.code, none.stdout], [1, ""]);
    assertEquals(none.stderr, refused("--allow-read=disk.img --allow-write=disk.img"));
    const readOnly = await attach(["-r", "disk.img", "-c", "length"], []);
    assertEquals(readOnly.stderr, refused("--allow-read=disk.img"));
    // The flags that it names are enough.
    const enough = await attach(["-f", "raw", "disk.img", "-c", "length"], [
      "--allow-read=disk.img",
      "--allow-write=disk.img",
    ]);
    assertEquals([enough.code, enough.stdout, enough.stderr], [0, "4 KiB\n", ""]);
    const enoughToRead = await attach(["-r", "disk.img", "-c", "length"], ["--allow-read=disk.img"]);
    assertEquals([enoughToRead.code, enoughToRead.stdout], [0, "4 KiB\n"]);
    // A disk in memory needs none.
    assertEquals((await attach(["mem:1M", "-c", "length"], [])).stdout, "1 MiB\n");
    const script = await attach(["mem:1M", "--script", "a.vblk"], []);
    assertMatch(script.stderr, /can't read script a.vblk: .*\nhint: run again with --allow-read=a.vblk/);
    const module = await attach(["mem:1M", "--script", "a.ts"], []);
    assertMatch(module.stderr, /^vblk: a.ts: .*\nhint: run again with --allow-read/);
  });
});

Deno.test("an image that another process has open is refused, and the hint names the way out", async () => {
  await withImage(async (cwd) => {
    const holder = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", "--allow-read", "--allow-write", CLI, "attach", "disk.img"],
      cwd,
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const writer = holder.stdin.getWriter();
    await writer.write(new TextEncoder().encode("length\n"));
    const reader = holder.stdout.getReader();
    // Once it has answered, it has the lock.
    await reader.read();
    const second = await vblk(["attach", "disk.img", "-c", "length"], { cwd });
    assertEquals(second.code, 1);
    assertMatch(second.stderr, /^vblk: can't open device disk.img: .*lock.*\nhint: close the other process first/);
    assertEquals((await vblk(["attach", "-r", "disk.img", "-c", "length"], { cwd })).code, 1);
    assertEquals((await vblk(["attach", "-rU", "disk.img", "-c", "length"], { cwd })).stdout, "4 KiB\n");
    await writer.close();
    await reader.cancel();
    await holder.status;
    assertEquals((await vblk(["attach", "disk.img", "-c", "length"], { cwd })).code, 0);
  });
});

Deno.test("a module is called with guest and machine; its failure names file, line and column, and no stack", async () => {
  const cases: [source: string, code: number, stdout: string, stderr: string][] = [
    [
      "export default async (guest, machine) => {\n" +
      "  await guest.write(0, new Uint8Array(512).fill(7));\n" +
      "  console.log((await guest.read(0, 2)).join(), machine.image.name);\n};",
      0,
      "7,7 mem:1M\n",
      "",
    ],
    [
      "export default async (guest: { read(o: number, l: number): Promise<Uint8Array> }) => {\n  await guest.read(0, 1);\n  await guest.read(1e9, 4);\n};",
      1,
      "",
      "vblk: s.ts:3:15: GuestRangeError: 4 bytes at offset 1000000000 are not inside the disk of 1048576 bytes\n",
    ],
    ["export default () => {\n  throw new Error('boom');\n};", 1, "", "vblk: s.ts:2:9: boom\n"],
    ["throw 'x';", 1, "", "vblk: s.ts: it threw x\n"],
    [
      "export default 3;",
      1,
      "",
      "vblk: s.ts: the module's default export is not a function\n" +
      "hint: export default async function (guest, machine) { ... }\n",
    ],
  ];
  for (const [source, code, stdout, stderr] of cases) {
    await inFolder(async (cwd) => {
      await Deno.writeTextFile(join(cwd, "s.ts"), source);
      assertEquals(await vblk(["attach", "mem:1M", "--script", "s.ts"], { cwd }), { code, stdout, stderr });
    });
  }
});

Deno.test("a module that can't be loaded is named, in one line", async () => {
  await inFolder(async (cwd) => {
    await Deno.writeTextFile(join(cwd, "syntax.ts"), "export default (;\n");
    await Deno.writeTextFile(join(cwd, "import.ts"), "import './gone.ts';\nexport default () => {};\n");
    const run = async (name: string) => (await vblk(["attach", "mem:1M", "--script", name], { cwd })).stderr;
    assertMatch(await run("syntax.ts"), /^vblk: syntax\.ts:1:\d+: [^\n]+\n$/);
    assertMatch(await run("import.ts"), /^vblk: import\.ts[^\n]*: [^\n]*gone\.ts[^\n]*\n$/);
    assertEquals(await run("missing.ts"), "vblk: missing.ts: No such file or directory\n");
  });
});

Deno.test("input that can't be read, or is no text, is refused with a line", async () => {
  await withImage(async (cwd) => {
    const run = (...args: string[]) => vblk(["attach", "mem:1M", ...args], { cwd });
    assertEquals((await run("--script", ".")).stderr, "vblk: can't read script .: Is a directory\n");
    await Deno.writeFile(join(cwd, "zeros"), new Uint8Array(2 << 20));
    assertEquals(
      (await run("--script", "zeros")).stderr,
      "vblk: zeros:1: the line is longer than 1048576 characters\n",
    );
    const { code, stderr } = await vblk(["attach", "mem:1M"], { input: "\x1b[2J\x9b\n" });
    assertEquals([code, stderr.split("\n")[0]], [
      1,
      'vblk: standard input:1:1: command "\\x1b[2J\\x9b" not found',
    ]);
  });
});

Deno.test("whoever sends one command without waiting gets its report before the next", async () => {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "-RW", CLI, "attach", "mem:1M"],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  for (let i = 0; i < 2; i++) {
    await writer.write(new TextEncoder().encode(`aio_read ${i * 512} 512\n`));
    assertMatch((await reader.read()).value ?? "", new RegExp(`^read 512/512 bytes at offset ${i * 512}\n`));
  }
  await writer.close();
  await reader.cancel();
  assertEquals((await child.status).code, 0);
});

Deno.test("a reader that goes away does not keep the commands from being run", async () => {
  await withImage(async (cwd) => {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-prompt", "-RW", CLI, "attach", "-f", "raw", "disk.img"],
      cwd,
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    await child.stdout.cancel();
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode("read -v 0 4k\nread -v 0 4k\nwrite -P 9 0 512\n"));
    await writer.close();
    const stderr = await new Response(child.stderr).text();
    assertEquals([(await child.status).code, stderr], [0, ""]);
    assertEquals((await Deno.readFile(join(cwd, "disk.img")))[0], 9);
  });
});

Deno.test("abort and sigraise end the process as a signal would", async () => {
  assertEquals((await vblk(["attach", "mem:1M", "-c", "abort", "-c", "length"])).stdout, "");
  assertEquals((await vblk(["attach", "mem:1M", "-c", "abort"])).code, 134);
  assertEquals((await vblk(["attach", "mem:1M", "-c", "sigraise 15"])).code, 143);
});

Deno.test({
  name: "on a terminal there is a prompt, with completion, history and colour, and ctrl-C ends a command",
  ...requires("script"),
  async fn() {
    const command = `${Deno.execPath()} run --no-prompt -RW ${CLI} attach mem:1M`;
    const child = new Deno.Command("script", {
      args: ["-qec", command, "/dev/null"],
      env: { TERM: "xterm", NO_COLOR: "" },
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    const writer = child.stdin.getWriter();
    const decoder = new TextDecoder();
    let seen = "";
    const output = child.stdout.getReader();
    /** Types `keys` and waits until `expected` has come. */
    async function type(keys: string, expected: string): Promise<void> {
      const from = seen.length;
      await writer.write(new TextEncoder().encode(keys));
      while (!seen.slice(from).includes(expected)) {
        const { value, done } = await output.read();
        if (done) throw new Error(`waited for ${JSON.stringify(expected)}, saw ${JSON.stringify(seen.slice(from))}`);
        seen += decoder.decode(value, { stream: true });
      }
    }
    await type("", "vblk> ");
    await type("identify\r", "vblk\r\n");
    await type("len\t", "length");
    await type("\r", "1 MiB");
    await type("\x1b[A\x1b[A\r", "vblk\r\n");
    await type("lenght\r", '\x1b[36mhint: did you mean "length"?');
    await type("sleep 1000000\r", "\n");
    await type("\x03", "");
    await writer.close();
    while (!(await output.read()).done);
    // As a signal would end it, or as the end of input when the command had not begun: then by what failed above.
    assert([130, 1].includes((await child.status).code));
  },
});
