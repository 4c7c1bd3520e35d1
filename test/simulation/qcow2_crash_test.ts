/**
 * A crash at every write of a qcow2 image: each state opens, is sound, holds what was flushed, and for each later write
 * the old bytes or the new ones.
 */

import { assert, assertRejects } from "@std/assert";
import { NEEDS_QEMU } from "../image/qcow2/shapes.ts";
import { Folder } from "../storage/support.ts";
import { crashQcow2 } from "./qcow2_crash.ts";
import { CASES } from "./qcow2_crash_cases.ts";
import { backingFile, PLAIN } from "./qcow2_disk.ts";

/** Seeds for each case, from this one on. */
const FIRST_SEED = 1;
const SEEDS = 3;
/** Most states that are judged for a case and a seed. */
const STATES = 400;

for (const it of CASES) {
  Deno.test(`a qcow2 image survives every crash: ${it.name}`, async () => {
    let judged = 0;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      judged += await crashQcow2(it, seed, { states: STATES });
    }
    assert(judged > 100, `only ${judged} states`);
  });
}

Deno.test({
  name: "QEMU finds states after crashes sound too, as they are, or after vblk repaired them if they are dirty",
  ...NEEDS_QEMU,
  async fn() {
    let checked = 0;
    for (const it of CASES) {
      const shape = { ...PLAIN, ...it.shape };
      // Of a version 2 image with snapshots the flags may be late, and a data file is not looked for here.
      if (shape.dataFile !== "none" || (shape.version === 2 && it.weights.snapshot !== undefined)) continue;
      using folder = new Folder();
      if (shape.backing !== "none") folder.file("base", backingFile(shape));
      let states = 0;
      const paths: string[] = [];
      await crashQcow2(it, FIRST_SEED, {
        states: 60,
        also: (bytes) => void (states++ % 8 === 0 && paths.push(folder.file(`state-${states}`, bytes))),
      });
      await Promise.all(paths.map((path) => checkByQemu(path, it.name)));
      checked += paths.length;
    }
    assert(checked > 100, `only ${checked} states`);
  },
});

/** Leaks are allowed, errors are not. */
async function checkByQemu(path: string, name: string): Promise<void> {
  const { code, stdout, stderr } = await new Deno.Command("qemu-img", { args: ["check", "-f", "qcow2", path] })
    .output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  assert(code === 0 || code === 3, `${name}, seed ${FIRST_SEED}: ${text}`);
}

/** Where the order inside an operation matters. */
const CANARIES = ["allocation", "everything a guest does", "snapshots", "a refcount block now and then", "extended L2"];

for (const name of CANARIES) {
  Deno.test(`a qcow2 image whose barriers are lost does not survive every crash: ${name} (canary)`, async () => {
    const it = CASES.find((other) => other.name === name)!;
    await assertRejects(
      async () => {
        for (let seed = FIRST_SEED; seed < FIRST_SEED + 10; seed++) await crashQcow2(it, seed, { dropBarriers: true });
      },
      Error,
      "after a crash at",
    );
  });
}
