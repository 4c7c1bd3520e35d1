/**
 * Errors and breakpoints by the rules of blkdebug, beside qemu-io: the same requests fail, at the same places.
 */

import { assert, assertEquals } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { forSeedsAsync, type Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder } from "../storage/support.ts";
import { Capture, maskTimes } from "./capture.ts";

const SECTORS = 64;

/** Events that happen to a raw image, and two that do not. */
const EVENTS = [
  ...["read_aio", "write_aio", "flush_to_os", "flush_to_disk", "pwritev", "pwritev_zero", "pwritev_done", "none"],
  ...["l2_load", "cluster_alloc"],
];
const IO_TYPES = ["read", "write", "write-zeroes", "discard", "flush"];

function rules(random: Random): string {
  const lines: string[] = [];
  for (let i = 1 + random.below(4); i > 0; i--) {
    const isState = random.below(3) === 0;
    lines.push(isState ? "[set-state]" : "[inject-error]", `event = "${random.pick(EVENTS)}"`);
    if (random.below(2) === 0) lines.push(`state = "${random.below(4)}"`);
    if (isState) {
      lines.push(`new_state = "${1 + random.below(3)}"`);
      continue;
    }
    if (random.below(2) === 0) lines.push(`once = "${random.pick(["on", "off"])}"`);
    if (random.below(3) === 0) lines.push(`immediately = "${random.pick(["on", "off"])}"`);
    if (random.below(3) === 0) lines.push(`sector = "${random.below(16)}"`);
    if (random.below(3) === 0) lines.push(`iotype = "${random.pick(IO_TYPES)}"`);
    if (random.below(4) === 0) lines.push(`errno = "${random.pick(["0", "5"])}"`);
  }
  return lines.map((line) => `${line}\n`).join("");
}

function commands(random: Random): string[] {
  const lines: string[] = [];
  for (let i = 0; i < 12; i++) {
    const start = random.below(16);
    const range = `${start * 512} ${(1 + random.below(8)) * 512}`;
    lines.push(
      random.pick([`read ${range}`, `write -P ${i} ${range}`, `write -z ${range}`, `discard ${range}`, "flush"]),
    );
  }
  // What is left to be flushed at the end would fail where no command is.
  return [...lines, "flush"];
}

const masked = (lines: readonly string[]) => lines.map(maskTimes).filter((line) => line !== "");

async function compare(config: string, lines: readonly string[], flags: readonly string[] = []): Promise<void> {
  using folder = new Folder();
  const path = folder.file("rules.cfg", new TextEncoder().encode(config));
  const [theirs, ours] = ["theirs", "ours"].map((name) => folder.file(name, new Uint8Array(SECTORS * 512).fill(9)));
  const args = (image: string) => [
    ...["-t", "writeback", "-f", "raw", ...flags],
    ...lines.flatMap((line) => ["-c", line]),
    `blkdebug:${path}:${image}`,
  ];
  const { code, stdout } = new Deno.Command("qemu-io", { args: args(theirs), stdin: "null", stderr: "null" })
    .outputSync();
  const capture = new Capture();
  const ourCode = await main(["attach", ...args(ours)], capture);
  const out = masked(capture.lines.filter((line) => !line.startsWith("2> ")));
  assertEquals(out, masked(new TextDecoder().decode(stdout).split("\n")), config);
  assertEquals(ourCode, code, config);
  assertEquals(Deno.readFileSync(ours), Deno.readFileSync(theirs), config);
}

Deno.test({
  name: "any rules make the same requests fail as in qemu-io, and leave the same bytes",
  ...requires("qemu-io"),
  fn: () => forSeedsAsync(40, 1, (random) => compare(rules(random), commands(random))),
});

const rule = (group: string, options: Readonly<Record<string, string | number>>) =>
  [`[${group}]`, ...Object.entries(options).map(([key, value]) => `${key} = "${value}"`), ""].join("\n");
const inject = (options: Record<string, string | number>) => rule("inject-error", options);
const setState = (options: Record<string, string | number>) => rule("set-state", options);

/** What chance finds too seldom. */
const RULES: readonly (readonly [what: string, rules: readonly string[], lines: readonly string[]])[] = [
  // Of a flush that fails qemu-io says nothing; it ends with another exit code.
  ["a flush before which nothing was written can't fail", [inject({ event: "none", iotype: "flush" })], ["flush"]],
  ["a flush after a write can fail", [inject({ event: "none", iotype: "flush", once: "on" })], [
    "write 0 512",
    "flush",
  ]],
  ["a flush after a discard can fail", [inject({ event: "none", iotype: "flush" })], ["discard 0 512", "flush"]],
  ["of two rules that fit, the one written first counts", [
    inject({ event: "read_aio", errno: 0 }),
    inject({ event: "read_aio", errno: 5 }),
  ], ["read 0 512", "read 0 512"]],
  ["of two rules that fit, the one written first counts, once", [
    inject({ event: "read_aio", errno: 5, once: "on" }),
    inject({ event: "read_aio", errno: 0 }),
  ], ["read 0 512", "read 0 512"]],
  ["of two changes of the state the one written first counts", [
    setState({ event: "write_aio", new_state: 2 }),
    setState({ event: "write_aio", new_state: 3 }),
    inject({ event: "read_aio", state: 2 }),
  ], ["read 0 512", "write 0 512", "read 0 512"]],
  ["a state changes after the rules of its event", [
    setState({ event: "read_aio", state: 1, new_state: 2 }),
    inject({ event: "read_aio", state: 2 }),
  ], ["read 0 512", "read 0 512", "read 0 512"]],
  ["a rule stays until another event has one", [
    inject({ event: "read_aio", iotype: "write" }),
    inject({ event: "flush_to_os", errno: 0 }),
  ], ["write 0 512", "read 0 512", "write 0 512", "write 0 512", "flush", "write 0 512"]],
];

for (const [what, rules, lines] of RULES) {
  Deno.test({
    name: `in blkdebug ${what}, as in qemu-io`,
    ...requires("qemu-io"),
    fn: () => compare(rules.join(""), lines),
  });
}

const BREAKS: readonly (readonly string[])[] = [
  ["break write_aio A", "aio_write 0 512", "wait_break A", "read 0 512", "resume A", "aio_flush"],
  ["break foo A", "resume A", "remove_break A", "read 0 512"],
  ["break read_aio A", "break read_aio B", "aio_read 0 512", "wait_break A", "wait_break B", "resume B", "resume A"],
  ["break read_aio A", "aio_read 0 512", "wait_break A", "break read_aio A", "remove_break A", "aio_flush"],
  ["break pwritev A", "aio_write -P 5 0 512", "wait_break A", "write -P 6 0 512", "resume A", "aio_flush", "resume A"],
  ["break pwritev_zero A", "write -P 1 0 512", "aio_write -z 0 512", "wait_break A", "resume A", "aio_flush"],
  ["break flush_to_disk A", "remove_break A", "write 0 512", "flush"],
];

for (const lines of BREAKS) {
  Deno.test({
    name: `breakpoints stop what they stop in qemu-io: ${lines.join("; ")}`,
    ...requires("qemu-io"),
    fn: () => compare("", lines),
  });
}

const RULE = '[inject-error]\nevent = "none"\nsector = "4"\niotype = "write"\nerrno = "28"\n';

async function attach(config: string, ...lines: string[]): Promise<readonly string[]> {
  using folder = new Folder();
  const path = folder.file("rules.cfg", new TextEncoder().encode(config));
  const image = folder.file("disk", new Uint8Array(SECTORS * 512));
  const capture = new Capture();
  await main(["attach", "-f", "raw", ...lines.flatMap((line) => ["-c", line]), `blkdebug:${path}:${image}`], capture);
  return capture.take().map((line) => line.replaceAll(image, "disk"));
}

Deno.test("an injected error is told as what it is, though the guest sees only that its request failed", async () => {
  assertEquals(await attach(RULE, "write 0 4k"), [
    "2> vblk: write of 'disk' at offset 0: No space left on device",
    "2> hint: a rule of blkdebug made it fail",
    "write failed: Input/output error",
    "2> vblk: -c 1:1: write failed: Input/output error",
  ]);
});

Deno.test("a command that waits for what is held back does not wait for ever", async () => {
  const stuck = "2> vblk: note: all requests are held back, so they go on: A";
  for (const lines of [["break write_aio A", "write -q 0 512"], ["break write_aio A", "aio_write -q 0 512"]]) {
    assertEquals(await attach("", ...lines), [
      "blkdebug: Suspended request 'A'",
      stuck,
      "blkdebug: Resuming request 'A'",
    ]);
  }
  const [line] = await attach("", "wait_break A");
  assert(line.includes("no request is in flight that could stop at A"), line);
});

Deno.test("limits of a host's disk are refused by name", async () => {
  for (const option of ["align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"]) {
    const capture = new Capture();
    const text = `driver=raw,file.driver=blkdebug,file.image.driver=mem,file.image.size=1M,file.${option}=4096`;
    assertEquals(await main(["attach", "--image-opts", text, "-c", "length"], capture), 1);
    const why = "limits of a host's disk are not imitated";
    assertEquals(capture.lines, [`2> vblk: can't open: blkdebug: the option '${option}' is not supported: ${why}`]);
  }
});
