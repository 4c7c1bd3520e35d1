/**
 * A crash at every write of a qcow2 image: each state opens, is sound, holds what was flushed, and for each later write
 * the old bytes or the new ones.
 */

import { assert, assertRejects } from "@std/assert";
import { crashQcow2 } from "./qcow2_crash.ts";
import { CASES } from "./qcow2_crash_cases.ts";

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
