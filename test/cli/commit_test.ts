import { assert, assertEquals } from "@std/assert";
import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { both, inPair, sameDisks, type Setup, SHORT_BETWEEN } from "./change_images.ts";
import { runQemuImg, runVblk } from "./qemu_img.ts";

/** An overlay over another over a base. */
const CHAIN: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "1M"],
  ["qemu-io", "-c", "write -P 1 0 1M", "b.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "m.qcow2", "2M"],
  ["qemu-io", "-c", "write -P 4 64k 512k", "-c", "write -z 640k 64k", "m.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "m.qcow2", "-F", "qcow2", "o.qcow2", "3M"],
  ["qemu-io", "-c", "write -P 5 0 256k", "-c", "write -z 512k 64k", "-c", "write -P 6 2500k 10k", "o.qcow2"],
];

/** One image over another, of each kind. */
const PAIRS: Setup = [
  ["qemu-img", "create", "-q", "-f", "raw", "r.raw", "1M"],
  ["qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", "r.raw"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "r.raw", "-F", "raw", "onraw.qcow2", "1500k"],
  ["qemu-io", "-c", "write -P 5 10k 256k", "-c", "write -z 512k 64k", "-c", "discard 640k 64k", "onraw.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "p.qcow2", "4M"],
  ["qemu-io", "-c", "write -P 3 0 4M", "p.qcow2"],
  [..."qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on -b p.qcow2 -F qcow2 x.qcow2 3M".split(" ")],
  ["qemu-io", "-c", "write -P 6 5k 20k", "-c", "write -z 100k 300k", "x.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "onraw.qcow2", "-F", "qcow2", "s.qcow2", "1500k"],
  ["qemu-io", "-c", "write -P 9 900k 300k", "s.qcow2"],
  ["qemu-img", "snapshot", "-c", "kept", "s.qcow2"],
  ["qemu-io", "-c", "write -P 8 0 300k", "s.qcow2"],
];

Deno.test({
  name: "commit prints, and ends with the code, that qemu-img does",
  ...NEEDS_QEMU,
  fn: () =>
    inPair([...CHAIN, ["qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M"]], async (pair) => {
      for (
        const line of [
          "commit",
          "commit *b.qcow2",
          "commit -f raw *a.raw",
          "commit -b zz *o.qcow2",
          "commit -b o.qcow2 *o.qcow2",
          "commit -r 1x *o.qcow2",
          "commit -t foo *o.qcow2",
          "commit -Z *o.qcow2",
          "commit *nofile",
          "commit -d *o.qcow2",
          "map *o.qcow2",
          "commit -q -r 1G *o.qcow2",
          "info *m.qcow2",
          "commit *m.qcow2",
        ]
      ) await both(pair, line.split(" "));
      for (const name of ["o.qcow2", "m.qcow2", "b.qcow2"]) await sameDisks(pair, name);
    }),
});

for (const base of ["b.qcow2", "./b.qcow2", "m.qcow2"]) {
  Deno.test({
    name: `commit into a base that is named '${base}' writes what the images above it have, and empties none`,
    ...NEEDS_QEMU,
    fn: () =>
      inPair(CHAIN, async (pair) => {
        await both(pair, ["commit", "-b", base, "*o.qcow2"]);
        for (const name of ["o.qcow2", "m.qcow2", "b.qcow2"]) await sameDisks(pair, name);
      }),
  });
}

Deno.test({
  name: "commit fills what a base has behind the end of a shorter image above it with zeros",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SHORT_BETWEEN, async (pair) => {
      await both(pair, ["commit", "-b", "b.qcow2", "*o.qcow2"]);
      await sameDisks(pair, "b.qcow2");
    }),
});

Deno.test({
  name: "commit empties the image, and the file gets shorter",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(CHAIN, async ({ ours }) => {
      const { size } = await Deno.stat(`${ours}/o.qcow2`);
      assertEquals((await runVblk(["commit", `${ours}/o.qcow2`])).out, ["Image committed."]);
      const extents = (await runQemuImg(["map", "--output=json", `${ours}/o.qcow2`])).out.join("");
      const owners = (JSON.parse(extents) as { depth: number; data: boolean }[]).filter(({ data }) => data);
      assertEquals(owners.filter(({ depth }) => depth === 0), []);
      assert(owners.length > 0);
      assert((await Deno.stat(`${ours}/o.qcow2`)).size < size);
    }),
});

Deno.test({
  name: "commit leaves every disk as it was, for each kind of image",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(PAIRS, async (pair) => {
      for (const name of ["x.qcow2", "s.qcow2", "onraw.qcow2"]) {
        await both(pair, ["commit", `*${name}`]);
        await sameDisks(pair, name);
      }
      await sameDisks(pair, "p.qcow2");
      await both(pair, ["snapshot", "-a", "kept", "*s.qcow2"]);
      await sameDisks(pair, "s.qcow2");
    }),
});
