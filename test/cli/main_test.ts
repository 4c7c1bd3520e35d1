import { assert, assertEquals, assertMatch } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { VERSION } from "../../src/cli/version.ts";
import { Capture } from "../script/capture.ts";

async function run(...args: string[]): Promise<[code: number, lines: string[]]> {
  const capture = new Capture();
  const code = await main(args, capture);
  return [code, capture.lines];
}

Deno.test("--help names every command and has an example, as has the help of each command", async () => {
  for (const args of [["--help"], ["help"], ["attach", "--help"], ["help", "attach"]]) {
    const [code, lines] = await run(...args);
    assertEquals(code, 0);
    assertMatch(lines.join("\n"), /^Usage: vblk/m);
    assertMatch(lines.join("\n"), /^Examples?: ?/m);
    for (const line of lines) assert(line.length <= 120, line);
  }
});

Deno.test("--version prints the version in deno.json", async () => {
  const { version } = JSON.parse(await Deno.readTextFile(new URL("../../deno.json", import.meta.url)));
  assertEquals(VERSION, version);
  assertEquals(await run("--version"), [0, [`vblk ${version}`]]);
  assertEquals(await run("attach", "-V"), [0, [`vblk ${version}`]]);
});

Deno.test("arguments that make no sense exit with 2, and say why and what to do", async () => {
  const attachHelp = "2> hint: 'vblk attach --help' lists the options";
  const deviceHelp = "2> hint: '--device help' lists the properties";
  const cases: [args: string[], lines: string[]][] = [
    [[], ["2> vblk: no command was given", "2> hint: 'vblk --help' lists the commands"]],
    [["atach"], ["2> vblk: atach: no such command", "2> hint: did you mean 'attach'?"]],
    [["attach", "-z"], ["2> vblk: invalid option -- 'z'", attachHelp]],
    [["attach", "--nope"], ["2> vblk: unrecognized option '--nope'", attachHelp]],
    [["attach", "--sats"], ["2> vblk: unrecognized option '--sats'", "2> hint: did you mean '--stats'?"]],
    [["attach", "--script"], ["2> vblk: option '--script' requires an argument", attachHelp]],
    [
      ["attach", "a", "--trace", "json"],
      [
        "2> vblk: attach takes one image, and there are 2: a json",
        "2> hint: the form of the trace goes behind a '=': --trace=json",
      ],
    ],
    [["attach", "a", "b"], ["2> vblk: attach takes one image, and there are 2: a b", attachHelp]],
    [["attach", "-t", "fast", "a"], ["2> vblk: Invalid cache option: fast", attachHelp]],
    [["attach", "-d", "maybe", "a"], ["2> vblk: Invalid discard option: maybe", attachHelp]],
    [["attach", "-i", "magic", "a"], ["2> vblk: Invalid aio option: magic", attachHelp]],
    [["attach", "--trace=xml", "a"], ["2> vblk: --trace=xml: the forms are text and json", attachHelp]],
    [
      ["attach", "-T", "x", "a"],
      ["2> vblk: -T is not supported: QEMU's trace events are its own; --trace shows what happens here", attachHelp],
    ],
    [
      ["attach", "--ram", "1", "mem:1M"],
      ["2> vblk: --ram 1: the guest's memory is 1M to 16G, in whole pages of 4k", attachHelp],
    ],
    [
      ["attach", "--decline", "EVENT_ID", "mem:1M"],
      ["2> vblk: --decline: there is no feature EVENT_ID", "2> hint: did you mean 'EVENT_IDX'?"],
    ],
    [
      ["attach", "--device", "pakced=on", "mem:1M"],
      ["2> vblk: --device: the device has no property pakced", "2> hint: did you mean 'packed'?"],
    ],
    [
      ["attach", "--device", "packed=2", "mem:1M"],
      ["2> vblk: --device: packed=2: the value is on or off", attachHelp],
    ],
    [
      ["attach", "--device", "queue-size=3", "mem:1M"],
      ["2> vblk: --device: queue-size: 3 is not a power of two from 1 to 32768", deviceHelp],
    ],
    [
      ["attach", "--device", "lifetime=1:2", "mem:1M"],
      ["2> vblk: --device: lifetime=1:2: the value is three numbers, as in 1:2:3", attachHelp],
    ],
  ];
  for (const [args, lines] of cases) assertEquals(await run(...args), [2, lines], args.join(" "));
});

Deno.test("what can't be opened exits with 1, in qemu-io's words and with a hint", async () => {
  const raw = "2> hint: vblk reads raw and qcow2 images: give -f raw, or convert it with 'qemu-img convert -O raw'";
  const cases: [args: string[], lines: string[]][] = [
    [["/nonexistent.img"], [
      "2> vblk: can't open device /nonexistent.img: Could not open '/nonexistent.img': No such file or directory",
      "2> hint: check the name; 'mem:64M' attaches a disk in memory",
    ]],
    [["/"], ["2> vblk: can't open device /: Could not open '/': Is a directory"]],
    [["-f", "foo", "x"], ["2> vblk: can't open device x: Unknown driver 'foo'", raw]],
    [["mem:1X"], [
      "2> vblk: can't open device mem:1X: Could not open 'mem:1X': The size is not a number",
      "2> hint: write it as in mem:64M",
    ]],
    [["--decline", "VERSION_1", "mem:1M"], [
      "2> vblk: the driver gave up on the device: the driver did not accept VERSION_1; " +
      "a driver accepts VIRTIO_F_VERSION_1; vblk has no legacy interface (VIRTIO 1.4 §6.1)",
    ]],
    [["--script", "/nonexistent.vblk", "mem:1M"], [
      "2> vblk: can't read script /nonexistent.vblk: No such file or directory",
    ]],
  ];
  for (const [args, lines] of cases) assertEquals(await run("attach", ...args), [1, lines], args.join(" "));
});

Deno.test("sizes of disks in memory are read as qemu-io reads sizes", async () => {
  const cases: [name: string, length: string][] = [
    ["mem:1M", "1 MiB"],
    ["mem:0x1000", "4 KiB"],
    ["mem:1.5k", "1.500 KiB"],
    ["mem:1000", "1 KiB"],
    ["mem:0", "0 bytes"],
    ["mem:1T", "1 TiB"],
  ];
  for (const [name, length] of cases) assertEquals(await run("attach", name, "-c", "length"), [0, [length]], name);
});

Deno.test("an image in another format is refused with its name, unless raw is asked for", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, new TextEncoder().encode("QED\0".padEnd(1024, "\0")));
    const [code, lines] = await run("attach", path, "-c", "length");
    assertEquals(code, 1);
    assertEquals(lines[0].endsWith("The image's format is qed, which vblk does not read"), true, lines[0]);
    assertEquals(await run("attach", "-f", "raw", path, "-c", "length"), [0, ["1 KiB"]]);
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("--stats prints numbers when the image is closed; with --json they are one object", async () => {
  const commands = ["-c", "write -q 0 4k", "-c", "read -q 0 4k", "-c", "read -q 4k 4k"];
  const [, text] = await run("attach", "mem:1M", "--stats", ...commands);
  assertMatch(text[0], /^request +count +failed +data/);
  assertMatch(text[2], /^read +2 +0 +8 KiB/);
  const [, lines] = await run("attach", "mem:1M", "--stats", "--json", ...commands);
  const { statistics } = JSON.parse(lines.at(-1)!);
  assertEquals(statistics.requests, 3);
  assertEquals(statistics.kinds.map(({ kind, bytes }: { kind: string; bytes: number }) => [kind, bytes]), [
    ["write", 4096],
    ["read", 8192],
  ]);
});

Deno.test("--trace and --explain go to standard error, so that results stay what qemu-io prints", async () => {
  for (const flag of ["--trace", "--trace=text", "--trace=json", "--explain"]) {
    const [code, lines] = await run("attach", "mem:1M", flag, "-c", "chain type:9 status", "-c", "length");
    assertEquals(code, 0);
    const results = lines.filter((line) => !line.startsWith("2> "));
    assertEquals(results[0], "chain of 2 descriptors on queue 0");
    assertEquals(results.at(-1), "1 MiB");
    const errors = lines.filter((line) => line.startsWith("2> ")).join("\n");
    assertMatch(errors, /unknown-type/);
    assertEquals(/kick/.test(errors), flag !== "--explain", flag);
  }
});

Deno.test("--decline keeps the driver from a feature, in any spelling of its name", async () => {
  for (const name of ["EVENT_IDX", "event_idx", "VIRTIO_F_EVENT_IDX"]) {
    const [, lines] = await run("attach", "mem:1M", "--decline", `${name},VIRTIO_BLK_F_FLUSH`, "-c", "features");
    const row = (feature: string) => lines.find((line) => line.includes(feature))!.trim().split(/ +/).slice(1);
    assertEquals(row("EVENT_IDX"), ["EVENT_IDX", "yes", "no"]);
    assertEquals(row("FLUSH"), ["FLUSH", "yes", "no"]);
    assertEquals(row("INDIRECT_DESC"), ["INDIRECT_DESC", "yes", "yes"]);
  }
});

Deno.test("with -s nothing that is written is kept", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, new Uint8Array(4096));
    const commands = ["-c", "write -qP 1 0 4k", "-c", "read -qP 1 0 4k"];
    assertEquals(await run("attach", "-s", path, ...commands), [0, []]);
    assertEquals(await Deno.readFile(path), new Uint8Array(4096));
    assertEquals(await run("attach", "-f", "raw", path, ...commands), [0, []]);
    assertEquals(await Deno.readFile(path), new Uint8Array(4096).fill(1));
  } finally {
    await Deno.remove(path);
  }
});
