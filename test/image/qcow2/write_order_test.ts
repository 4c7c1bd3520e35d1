/** What writing does to the file, and when: the order of operations, the bits in the header, what waits and what does not. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { checkQcow2 } from "../../../src/image/qcow2/check.ts";
import { readHeader } from "../../../src/image/qcow2/header.ts";
import { failureOf, readBytes } from "../../storage/support.ts";
import { filled, l2OffsetOf, type Made, make } from "./write_support.ts";

const K4 = 4096;

/** Watches what is done to the storage: kinds and places. */
function watch({ storage }: Made): string[] {
  const seen: string[] = [];
  storage.hook = ({ kind, offset }) => {
    if (kind !== "read") seen.push(kind === "flush" ? "flush" : `${kind} ${offset / K4}`);
  };
  return seen;
}

Deno.test("a flush writes refcounts and new tables, then a barrier, then what refers to them, then a barrier", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4 });
  const image = await made.open();
  const seen = watch(made);
  await image.write(0, filled(1, K4));
  const [block, l1] = [Number(made.u64(Number(made.u64(48)))) / K4, Number(made.u64(40)) / K4];
  const [table, data] = [4, 5];
  assertEquals([block, l1], [2, 3]);
  // Data when the guest writes; the new table's cluster is made to be zeros.
  assertEquals(seen.splice(0), [`zero ${table}`, `write ${data}`]);
  await image.flush();
  assertEquals(seen.splice(0), [`write ${block}`, `write ${table}`, "flush", `write ${l1}`, "flush"]);
  await image.write(K4, filled(2, K4));
  assertEquals(seen.splice(0), [`write ${data + 1}`]);
  await image.flush();
  assertEquals(seen.splice(0), [`write ${block}`, "flush", `write ${table}`, "flush"]);
  // Nothing is free before nothing in the file refers to it: the count goes down one flush later.
  await image.discard(0, K4);
  await image.write(2 * K4, filled(3, K4));
  assertEquals(seen.splice(0), [`write ${data + 2}`]);
  await image.flush();
  assertEquals(seen.splice(0), [`write ${block}`, "flush", `write ${table}`, "flush", `discard ${data}`]);
  await image.write(3 * K4, filled(4, K4));
  assertEquals(seen.splice(0), [`write ${data}`]);
  await image.close();
});

Deno.test("a write in place changes no table and waits for nothing; its flush is one flush", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4 });
  const image = await made.open();
  await image.write(0, filled(1, 8 * K4));
  await image.flush();
  const seen = watch(made);
  assertEquals(image.write(K4 + 512, filled(2, 3 * K4)), undefined);
  assertEquals(seen.splice(0), [`write ${(Number(made.u64(l2OffsetOf(made))) % 2 ** 53 + K4 + 512) / K4}`]);
  assertEquals(image.flush(), undefined);
  assertEquals(seen.splice(0), ["flush"]);
  await image.close();
  assertEquals(seen.splice(0), []);
});

Deno.test("lazy refcounts: the dirty bit is set, with barriers, before anything else; closing clears it", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4, lazyRefcounts: true });
  const image = await made.open();
  const seen = watch(made);
  await image.write(0, filled(1, K4));
  assertEquals(seen.splice(0).slice(0, 3), ["flush", "write 0", "flush"]);
  assertEquals(made.u64(72), 1n);
  await image.flush();
  // No refcount block among them.
  assertEquals(seen.splice(0), ["write 4", "flush", "write 3", "flush"]);
  const found = await checkQcow2(made.memory, await readHeader(made.memory));
  assert(found.corruptions > 0, "the counts are late");
  await image.close();
  assertEquals(made.u64(72), 0n);
  const after = await checkQcow2(made.memory, await readHeader(made.memory));
  assertEquals([after.corruptions, after.leaks], [0, 0]);
});

Deno.test("an image with the dirty bit is repaired when it is opened for writing, and only then", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4, lazyRefcounts: true });
  const abandoned = await made.open();
  await abandoned.write(0, filled(1, K4));
  await abandoned.flush();
  // The process died here.
  const reader = await made.open({ readOnly: true });
  assertEquals((await readBytes(reader, 0, 512))[0], 1);
  assertEquals(made.u64(72), 1n);
  const image = await made.open();
  assertEquals(made.u64(72), 0n);
  const { corruptions, leaks } = await checkQcow2(made.memory, await readHeader(made.memory));
  assertEquals([corruptions, leaks], [0, 0]);
  assertEquals((await readBytes(image, 0, 512))[0], 1);
  await image.close();
});

Deno.test("autoclear bits that nobody knows are cleared when the image is opened for writing, compatible ones are kept", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4 });
  made.setU64(88, 1n << 40n);
  made.setU64(80, 1n << 50n);
  await (await made.open({ readOnly: true })).close();
  assertEquals([made.u64(80), made.u64(88)], [1n << 50n, 1n << 40n]);
  await (await made.open()).close();
  assertEquals([made.u64(80), made.u64(88)], [1n << 50n, 0n]);
});

Deno.test("an image that was opened for reading only refuses every change", async () => {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4 });
  const image = await made.open({ readOnly: true });
  const changes = [
    () => image.write(0, filled(1, 512)),
    () => image.writeZeroes(0, 512, true),
    () => image.discard(0, K4),
    () => image.writeCompressed(0, filled(1, K4)),
    () => image.resize(512),
    () => image.createSnapshot("s"),
  ];
  for (const change of changes) {
    const { kind, message } = await failureOf(change);
    assertEquals(kind, "not-permitted");
    assertStringIncludes(message, "The image was opened for reading only");
  }
});

Deno.test("the tables that are held have a bound, also while everything is written anew", async () => {
  const made = await make({ sizeBytes: 4096 * 512, clusterBytes: 512 });
  const image = await made.open({ l2CacheBytes: 8 * 512 });
  for (let i = 0; i < 4096; i += 7) await image.write(i * 512, filled(i % 255 + 1, 512));
  assert(image.l2Cache.usedBytes <= 9 * 512, `${image.l2Cache.usedBytes}`);
  for (let i = 0; i < 4096; i += 7) assertEquals((await readBytes(image, i * 512, 512))[0], i % 255 + 1);
  await image.close();
  const { corruptions, leaks } = await checkQcow2(made.memory, await readHeader(made.memory));
  assertEquals([corruptions, leaks], [0, 0]);
});
