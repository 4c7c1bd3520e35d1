import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { both, inPair, sameDisks, type Setup } from "./change_images.ts";

const SETUP: Setup = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M"],
  ["qemu-io", "-c", "write -P 7 0 300k", "a.qcow2"],
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=*d.raw", "d.qcow2", "1M"],
  ["qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M"],
];

const LONG_NAME = "x".repeat(300);

const LINES = [
  "snapshot",
  "snapshot *a.qcow2",
  "snapshot -l *a.qcow2",
  "snapshot -c a *a.qcow2",
  "snapshot -c a *a.qcow2",
  "snapshot -c 1 *a.qcow2",
  "snapshot -l *a.qcow2",
  "snapshot -a a *a.qcow2",
  "snapshot -a zz *a.qcow2",
  "snapshot -d zz *a.qcow2",
  "snapshot -d a *a.qcow2",
  "snapshot -l *a.qcow2",
  "snapshot -d 1 *a.qcow2",
  "snapshot -a 2 *a.qcow2",
  "snapshot -d 2 *a.qcow2",
  "snapshot -l *a.qcow2",
  "snapshot -l -c x *a.qcow2",
  "snapshot -c x -d y *a.qcow2",
  "snapshot a b c",
  "snapshot -l *a.raw",
  "snapshot -c x *a.raw",
  "snapshot -d x *a.raw",
  "snapshot -l *nofile",
  "snapshot -c x *d.qcow2",
  "snapshot -a x *d.qcow2",
  "snapshot -d x *d.qcow2",
  "snapshot -l *d.qcow2",
  "snapshot -U -c x *a.qcow2",
  "snapshot -U -l *a.qcow2",
  "snapshot -c x",
  "snapshot -c",
  "snapshot -Z",
  `snapshot -c ${LONG_NAME} *a.qcow2`,
  "snapshot -l *a.qcow2",
  "snapshot -q -c bb *a.qcow2",
  "resize *a.qcow2 2M",
  "snapshot -a bb *a.qcow2",
  "snapshot -q -l *a.qcow2",
];

Deno.test({
  name: "snapshot prints, and ends with the code, that qemu-img does",
  ...NEEDS_QEMU,
  fn: () =>
    inPair(SETUP, async (pair) => {
      for (const line of LINES) await both(pair, line.split(" "));
      await sameDisks(pair, "a.qcow2");
    }),
});
