/** Tables that lie: what would be written over metadata is refused, and the image is marked. */

import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { GuestIoError } from "../../../src/guest/guest_error.ts";
import { Machine } from "../../../src/machine.ts";
import type { BlockError } from "../../../src/storage/block_error.ts";
import { failureOf, readBytes } from "../../storage/support.ts";
import { filled, l2OffsetOf, type Made, make } from "./write_support.ts";

const K4 = 4096;
const COPIED = 1n << 63n;
const CORRUPT_BIT = 2n;

/** An image with two clusters of data and a snapshot, closed. */
async function written(): Promise<Made> {
  const made = await make({ sizeBytes: 64 * K4, clusterBytes: K4 });
  const image = await made.open();
  await image.createSnapshot("s");
  await image.write(0, filled(1, 2 * K4));
  await image.close();
  return made;
}

/** Metadata, and where each is. */
const PLACES: readonly (readonly [kind: string, offset: (made: Made) => bigint])[] = [
  ["qcow2_header", () => 0n],
  ["active L1 table", ({ u64 }) => u64(40)],
  ["active L2 table", (made) => BigInt(l2OffsetOf(made))],
  ["refcount table", ({ u64 }) => u64(48)],
  ["refcount block", ({ u64 }) => u64(Number(u64(48)))],
  ["snapshot table", ({ u64 }) => u64(64)],
  ["inactive L1 table", ({ u64 }) => u64(Number(u64(64)))],
];

for (const [kind, offsetOf] of PLACES.slice(1)) {
  Deno.test(`a guest's write to a cluster that is the ${kind} ends in S_IOERR, and the image is marked corrupt`, async () => {
    const made = await written();
    const offset = offsetOf(made);
    made.setU64(l2OffsetOf(made), COPIED | offset);
    const before = await bytesOf(made, Number(offset));
    const errors: BlockError[] = [];
    const machine = await Machine.start(await made.open(), {
      ramBytes: 4 << 20,
      hostError: (error) => void errors.push(error),
    });
    await assertRejects(() => machine.guest.write(0, new Uint8Array(512).fill(0xee)), GuestIoError, "S_IOERR");
    assertStringIncludes(errors[0].message, `Preventing invalid write on metadata (overlaps with ${kind})`);
    assertEquals(errors[0].kind, "corrupt");
    // Reading goes on; writing does not, not even elsewhere.
    assertEquals((await machine.guest.read(K4, 512))[0], 1);
    await assertRejects(() => machine.guest.write(K4, new Uint8Array(512)), GuestIoError);
    await assertRejects(() => machine.close());
    assertEquals(made.u64(72), CORRUPT_BIT);
    if (kind !== "qcow2_header") assertEquals(await bytesOf(made, Number(offset)), before);
    const { kind: refused, message, hint } = await failureOf(() => made.open());
    assertEquals(refused, "corrupt");
    assertStringIncludes(message, "Image is corrupt; cannot be opened read/write");
    assertStringIncludes(hint!, "vblk check -r all");
    const readable = await made.open({ readOnly: true });
    assertEquals((await readBytes(readable, K4, 512))[0], 1);
  });
}

async function bytesOf(made: Made, offset: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(512);
  await made.memory.read(offset, (await import("../../../src/memory/segment_list.ts")).SegmentList.over(bytes));
  return bytes;
}

for (const [kind, offsetOf] of PLACES) {
  Deno.test(`an allocation never takes the place of the ${kind}, even if its refcount says that it is free`, async () => {
    const made = await written();
    const cluster = Number(offsetOf(made)) / K4;
    const block = Number(made.u64(Number(made.u64(48))));
    // Counts have 16 bits: four in a number.
    const at = block + Math.floor(cluster / 4) * 8;
    const shift = BigInt(48 - cluster % 4 * 16);
    made.setU64(at, made.u64(at) & ~(0xffffn << shift));
    const image = await made.open();
    const { kind: refused, message } = await failureOf(() => image.write(40 * K4, filled(9, K4)));
    assertEquals(refused, "corrupt");
    assertStringIncludes(message, `overlaps with ${kind}`);
    assertEquals(made.u64(72) & CORRUPT_BIT, CORRUPT_BIT);
    await image.close();
  });
}

Deno.test("without a lie nothing is refused (canary)", async () => {
  const made = await written();
  const image = await made.open();
  await image.write(40 * K4, filled(9, K4));
  await image.close();
  assertEquals(made.u64(72), 0n);
});

Deno.test("a refcount block outside the file, or a count below zero, marks the image and writes nothing", async () => {
  for (const [value, says] of [[1n << 40n, "Refblock offset"], [513n, "Refblock offset"]] as const) {
    const made = await written();
    made.setU64(Number(made.u64(48)), value);
    const image = await made.open();
    assertStringIncludes((await failureOf(() => image.write(40 * K4, filled(9, K4)))).message, says);
    await image.close();
    assertEquals(made.u64(72), CORRUPT_BIT);
  }
  const made = await written();
  const table = l2OffsetOf(made);
  const cluster = Number(made.u64(table) & 0x00ff_ffff_ffff_fe00n) / K4;
  const block = Number(made.u64(Number(made.u64(48))));
  const at = block + Math.floor(cluster / 4) * 8;
  made.setU64(at, made.u64(at) & ~(0xffffn << BigInt(48 - cluster % 4 * 16)));
  const image = await made.open();
  await image.discard(0, K4);
  assertStringIncludes((await failureOf(() => image.flush())).message, "Refcount underflow");
  await image.close();
});
