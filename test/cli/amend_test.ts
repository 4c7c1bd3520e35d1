import { assertEquals } from "@std/assert";
import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { both, inPair, sameDisks, type Setup } from "./change_images.ts";

const SETUP: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "v3", "1M"],
  ["qemu-io", "-c", "write 0 256k", "-c", "write -z 512k 128k", "v3"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "v2", "1M"],
  ["qemu-io", "-c", "write 64k 512k", "v2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "w2", "1M"],
  ["qemu-img", "snapshot", "-c", "a", "w2"],
  ["qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=*d.raw", "d", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=*dr.raw,data_file_raw=on", "dr", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "e", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", "z", "1M"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", "zc", "1M"],
  ["qemu-io", "-c", "write -c 64k 64k", "zc"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "o", "1M"],
];

const LINES = [
  "amend",
  "amend *v3",
  "amend -o compat=0.10",
  "amend -o help",
  "amend -f qcow2 -o help",
  "amend -o help *v3",
  "amend -f raw -o help",
  "amend -f foo -o help",
  "amend -o size=1 *a.raw",
  "amend -o compat=v3 *v3",
  "amend -o compat=foo *v3",
  "amend -o cluster_size=4k *v3",
  "amend -o preallocation=full *v3",
  "amend -o foo=bar *v3",
  "amend -o size=foo *v3",
  "amend -o size=2M *v3",
  "amend -o size=512k *v3",
  "amend -o size=0 *v3",
  "amend -o size=1000 *v3",
  "amend -o size=100P *v3",
  "amend -o backing_file=x *v3",
  "amend -o backing_fmt=raw *v3",
  "amend -o backing_file= *v3",
  "amend -o backing_file=a.raw *o",
  "amend -o backing_file=a.raw,backing_fmt=raw *o",
  "amend -o lazy_refcounts=on *v2",
  "amend -o lazy_refcounts=on *v3",
  "info *v3",
  "amend -o lazy_refcounts=off *v3",
  "amend -o lazy_refcounts=foo *v3",
  "amend -o refcount_bits=3 *v3",
  "amend -o refcount_bits=0 *v3",
  "amend -o refcount_bits=128 *v3",
  "amend -o refcount_bits=-1 *v3",
  "amend -o refcount_bits=foo *v3",
  "amend -o refcount_bits=8 *v2",
  "amend -o refcount_bits=64,compat=1.1 *v2",
  "info *v2",
  "amend -o refcount_bits=1 *v3",
  "amend -o compat=0.10 *v3",
  "amend -o refcount_bits=16 *v3",
  "snapshot -c a *v3",
  "amend -o refcount_bits=1 *v3",
  "amend -o data_file=x *v3",
  "amend -o data_file=*d2.raw *d",
  "amend -o data_file_raw=on *v3",
  "amend -o data_file_raw=off *dr",
  "info *dr",
  "amend -o compat=0.10 *dr",
  "amend -o compat=0.10 *e",
  "amend -o compat=0.10 *z",
  "info *z",
  "amend -o compat=0.10 *zc",
  "amend -o encryption=on *v3",
  "amend -o encrypt.format=luks *v3",
  "amend -o encrypt.state=active *v3",
  "amend -o extended_l2=on *v3",
  "amend -o compression_type=zstd *v3",
  "amend -o nocow=on *v3",
  "amend -o compat=0.10 *v3",
  "amend -o refcount_bits=32 *v3",
  "amend -o size=4M *v3",
  "amend -o , *v3",
  "amend -o compat=0.10,foo=bar *v3",
  "amend -t foo -o size=5M *v3",
  "amend -o size=5M *nofile",
  "amend -o size=5M a b",
  "amend -o lazy_refcounts=on,compat=1.1,refcount_bits=2 *v2",
  "amend --force -o size=5M *v2",
  "amend -o compat=0.10,lazy_refcounts=on *v2",
  "amend -o size *v2",
  "amend -o lazy_refcounts *v2",
  "amend -o nolazy_refcounts *v2",
  "amend -o compat=0.10 *w2",
  "amend -o compat=1.1 *w2",
  "info *w2",
];

Deno.test({
  name: "amend prints, and ends with the code, that qemu-img does",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SETUP, async (pair) => {
      for (const line of LINES) await both(pair, line.split(" "));
      for (const name of ["v3", "v2", "e", "z", "zc", "o", "w2"]) await sameDisks(pair, name);
    }),
});

const SNAPSHOT_SETUP: Setup = [
  ["qemu-img", "create", "-q", "-f", "raw", "base", "1M"],
  ["qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", "base"],
  ...["over", "alone"].flatMap((name) => [
    [
      ...["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=1k"],
      ...name === "over" ? ["-b", "base", "-F", "raw"] : [],
      ...[name, "1M"],
    ],
    // Some zeros have a place and some have none; some of their tables stay as they are, and are shared then.
    ["qemu-io", "-c", "write -P 1 0 256k", "-c", "write -z 512k 128k", "-c", "write -z 200k 40k", name],
    ["qemu-io", "-c", "write -z 800k 50k", name],
    ["qemu-img", "snapshot", "-c", "one", name],
    ["qemu-io", "-c", "write -z -u 100k 20k", "-c", "write -P 3 520k 8k", name],
    ["qemu-img", "snapshot", "-c", "two", name],
    ["qemu-io", "-c", "write -P 4 700k 60k", "-c", "write -z 700k 30k", name],
  ]),
];

Deno.test({
  name: "amend to compat=0.10 and back leaves the disk and its snapshots as they were, zeros over a backing file too",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SNAPSHOT_SETUP, async (pair) => {
      for (const name of ["over", "alone"]) {
        await Deno.copyFile(`${pair.theirs}/${name}`, `${pair.theirs}/was-${name}`);
        for (const options of ["compat=0.10", "compat=1.1,refcount_bits=32", "refcount_bits=64", "refcount_bits=4"]) {
          await both(pair, ["amend", "-o", options, `*${name}`]);
          await sameDisks(pair, name, `was-${name}`);
        }
        for (const snapshot of ["two", "one"]) {
          await both(pair, ["snapshot", "-a", snapshot, `*${name}`]);
          await sameDisks(pair, name);
        }
        for (const snapshot of ["two", "one"]) {
          await both(pair, ["snapshot", "-d", snapshot, `*${name}`]);
          await sameDisks(pair, name);
        }
      }
    }),
});

Deno.test({
  name: "amend takes an image with small clusters through all widths of refcounts",
  ...NEEDS_QEMU,
  fn: () => {
    const setup: Setup = [
      ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "i", "3M"],
      ["qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 2 2M 700k", "-c", "discard 100k 300k", "i"],
    ];
    return inPair(setup, async (pair) => {
      for (const bits of [64, 1, 32, 2, 8, 4, 16]) {
        await both(pair, ["amend", "-o", `refcount_bits=${bits}`, "*i"]);
        await sameDisks(pair, "i");
      }
      // It is not only readable.
      const { success } = await new Deno.Command("qemu-io", { args: ["-c", "write 100k 2M", `${pair.ours}/i`] })
        .output();
      assertEquals(success, true);
    });
  },
});
