import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { both, inPair, sameDisks, type Setup, SHORT_BETWEEN } from "./change_images.ts";

/** An overlay over another over a base, all of different sizes, and other images to go behind them. */
const SETUP: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "1M"],
  ["qemu-io", "-c", "write -P 1 0 300k", "b.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "c.qcow2", "4M"],
  ["qemu-io", "-c", "write -P 2 200k 3M", "-c", "write -z 512k 128k", "c.qcow2"],
  ["qemu-img", "create", "-q", "-f", "raw", "r.raw", "900k"],
  ["qemu-io", "-f", "raw", "-c", "write -P 3 100k 600k", "r.raw"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "m.qcow2", "2M"],
  ["qemu-io", "-c", "write -P 4 64k 512k", "-c", "write -z 640k 64k", "m.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "m.qcow2", "-F", "qcow2", "o.qcow2", "3M"],
  ["qemu-io", "-c", "write -P 5 0 256k", "o.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "m.qcow2", "-F", "qcow2", "v2.qcow2", "3M"],
  ["qemu-io", "-c", "write -P 5 1M 256k", "v2.qcow2"],
  [..."qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on -b m.qcow2 -F qcow2 x.qcow2 3M".split(" ")],
  ["qemu-io", "-c", "write -P 6 5k 20k", "x.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "alone.qcow2", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=*d.raw,data_file_raw=on", "d.qcow2", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1M"],
];

const OVERLAYS = ["o.qcow2", "v2.qcow2", "x.qcow2"];

/** `OVERLAY` stands for each of them. */
const MOVES = [
  ["rebase", "-b", "b.qcow2", "-F", "qcow2", "*OVERLAY"],
  ["rebase", "-b", "c.qcow2", "-F", "qcow2", "*OVERLAY"],
  ["rebase", "-b", "r.raw", "-F", "raw", "*OVERLAY"],
  ["rebase", "-b", "m.qcow2", "-F", "qcow2", "*OVERLAY"],
  ["rebase", "-b", "", "*OVERLAY"],
  ["rebase", "-b", "c.qcow2", "-F", "qcow2", "*OVERLAY"],
];

const LINES = [
  ["rebase"],
  ["rebase", "*o.qcow2"],
  ["rebase", "-b", "x", "*o.qcow2"],
  ["rebase", "-b", "c.qcow2", "*alone.qcow2"],
  ["rebase", "-b", "foo", "-u", "-F", "qcow2", "*alone.qcow2"],
  ["info", "*alone.qcow2"],
  ["map", "*alone.qcow2"],
  ["rebase", "-b", "foo", "-u", "*alone.qcow2"],
  ["rebase", "-b", "foo", "-F", "hah", "-u", "*alone.qcow2"],
  ["rebase", "-b", "foo", "-F", "vmdk", "-u", "*alone.qcow2"],
  ["rebase", "-u", "-b", "", "*alone.qcow2"],
  ["info", "*alone.qcow2"],
  ["rebase", "-u", "-F", "raw", "*alone.qcow2"],
  ["rebase", "-u", "-b", "x".repeat(1024), "-F", "raw", "*alone.qcow2"],
  ["rebase", "-u", "-b", "x".repeat(1023), "-F", "raw", "*alone.qcow2"],
  ["rebase", "-u", "*alone.qcow2"],
  ["rebase", "-u", "-b", "x".repeat(400), "-F", "raw", "*small.qcow2"],
  ["rebase", "-b", "c.qcow2", "-F", "qcow2", "*r.raw"],
  ["rebase", "-f", "raw", "-u", "-b", "c.qcow2", "-F", "qcow2", "*r.raw"],
  ["rebase", "-f", "raw", "-u", "*r.raw"],
  ["rebase", "-t", "foo", "-u", "-b", "c.qcow2", "-F", "qcow2", "*o.qcow2"],
  ["rebase", "-T", "foo", "-u", "-b", "c.qcow2", "-F", "qcow2", "*o.qcow2"],
  ["rebase", "-Z", "-b", "c.qcow2", "*o.qcow2"],
  ["rebase", "-b", "c.qcow2", "-F", "qcow2", "*nofile"],
  ["rebase", "-u", "-b", "b.qcow2", "-F", "qcow2", "*d.qcow2"],
  ["rebase", "-u", "-b", "alone.qcow2", "-F", "qcow2", "*alone.qcow2"],
  ["rebase", "-u", "-b", "", "*alone.qcow2"],
  ["rebase", "-b", "b.qcow2", "-F", "qcow2", "*alone.qcow2"],
];

Deno.test({
  name: "rebase prints, and ends with the code, that qemu-img does",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SETUP, async (pair) => {
      for (const line of LINES) await both(pair, line);
      await sameDisks(pair, "alone.qcow2");
    }),
});

Deno.test({
  name: "rebase leaves the disk as it was, whatever is behind it, and how long that is",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SETUP, async (pair) => {
      for (const overlay of OVERLAYS) {
        await Deno.copyFile(`${pair.theirs}/${overlay}`, `${pair.theirs}/was-${overlay}`);
        for (const move of MOVES) {
          await both(pair, move.map((word) => word.replace("OVERLAY", overlay)));
          // What it was, not what qemu-img made of it.
          await sameDisks(pair, overlay, `was-${overlay}`);
        }
      }
    }),
});

Deno.test({
  name: "rebase past an image that is shorter than the one behind it keeps the zeros behind its end",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SHORT_BETWEEN, async (pair) => {
      await Deno.copyFile(`${pair.theirs}/o.qcow2`, `${pair.theirs}/was`);
      await both(pair, ["rebase", "-b", "b.qcow2", "-F", "qcow2", "*o.qcow2"]);
      await sameDisks(pair, "o.qcow2", "was");
    }),
});
