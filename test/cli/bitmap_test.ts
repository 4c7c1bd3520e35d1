/** `vblk bitmap` beside `qemu-img bitmap`: what both print, how they end, and what they leave behind. */

import { assert, assertEquals } from "@std/assert";
import { requires } from "../requires.ts";
import { Folder } from "../storage/support.ts";
import { runQemuImg, runVblk } from "./qemu_img.ts";

const NEEDS = requires("qemu-img", "qemu-io");

/** Facts that both must agree on after the same commands. */
async function stateOf(path: string): Promise<unknown> {
  const check = await runQemuImg(["check", path]);
  const info = await runQemuImg(["info", "--output=json", path]);
  const { bitmaps } = JSON.parse(info.out.join("\n"))["format-specific"].data;
  return { check: [check.code, check.err], bitmaps };
}

/** Runs the same in a folder for each program; `{}` stands for it. */
class Both {
  readonly #ours = new Folder();
  readonly #theirs = new Folder();

  async make(name: string, ...args: string[]): Promise<void> {
    for (const folder of [this.#ours, this.#theirs]) {
      const { code, err } = await runQemuImg([
        "create",
        "-q",
        "-f",
        "qcow2",
        ...args.slice(1),
        folder.file(name),
        args[0],
      ]);
      assertEquals([code, ...err], [0]);
    }
  }

  file(name: string, bytes?: Uint8Array): readonly [ours: string, theirs: string] {
    return [this.#ours.file(name, bytes), this.#theirs.file(name, bytes)];
  }

  /** Fails unless both end alike; returns the exit code. */
  async run(...args: string[]): Promise<number> {
    const place = (folder: Folder) => args.map((arg) => arg.replaceAll("{}", folder.file("").replace(/\/$/, "")));
    const [ours, theirs] = [await runVblk(place(this.#ours)), await runQemuImg(place(this.#theirs))];
    const plain = (lines: readonly string[], folder: Folder) =>
      lines.filter((line) => !/^Try (block-dirty-bitmap-remove|--skip-broken-bitmaps)/.test(line))
        .map((line) =>
          line.replaceAll(folder.file("").replace(/\/$/, ""), "{}").replace(/'?(#block\d+|\{\}\/\w+)'?/g, "NODE")
        );
    assertEquals(
      { ...ours, err: plain(ours.err, this.#ours) },
      { ...theirs, err: plain(theirs.err, this.#theirs) },
      args.join(" "),
    );
    return ours.code;
  }

  async sameState(name: string): Promise<void> {
    assertEquals(await stateOf(this.#ours.file(name)), await stateOf(this.#theirs.file(name)));
  }

  [Symbol.dispose](): void {
    this.#ours[Symbol.dispose]();
    this.#theirs[Symbol.dispose]();
  }
}

Deno.test({
  name: "vblk bitmap does what qemu-img bitmap does, in the same words",
  ...NEEDS,
  async fn() {
    using both = new Both();
    await both.make("a", "10M");
    await both.make("b", "10M", "-o", "cluster_size=512");
    await both.make("small", "5M");
    await both.make("old", "1M", "-o", "compat=0.10");
    await both.make("huge", "1T");
    both.file("raw", new Uint8Array(1 << 20));
    const lines = [
      "--add -g 4k {}/a b0",
      "--add {}/a b0",
      "--add --disable {}/a b1",
      "--add --merge nope {}/a b2",
      "--merge b0 --enable {}/a b1",
      "--add -g 2G {}/a large",
      "--add {}/b default",
      "--merge b0 -b {}/a {}/b default",
      "--merge b0 -b {}/a -F qcow2 --disable {}/b default",
      "--merge b0 -b {}/a {}/small none",
      "--add --merge b0 -b {}/a {}/small s",
      "--add --remove --add --clear {}/small t",
      "--remove {}/a b0",
      "--remove {}/a b0",
      "--clear {}/a b1",
      "--add {}/old x",
      "--add -g 512 {}/huge x",
      "--add {}/raw x",
      "--remove -f raw {}/raw x",
      "--add -g 100 {}/a c",
      "--add -g 4G {}/a c",
      "--add -g 0 {}/a zero",
      "--add -g 1x {}/a c",
      `--add {}/a ${"x".repeat(1024)}`,
      "--add -f raw {}/a c",
      "--add {}/none c",
      "--add --image-opts driver=qcow2,file.filename={}/a opts",
      "--clear {}/a nope",
      "--enable {}/a nope",
      "--disable {}/a nope",
      "--merge nope {}/a b1",
      "--merge b1 {}/a nope",
      "--merge b1 {}/a b1",
      "{}/a b1",
      "--add {}/a",
      "--add {}/a b c",
      "-g 4k --remove {}/a b1",
      "-F raw --add {}/a c",
      "-b {}/b --add {}/a c",
      "--bogus {}/a b",
      "--merge",
    ];
    const codes = { good: 0, bad: 0 };
    for (const line of lines) codes[await both.run("bitmap", ...line.split(" ")) === 0 ? "good" : "bad"]++;
    await both.run("bitmap", "--add", "{}/a", "");
    assert(codes.good > 10 && codes.bad > 20, JSON.stringify(codes));
    for (const name of ["a", "b", "small", "huge"]) await both.sameState(name);
  },
});

Deno.test({
  name: "vblk bitmap leaves a bitmap that was not closed alone, unless it is to be removed",
  ...NEEDS,
  async fn() {
    using both = new Both();
    await both.make("a", "1M");
    await both.run("bitmap", "--add", "{}/a", "broken");
    await both.run("bitmap", "--add", "{}/a", "sound");
    for (const path of both.file("a")) setInUse(path);
    for (const action of ["--clear", "--enable", "--disable", "--merge sound"]) {
      assertEquals(await both.run("bitmap", ...action.split(" "), "{}/a", "broken"), 1);
    }
    assertEquals(await both.run("bitmap", "--merge", "broken", "{}/a", "sound"), 1);
    await both.sameState("a");
    assertEquals(await both.run("bitmap", "--remove", "{}/a", "broken"), 0);
    assertEquals(await both.run("bitmap", "--remove", "{}/a", "sound"), 0);
    await both.sameState("a");
  },
});

Deno.test({
  name: "vblk convert --bitmaps copies what qemu-img convert --bitmaps copies",
  ...NEEDS,
  async fn() {
    using both = new Both();
    await both.make("a", "1M");
    await both.make("old", "1M", "-o", "compat=0.10");
    both.file("raw", new Uint8Array(1 << 20));
    for (const name of ["broken", "sound"]) await both.run("bitmap", "--add", "{}/a", name);
    await both.run("bitmap", "--add", "--disable", "-g", "512", "{}/a", "disabled");
    assertEquals(await both.run("convert", "--bitmaps", "-O", "qcow2", "{}/a", "{}/b"), 0);
    await both.sameState("b");
    assertEquals(await both.run("convert", "--bitmaps", "-n", "-O", "qcow2", "{}/a", "{}/b"), 1);
    for (const path of both.file("a")) setInUse(path);
    const lines = [
      ["{}/a", "{}/c"],
      ["{}/a", "{}/a", "{}/c"],
      ["-f", "raw", "{}/raw", "{}/c"],
      ["{}/old", "{}/c"],
      ["-o", "compat=0.10", "{}/b", "{}/c"],
    ];
    for (const line of lines) assertEquals(await both.run("convert", "--bitmaps", "-O", "qcow2", ...line), 1);
    assertEquals(await both.run("convert", "--bitmaps", "-O", "raw", "{}/b", "{}/c"), 1);
    assertEquals(await both.run("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "{}/a", "{}/c"), 0);
    await both.sameState("c");
  },
});

/** Says in the file that the first bitmap is in use. */
function setInUse(path: string): void {
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  let at = view.getUint32(100);
  while (view.getUint32(at) !== 0x23852875) at += 8 + Math.ceil(view.getUint32(at + 4) / 8) * 8;
  const directory = Number(view.getBigUint64(at + 8 + 16));
  view.setUint32(directory + 12, view.getUint32(directory + 12) | 1);
  Deno.writeFileSync(path, bytes);
}
