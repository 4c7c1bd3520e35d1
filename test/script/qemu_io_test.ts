/**
 * The command language beside qemu-io: the same lines on copies of the same image must print the same, end with the
 * same exit code and leave the same bytes.
 */

import { assertEquals, AssertionError, assertRejects } from "@std/assert";
import { join } from "node:path";
import { subcommand } from "../../src/cli/attach.ts";
import { requires } from "../requires.ts";
import { Capture, maskTimes } from "./capture.ts";

/** Runs of commands; each starts from a fresh copy of the image. */
const RUNS: readonly (readonly string[])[] = [
  ["read 0 4k", "read -v 0 20", "read -v 3 70", "read -C 0 4k", "read -q 0 4k", "read 0 4k -v -q", "read 1M 4k"],
  ["read -P 0x55 0 4k", "read -P 1 0 4k", "read -P 0x55 -s 4k -l 10 0 8k", "read -P 0x55 -s 10 -l 5000 0 4k"],
  ["read 0", "read", "read 0 4k 3", "read -z 0 4k", "read -P", "read x 3", "read 0 16E", "read 0 7E", "read 0 3G"],
  ["read -l 5 0 3", "read -s 5 0 3", "read -P 300 0 4k", "read -P abc 0 4k", "read -P -1 0 4k", "read -P 0x 0 4k"],
  ["read -b 0 512", "read -b 1 512", "read -b 0 1", "read -p 0 1"],
  ["readv 0 512 512 3", "readv 0 512 512", "readv -v 0 8 9", "readv 0 x", "readv 0", "readv 0 2G 1", "readv 0 3G"],
  ["readv 0 1G 1G 1", "readv -P 0x55 0 512 1k", "readv -P 1 0 1 1"],
  ["write -b 0 512", "write -c 0 512", "write -c 1 512", "write -bz 0 512", "write -fb 0 512", "write -fc 0 512"],
  ["write -z -P 1 0 512", "write -n 0 512", "write -u 0 512", "write -z -n 0 4k", "write -znu 8k 4k", "write 1M 1"],
  ["write -s /nonexistent 0 4k", "write -s / 0 4k", "write -s /dev/null 0 4k", "write 0 3G", "write -z 0 3G"],
  ["write 3 5", "write 510 4", "write -P 9 1000 3000", "write -z 3 5", "write -z 100 3000", "write -zu 512 512"],
  ["write -z 1M 512", "write -zu 1048575 1", "write -zn 1048575 2", "write -fP3 8k 3", "write -q 0 1", "write -C 0 1"],
  ["writev -P 7 0 512 512 1k", "writev -f 5 3 4", "writev 1048575 1 1", "writev 0", "writev -z 0 1", "writev -C 9 9"],
  ["discard 0 4k", "discard 512 3k", "discard 1M 4k", "discard 0 3G", "discard -C 0 512", "discard -q 0 512"],
  ["discard -z 0 1", "discard 0", "discard 0 x", "discard 0 0", "discard 2M 0"],
  ["flush", "flush 3", "f", "aio_flush", "aio_flush 1"],
  ["length", "l", "info", "i", "map", "length 1", "map 1", "info 1"],
  ["alloc 0", "alloc 0 4k", "alloc 1M", "alloc 1023k 4k", "alloc 2M", "alloc 2M 4k", "alloc x", "alloc 0 x", "a 0 1 2"],
  ["truncate 1000", "length", "map", "read 0 1k", "read -v 1000 24", "read 1000 25", "write 1020 4", "read -v 1000 24"],
  ["truncate 2M", "write 1500k 4k", "length", "truncate 1M", "length", "read 1M 1", "truncate 0", "length", "map"],
  ["truncate -m falloc 1M", "truncate -m metadata 2M", "truncate -m foo 1M", "truncate -m full 2M", "length"],
  ["truncate -m full 2k", "truncate x", "truncate", "truncate 1 2 3 4", "truncate -z 1"],
  ["close", "read 0 4k", "close", "length", "open", "open a b", "open -x a", "open /nonexistent", "open /"],
  ["open /nonexistent", "close", "open -t foo a", "open -d foo a", "open -i foo a"],
  ["reopen", "reopen -r", "write 0 4k", "discard 0 1", "truncate 1", "read 0 1", "reopen -w", "write 0 4k"],
  ["reopen -r -w", "reopen a", "reopen -c none", "reopen -c foo", "reopen -z", "reopen -o foo=on", "read 0 1"],
  ["sleep 5", "sleep -5", "sleep x", "sleep 0x5", "sleep", "sleep 1 2", "sigraise x", "sigraise 100", "sigraise"],
  ["q", "nonsense"],
  ["quit 3", "nonsense"],
  ["nonsense", "", "   ", " length", "help nonsense", "? nonsense", "help a b"],
  ["aio_read 0 4k", "aio_flush", "aio_write 0 4k 4k", "aio_flush", "aio_write -z 512 4k", "aio_flush"],
  ["aio_read -P 1 0 4k", "aio_flush", "aio_read 1M 1", "aio_flush", "aio_write 1M 1", "aio_flush"],
  ["aio_write -z 0 4k 4k", "aio_write -u 0 4k", "aio_read -i 0 4k", "aio_write -i 0 4k", "aio_read 0", "aio_write x 1"],
  ["aio_read 0 x", "aio_read 0 3G", "aio_read -z 0 1", "aio_write -v 0 1", "aio_read -qv 0 20", "aio_flush"],
  ["read 1.5k 1.5k", "read 0.0001k 1k", "read 0x10 0x10", "read -1 3", "read 0 -1", "read 1e 1", "read 1b 1B"],
  ["read 99999999999999999999 1", "read 1s 1", "read +1 +1", "read 1e3 1", "read 0x 1", "read 0X1F 1", "read 1kk 1"],
  [
    "read 0x1e 1",
    "read 9223372036854775807 1",
    "read 9223372036854775296 512",
    "read 8E 1",
    "read 1.5 1",
    "read 1.k 1",
  ],
  ["read 0 0", "read 1M 0", "read 2M 0", "write 0 0", "readv 0 0 0", "write -z 0 0", "read -v 0 0"],
  [
    "write -- 0 512",
    "read -- 0 512",
    "read -q -- 0 512",
    "read -qC 0 512",
    "read - 0",
    "read --foo 0 1",
    "read -vC 0 17",
  ],
  [
    "write -P 010 0 5",
    "read -v 0 5",
    "write -P 0x7f 0 5",
    "write -P 256 0 5",
    "write -P",
    "write 0 -P",
    "write 0 1 -P",
  ],
];

/** Whole command lines, run with `-r`. */
const READ_ONLY_RUNS: readonly (readonly string[])[] = [
  [
    "read 0 512",
    "write 0 4k",
    "write",
    "writev 0 1",
    "aio_write 0 1",
    "discard 0 4k",
    "truncate 4k",
    "flush",
    "length",
  ],
];

interface Outcome {
  readonly out: readonly string[];
  readonly err: readonly string[];
  readonly code: number;
  readonly image: string;
}

/** What the two may print differently: times, how a command is explained, and who speaks. */
function masked(lines: readonly string[]): string[] {
  return lines
    .map(maskTimes)
    .map((line) => line.replace(/^(\w+) .*-- .*$/, "$1 USAGE").replace(/^qemu-io: /, ""))
    .filter((line) => line !== "");
}

async function qemuIo(path: string, flags: readonly string[], lines: readonly string[]): Promise<Outcome> {
  const args = ["-f", "raw", ...flags, ...lines.flatMap((line) => ["-c", line]), path];
  const { stdout, stderr, code } = await new Deno.Command("qemu-io", { args, stdin: "null" }).output();
  const split = (bytes: Uint8Array) => masked(new TextDecoder().decode(bytes).split("\n"));
  return { out: split(stdout), err: split(stderr), code, image: await digest(path) };
}

async function vblk(path: string, flags: readonly string[], lines: readonly string[]): Promise<Outcome> {
  const capture = new Capture();
  const args = ["-f", "raw", ...flags, ...lines.flatMap((line) => ["-c", line]), path];
  const code = await subcommand.run(args, capture);
  const isError = (line: string) => line.startsWith("2> ");
  const err = capture.lines.filter(isError)
    .map((line) => line.replace(/^2> (vblk: (-c \d+:\d+: )?)?/, ""))
    // Besides what qemu-io says there: the place of every failure, notes and hints.
    .filter((line) => !/^(hint|note): /.test(line));
  return { out: masked(capture.lines.filter((line) => !isError(line))), err, code, image: await digest(path) };
}

async function digest(path: string): Promise<string> {
  const bytes = await crypto.subtle.digest("SHA-256", await Deno.readFile(path));
  return new Uint8Array(bytes).toHex();
}

async function compare(
  flags: readonly string[],
  lines: readonly string[],
  ourLines: readonly string[] = lines,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const base = new Uint8Array(1 << 20).fill(0x55);
    for (let i = 4096; i < base.byteLength; i++) base[i] = i * 31 % 251;
    const [theirs, ours] = ["theirs.img", "ours.img"].map((name) => join(folder, name));
    for (const path of [theirs, ours]) await Deno.writeFile(path, base);
    const expected = await qemuIo(theirs, flags, lines);
    const actual = await vblk(ours, flags, ourLines);
    assertEquals(actual.out, expected.out);
    assertEquals(actual.code, expected.code);
    assertEquals(actual.image, expected.image);
    // All that qemu-io says on standard error is said here too, in the same order.
    const remaining = [...actual.err];
    for (const line of expected.err) {
      const at = remaining.indexOf(line);
      assertEquals(at >= 0, true, `not on standard error: ${line}\n${remaining.join("\n")}`);
      remaining.splice(0, at + 1);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

for (const [flags, runs] of [[[], RUNS], [["-r"], READ_ONLY_RUNS]] as const) {
  for (const lines of runs) {
    Deno.test({
      name: `vblk prints, returns and stores what qemu-io does: ${[...flags, ...lines].join("; ")}`,
      ...requires("qemu-io"),
      fn: () => compare(flags, lines),
    });
  }
}

Deno.test({
  name: "the comparison with qemu-io sees other output, another exit code, other bytes and a missing message",
  ...requires("qemu-io"),
  async fn() {
    const cases: [theirs: string, ours: string][] = [
      ["read 0 512", "read 512 512"],
      ["read -q 0 512", "flush 1"],
      ["write -qP 1 0 512", "write -qP 2 0 512"],
      ["flush 1", "foo"],
    ];
    for (const [theirs, ours] of cases) await assertRejects(() => compare([], [theirs], [ours]), AssertionError);
  },
});
