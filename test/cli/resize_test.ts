import { NEEDS_QEMU, start } from "../image/qcow2/shapes.ts";
import { both, inPair, sameDisks, type Setup } from "./change_images.ts";

const SETUP: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M"],
  ["qemu-io", "-c", "write -P 7 0 1M", "a.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1M"],
  ["qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M"],
];

const LINES = [
  "resize",
  "resize *a.qcow2",
  "resize *a.qcow2 2M 3M",
  "resize *a.qcow2 foo",
  "resize *a.qcow2 +1M",
  "resize *a.qcow2 -1M",
  "resize --shrink *a.qcow2 -1M",
  "resize --shrink *a.qcow2 -1025k",
  "resize *a.qcow2 0",
  "resize *a.qcow2 -4M",
  "resize --preallocation=foo *a.qcow2 2M",
  "resize --preallocation=full --shrink *a.qcow2 512",
  "resize *a.qcow2 1048577",
  "resize --preallocation=metadata *a.qcow2 2M",
  "resize --preallocation=falloc *a.qcow2 2500k",
  "resize --preallocation=full *a.qcow2 3M",
  "resize *a.qcow2 +-1M",
  "resize *a.qcow2 18446744073709551616",
  "resize *a.qcow2 9E",
  "resize *a.qcow2 100P",
  "resize *a.raw 1000",
  "resize -f raw *a.raw 3333333",
  "resize -f raw *a.raw 1",
  "resize -f raw --preallocation=metadata *a.raw 8M",
  "resize -f raw --preallocation=falloc *a.raw 8M",
  "resize -q -f qcow2 *a.qcow2 4M",
  "resize *nofile 2M",
  "resize -f foo *a.qcow2 2M",
  "resize -x *a.qcow2 2M",
  "resize *v2.qcow2 2M",
  "resize --preallocation=metadata *v2.qcow2 3M",
  "snapshot -c s *v2.qcow2",
  "resize *v2.qcow2 4M",
];

Deno.test({
  name: "resize prints, and ends with the code, that qemu-img does",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SETUP, async (pair) => {
      for (const line of LINES) await both(pair, line.split(" "));
      for (const name of ["a.qcow2", "v2.qcow2"]) await sameDisks(pair, name);
    }),
});

const KINDS = [
  "cluster_size=4k",
  "cluster_size=512,refcount_bits=64",
  "compat=0.10",
  "cluster_size=16k,extended_l2=on",
  "lazy_refcounts=on",
  "data_file=*data",
  "data_file=*data,data_file_raw=on",
];

for (const kind of KINDS) {
  Deno.test({
    name: `resize grows and shrinks images with ${kind}, with every kind of preallocation`,
    ...NEEDS_QEMU,
    fn: () => {
      const setup: Setup = [
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", kind, "i", "1000k"],
        ["qemu-io", "-c", "write -P 7 0 1000k", "i"],
      ];
      return inPair(setup, async (pair) => {
        for (const mode of ["metadata", "falloc", "full", "off"]) {
          await both(pair, ["resize", `--preallocation=${mode}`, "*i", "+300k"]);
          await sameDisks(pair, "i");
        }
        await both(pair, ["resize", "--shrink", "*i", "-1M"]);
        await sameDisks(pair, "i");
        // qemu-img 7.2 shows what was in the clusters that it takes with this kind: so its disk is not the one to be.
        await Deno.copyFile(`${pair.theirs}/i`, `${pair.theirs}/zeros`);
        await start("qemu-img", "resize", "-q", `${pair.theirs}/zeros`, "+1M");
        await both(pair, [
          "resize",
          "--preallocation=metadata",
          "--image-opts",
          "driver=qcow2,file.filename=*i",
          "+1M",
        ]);
        await sameDisks(pair, "i", "zeros");
      });
    },
  });
}
