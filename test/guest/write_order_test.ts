/** Writes that share a sector: an edge that is read and written back must not undo what another request wrote. */

import { assertEquals } from "@std/assert";
import { WriteOrder } from "../../src/guest/write_order.ts";
import { Random } from "../random.ts";
import { DISK, machine, model, SECTOR, stored } from "./guest_rig.ts";

/** Lets the event loop go round once. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

Deno.test("writes at the same time to parts of one sector all arrive, with a storage that takes its time too", async () => {
  for (const slow of [false, true]) {
    const made = await machine();
    const random = new Random(5);
    if (slow) {
      made.storage.hook = async () => {
        for (let turns = random.below(4); turns > 0; turns--) await turn();
      };
    }
    const expected = model();
    const writes: Promise<void>[] = [];
    for (let i = 0; i < 64; i++) {
      const offset = 3 * SECTOR + i * 13;
      expected.fill(i, offset, offset + 13);
      writes.push(made.guest.write(offset, new Uint8Array(13).fill(i)));
    }
    await Promise.all(writes);
    assertEquals(stored(made), expected);
    await made.machine.close();
  }
});

Deno.test("a write of whole sectors and one of a part of them leave the later one where they overlap, and both elsewhere", async () => {
  const made = await machine();
  const { guest } = made;
  const whole = new Uint8Array(2 * SECTOR).fill(1);
  await Promise.all([guest.write(0, whole), guest.write(100, Uint8Array.of(2)), guest.writeZeroes(SECTOR, SECTOR)]);
  const expected = model();
  expected.set(whole);
  expected[100] = 2;
  expected.fill(0, SECTOR, 2 * SECTOR);
  assertEquals(stored(made), expected);
  await Promise.all([guest.write(700, Uint8Array.of(3)), guest.discard(DISK - SECTOR, SECTOR), guest.write(0, whole)]);
  expected.set(whole);
  expected.fill(0, DISK - SECTOR);
  assertEquals(stored(made), expected);
  await made.machine.close();
});

Deno.test("WriteOrder holds back only what overlaps with an exclusive change, and a failure lets the next one go", async () => {
  const order = new WriteOrder();
  const started: string[] = [];
  const gates = new Map<string, ReturnType<typeof Promise.withResolvers<void>>>();
  const run = (name: string, start: number, end: number, exclusive: boolean) => {
    const gate = Promise.withResolvers<void>();
    gates.set(name, gate);
    return order.run(start, end, exclusive, () => {
      started.push(name);
      return gate.promise;
    }).catch(() => {});
  };
  const all = [
    run("plain", 0, 10, false),
    run("beside it", 5, 10, false),
    run("exclusive", 9, 12, true),
    run("elsewhere", 12, 20, true),
    run("behind", 11, 12, false),
  ];
  assertEquals(started, ["plain", "beside it", "elsewhere"]);
  gates.get("plain")!.resolve();
  await turn();
  assertEquals(started.length, 3, "the exclusive one waits for both before it");
  gates.get("beside it")!.reject(new Error("failed"));
  await turn();
  assertEquals(started.slice(3), ["exclusive"]);
  gates.get("exclusive")!.resolve();
  await turn();
  assertEquals(started.slice(4), ["behind"]);
  gates.forEach((gate) => gate.resolve());
  await Promise.all(all);
});
