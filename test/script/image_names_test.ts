/**
 * What an image can be called, beside qemu-io: the same words must open the same image, or be refused with the same
 * message and exit code.
 */

import { assertEquals, AssertionError, assertRejects } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { requires } from "../requires.ts";
import { Folder, run } from "../storage/support.ts";
import { Capture, maskTimes } from "./capture.ts";

/** Arguments; `DIR` is the folder with the images. */
type Arguments = readonly string[];

const LENGTH = ["-c", "length"];
const options = (text: string, ...rest: string[]): Arguments => ["--image-opts", ...rest, ...LENGTH, text];
const named = (name: string, ...rest: string[]): Arguments => [...rest, ...LENGTH, name];
const json = (value: unknown, ...rest: string[]): Arguments => named(`json:${JSON.stringify(value)}`, ...rest);
const RAW = { driver: "raw", "file.filename": "DIR/x.raw" };
const QCOW2 = { driver: "qcow2", "file.filename": "DIR/x.qcow2" };
const debug = (text: string) => options(`driver=raw,file.driver=blkdebug,file.image.filename=DIR/x.raw,${text}`);

const ARGUMENTS: readonly Arguments[] = [
  // json:
  json({ driver: "qcow2", file: { driver: "file", filename: "DIR/x.qcow2" } }, "-r"),
  json(QCOW2, "-r"),
  named("json:{'driver': 'raw', 'file': {'driver': 'file', 'filename': 'DIR/x.raw'}}"),
  json({ ...QCOW2, foo: 1 }, "-r"),
  json({ ...QCOW2, "file.foo": 1 }, "-r"),
  json({ driver: "qcow2", file: "x.qcow2" }),
  json({ ...RAW, file: "x" }),
  json({ driver: "qcow2" }),
  json({ driver: "raw", file: {} }),
  json({ driver: "raw", file: null }),
  json({ driver: "raw", file: { driver: "file" } }),
  json({ driver: "raw", file: { foo: 1 } }),
  json([]),
  named("json:"),
  json({ driver: "foo" }),
  json({ driver: 5 }),
  json({ filename: "DIR/x.raw" }),
  json({ "file.filename": "DIR/x.raw" }),
  json({ driver: "file", filename: "DIR/x.raw" }),
  json({ driver: "file" }),
  json(RAW, "-f", "raw"),
  // raw
  ...[512, "512", "1k", 0].map((offset) => json({ ...RAW, offset })),
  json({ ...RAW, offset: 512, size: 1024 }),
  json({ ...RAW, size: "1000" }),
  json({ ...RAW, size: "2M" }),
  json({ ...RAW, offset: "2M" }),
  ...["abc", true, -1, 0.5].map((offset) => json({ ...RAW, offset })),
  [
    "-c",
    "read -v 0 20",
    "-c",
    "read 512 512",
    "-c",
    "map",
    `json:${JSON.stringify({ ...RAW, offset: 512, size: 1024 })}`,
  ],
  // The options of all drivers.
  json({ ...RAW, discard: "maybe" }),
  json({ ...RAW, "detect-zeroes": "maybe" }),
  json({ ...RAW, "detect-zeroes": "on" }),
  json({ ...RAW, cache: { direct: "foo" } }),
  json({ ...RAW, "read-only": "foo" }),
  json({ ...RAW, "force-share": true }, "-r"),
  json({ ...RAW, "force-share": true }),
  json({ ...RAW, "node-name": "a" }),
  named("DIR/x.raw", "-U"),
  json({ ...RAW, "file.locking": "foo" }),
  json({ ...RAW, "file.locking": "off" }),
  json({ ...RAW, "file.aio": "foo" }),
  // qcow2
  json({ ...QCOW2, "l2-cache-size": "abc" }, "-r"),
  json({ ...QCOW2, "l2-cache-size": "1M", "cache-size": 1024 }, "-r"),
  json({ ...QCOW2, "refcount-cache-size": "1M", "cache-size": 1024 }, "-r"),
  json({ ...QCOW2, "l2-cache-size": 1024, "refcount-cache-size": 1024, "cache-size": 1024 }, "-r"),
  json({ ...QCOW2, "cache-size": "4M" }, "-r"),
  json({ ...QCOW2, "lazy-refcounts": "maybe" }, "-r"),
  json({ ...QCOW2, "overlap-check": "foo" }, "-r"),
  json({ ...QCOW2, "overlap-check": "all", "overlap-check.template": "none" }, "-r"),
  json({ ...QCOW2, "overlap-check": { template: "all", "main-header": false } }, "-r"),
  json({ ...QCOW2, "data-file": { driver: "file", filename: "DIR/x.raw" } }, "-r"),
  json({ ...QCOW2, backing: "x", "file.filename": "DIR/o.qcow2" }, "-r"),
  ...[null, { driver: "raw", offset: 512 }, { driver: "qcow2" }, { foo: 1 }, { "file.filename": "DIR/missing" }, {
    driver: "raw",
    "file.filename": "DIR/y.raw",
  }]
    .map((backing) => [
      ...["-r", "-c", "read -v 0 16", "-c", "read -P 0 0 512", "-c", "map"],
      `json:${JSON.stringify({ driver: "qcow2", "file.filename": "DIR/o.qcow2", backing })}`,
    ]),
  // --image-opts
  options("driver=raw,file.filename=DIR/x.raw"),
  options("file.filename=DIR/x.raw"),
  options("filename=DIR/x.raw"),
  options("driver=raw,filename=DIR/x.raw"),
  options("driver=raw,file.filename=DIR/,,x"),
  options("driver=raw,file.filename=foo:x"),
  options("driver=raw,file.filename=DIR/x.raw,driver=foo"),
  options("driver=raw,file=abc,file.filename=DIR/x.raw"),
  options("driver=raw,file.driver=foo"),
  options("driver=raw,file.driver=raw,file.file.filename=DIR/x.raw,file.size=512"),
  options("driver=raw,file.foo=1"),
  options(""),
  options("driver=raw,file.filename=DIR/x.raw,force-share=off", "-r"),
  ["--image-opts", "-c", "open driver=raw,file.filename=DIR/x.raw", "-c", "length"],
  ["--image-opts", "-c", "open -o driver=raw DIR/x.raw"],
  // null-co
  options("driver=null-co"),
  options("driver=null-co,size=1000,latency-ns=1000"),
  options("driver=null-co,latency-ns=-1"),
  options("driver=null-co,foo=1"),
  ["--image-opts", "-c", "read -v 0 16", "-c", "read -P 0 0 1M", "driver=null-co,size=1M,read-zeroes=on"],
  ["--image-opts", "-c", "write 0 1M", "-c", "flush", "-c", "write -z 0 4k", "-c", "discard 0 4k", "driver=null-co"],
  named("null-co://"),
  named("null-co://x"),
  named("null-co://", "-f", "null-co"),
  // Names with a protocol.
  named("foo:x"),
  named("file:DIR/x.raw"),
  named("DIR/foo:x"),
  named("DIR/x.raw", "-f", "file"),
  named("DIR/x.raw", "-f", "qcow2"),
  named("blkdebug::DIR/x.raw"),
  named("blkdebug::DIR/x.raw", "-f", "raw"),
  named("blkdebug:DIR/x.raw"),
  named("blkdebug::DIR/missing"),
  named("blkdebug:DIR/missing:DIR/x.raw"),
  ...["good", "bad1", "bad2", "bad3", "bad4", "bad5", "bad6"].map((
    config,
  ) => ["-f", "raw", "-c", "read 0 512", "-c", "read 0 512", `blkdebug:DIR/${config}.cfg:DIR/x.raw`]),
  // blkdebug by options
  debug("file.foo=1"),
  debug("file.inject-error.0.event=foo"),
  debug("file.inject-error.0.errno=3"),
  debug("file.inject-error.1.event=read_aio"),
  debug("file.inject-error.event=write_aio"),
  debug("file.inject-error.0.event=read_aio,file.inject-error.0.iotype=foo"),
  debug("file.inject-error.0.event=read_aio,file.inject-error.0.errno=abc"),
  debug("file.inject-error.0.event=read_aio,file.inject-error.0.once=abc"),
  debug("file.inject-error.0.event=read_aio,file.inject-error.0.foo=abc"),
  options("driver=raw,file.driver=blkdebug"),
  options("driver=blkdebug,image.filename=DIR/x.raw"),
  options("driver=blkdebug,image=x.raw"),
  // open
  ["-c", "open -o driver=raw DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=raw,file.filename=DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=raw,filename=DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=raw,foo=1 DIR/x.raw", "-c", "length"],
  ["-c", "open -o file.filename=DIR/x.raw DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=null-co,size=1M", "-c", "length", "-c", "close", "-c", "open -r DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=file DIR/x.raw", "-c", "length"],
  ["-c", "open -o driver=file,foo=bar DIR/x.raw", "-c", "length"],
  ["-c", "open -r -o driver=raw -o read-only=on DIR/x.raw", "-c", "write 0 512"],
  ["-c", "open DIR/x.raw", "-c", "length"],
];

const CONFIGS: Readonly<Record<string, string>> = {
  good: '# once\n[inject-error]\nevent = "read_aio"\nerrno = "5"\nonce = "on"\n',
  bad1: '[inject-error]\nevent = "read_foo"\n',
  bad2: '[foo]\nevent = "read_aio"\n',
  bad3: "[inject-error]\nevent = read_aio\n",
  bad4: '[inject-error]\nerrno = "5"\n',
  bad5: '[inject-error]\nevent = "read_aio"\nfoo = "5"\n',
  bad6: 'event = "read_aio"\n',
};

interface Outcome {
  readonly out: readonly string[];
  readonly err: readonly string[];
  readonly code: number;
}

const masked = (lines: readonly string[]) => lines.map(maskTimes).filter((line) => line !== "");

function qemuIo(args: Arguments): Outcome {
  const { code, stdout, stderr } = new Deno.Command("qemu-io", { args: [...args], stdin: "null" }).outputSync();
  const lines = (bytes: Uint8Array) => masked(new TextDecoder().decode(bytes).split("\n"));
  // QEMU explains suffixes on two lines of their own, which are a hint here; and what it calls deprecated is taken here.
  const err = lines(stderr).map((line) => line.replace(/^qemu-io: /, ""))
    .filter((line) => !/^Optional suffix|^and exabytes|deprecated/.test(line));
  return { out: lines(stdout), err, code };
}

async function vblk(args: Arguments): Promise<Outcome> {
  const capture = new Capture();
  const code = await main(["attach", ...args], capture);
  const isError = (line: string) => line.startsWith("2> ");
  const err = capture.lines.filter(isError)
    .map((line) => line.replace(/^2> (vblk: (-c \d+:\d+: )?)?/, ""))
    .filter((line) => !/^(hint|note): /.test(line));
  return { out: masked(capture.lines.filter((line) => !isError(line))), err: masked(err), code };
}

/** One for all tests: none of them writes to an image. */
let folder: Folder | undefined;
globalThis.addEventListener("unload", () => folder?.[Symbol.dispose]());

function images(): Folder {
  const folder = new Folder();
  const bytes = new Uint8Array(64 << 10).map((_, i) => i * 31 % 251);
  folder.file("x.raw", bytes);
  folder.file("y.raw", new Uint8Array(64 << 10).fill(0x55));
  for (const [name, text] of Object.entries(CONFIGS)) folder.file(`${name}.cfg`, new TextEncoder().encode(text));
  run("qemu-img", "create", "-q", "-f", "qcow2", folder.file("x.qcow2"), "64k");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "x.raw", "-F", "raw", folder.file("o.qcow2"));
  return folder;
}

async function compare(args: Arguments, ours: Arguments = args): Promise<void> {
  const { path } = folder ??= images();
  const inFolder = (args: Arguments) => args.map((text) => text.replaceAll("DIR", path));
  const expected = qemuIo(inFolder(args));
  const actual = await vblk(inFolder(ours));
  assertEquals(actual.out, expected.out);
  // Where qemu-io prints to standard output, vblk also says where the command stood.
  const rest = [...actual.err];
  for (const line of expected.err) {
    const at = rest.indexOf(line);
    assertEquals(at >= 0, true, `not on standard error: ${line}\n${rest.join("\n")}`);
    rest.splice(0, at + 1);
  }
  assertEquals(actual.code, expected.code);
}

for (const args of ARGUMENTS) {
  Deno.test({
    name: `vblk attach opens or refuses what qemu-io does: ${args.join(" ")}`,
    ...requires("qemu-io", "qemu-img"),
    fn: () => compare(args),
  });
}

Deno.test({
  name: "the comparison of names with qemu-io sees another disk, another message and another exit code",
  ...requires("qemu-io", "qemu-img"),
  async fn() {
    const cases: [Arguments, Arguments][] = [
      [named("DIR/x.raw", "-r"), named("null-co://", "-r")],
      [named("DIR/x.raw"), named("DIR/x.raw", "-f", "raw")],
      [options("driver=foo"), options("driver=bar")],
    ];
    for (const [theirs, ours] of cases) await assertRejects(() => compare(theirs, ours), AssertionError);
  },
});
