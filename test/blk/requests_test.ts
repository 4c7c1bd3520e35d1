/**
 * Every request type of VIRTIO 1.4 §5.2.6, what it returns, how many bytes it says it wrote, and what it leaves on
 * the disk.
 */

import { assertEquals } from "@std/assert";
import { BlockError } from "../../src/storage/block_error.ts";
import { concat, disk, diskBytes, header, IOERR, LAYOUTS, OK, range, rig, SECTOR, send, UNSUPP } from "./rig.ts";

const [IN, OUT, FLUSH, GET_ID, GET_LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE] = [0, 1, 4, 8, 10, 11, 13, 14];
const F = { FLUSH: 9, DISCARD: 13, WRITE_ZEROES: 14, LIFETIME: 15, SECURE_ERASE: 16 };
const ALL = { secureErase: true, lifetime: { preEolInfo: 1, typA: 2, typB: 11 } };

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: IN returns the sectors and covers data and status with its used length (VIRTIO 1.4 §5.2.6)`, async () => {
    const made = await rig({ layout });
    const sectors = made.memory.sizeBytes / SECTOR;
    for (const [sector, count] of [[0, 1], [1, 7], [sectors - 1, 1], [0, sectors], [5, 0], [sectors, 0]]) {
      const answer = await send(made, header(IN, sector), count * SECTOR + 1);
      assertEquals(answer, {
        status: OK,
        bytesWritten: count * SECTOR + 1,
        output: diskBytes(made.memory.sizeBytes).subarray(sector * SECTOR, (sector + count) * SECTOR),
      });
    }
    assertEquals(made.rules(), []);
    await made.machine.close();
  });

  Deno.test(`${layout} ring: OUT writes the sectors, and nothing beside them (VIRTIO 1.4 §5.2.6)`, async () => {
    const made = await rig({ layout });
    const model = diskBytes(made.memory.sizeBytes);
    const sectors = model.length / SECTOR;
    for (const [sector, count] of [[0, 1], [3, 5], [sectors - 1, 1], [0, 0], [sectors, 0], [9, 64]]) {
      const data = new Uint8Array(count * SECTOR).map((_, i) => i + sector + 1);
      model.set(data, sector * SECTOR);
      const answer = await send(made, concat(header(OUT, sector), data), 1);
      assertEquals(answer, { status: OK, bytesWritten: 1, output: new Uint8Array() });
      assertEquals(disk(made, 0, model.length), model);
    }
    await made.machine.close();
  });
}

Deno.test("the reserved field of the header means nothing to the device (VIRTIO 1.4 §5.2.6)", async () => {
  const made = await rig();
  assertEquals((await send(made, header(IN, 1, 0xffffffff), 513)).status, OK);
  assertEquals((await send(made, concat(header(OUT, 1, 7), new Uint8Array(512)), 1)).status, OK);
  await made.machine.close();
});

Deno.test("FLUSH reaches the storage, and completes only after it (VIRTIO 1.4 §5.2.6.2 case 3)", async () => {
  const made = await rig();
  const kinds: string[] = [];
  let release = () => {};
  made.storage.hook = ({ kind }) => {
    kinds.push(kind);
    return new Promise((go) => release = go);
  };
  let ended = false;
  const answer = send(made, header(FLUSH), 1).then((answer) => {
    ended = true;
    return answer;
  });
  await new Promise((go) => setTimeout(go, 0));
  assertEquals([kinds, ended], [["flush"], false]);
  release();
  assertEquals(await answer, { status: OK, bytesWritten: 1, output: new Uint8Array() });
  made.storage.hook = () => {};
  await made.machine.close();
});

Deno.test("FLUSH is carried out whatever the sector and data, and also when it was not negotiated", async () => {
  const made = await rig({ driver: { decline: [F.FLUSH] } });
  const kinds: string[] = [];
  made.storage.hook = ({ kind }) => void kinds.push(kind);
  assertEquals((await send(made, header(FLUSH, 0xffff_ffff_ffff_ffffn), 1)).status, OK);
  assertEquals((await send(made, concat(header(FLUSH), new Uint8Array(100)), 1)).status, OK);
  // Room for data that a flush does not have reads as zeros.
  assertEquals(await send(made, header(FLUSH), 11), { status: OK, bytesWritten: 11, output: new Uint8Array(10) });
  assertEquals(kinds, ["flush", "flush", "flush"]);
  await made.machine.close();
});

Deno.test("GET_ID returns 20 bytes: the serial, padded with NULs (VIRTIO 1.4 §5.2.6)", async () => {
  for (const serial of ["", "x", "vblk", "exactly twenty bytes"]) {
    const made = await rig({ device: { serial } });
    const id = new Uint8Array(20);
    new TextEncoder().encodeInto(serial, id);
    assertEquals(await send(made, header(GET_ID), 21), { status: OK, bytesWritten: 21, output: id });
    assertEquals(await made.machine.guest.identify(), serial);
    await made.machine.close();
  }
});

Deno.test("GET_ID fills a shorter buffer as far as it goes and pads a longer one with zeros", async () => {
  const made = await rig({ device: { serial: "exactly twenty bytes" } });
  const id = new TextEncoder().encode("exactly twenty bytes");
  for (let length = 0; length <= 40; length++) {
    const expected = new Uint8Array(length);
    expected.set(id.subarray(0, length));
    const answer = await send(made, header(GET_ID), length + 1);
    assertEquals(answer, { status: OK, bytesWritten: length + 1, output: expected });
  }
  await made.machine.close();
});

Deno.test("GET_LIFETIME returns three le16 and pads with zeros (VIRTIO 1.4 §5.2.6)", async () => {
  const made = await rig({ device: { lifetime: { preEolInfo: 3, typA: 11, typB: 0 } } });
  const expected = Uint8Array.of(3, 0, 11, 0, 0, 0);
  assertEquals(await send(made, header(GET_LIFETIME), 7), { status: OK, bytesWritten: 7, output: expected });
  const padded = concat(expected, new Uint8Array(14));
  assertEquals(await send(made, header(GET_LIFETIME), 21), { status: OK, bytesWritten: 21, output: padded });
  assertEquals(await made.machine.guest.lifetime(), { preEolInfo: 3, typA: 11, typB: 0 });
  await made.machine.close();
});

Deno.test("GET_LIFETIME with less than 6 bytes of room gets IOERR and zeros", async () => {
  const made = await rig({ device: ALL });
  for (let room = 0; room < 6; room++) {
    const answer = await send(made, header(GET_LIFETIME), room + 1);
    assertEquals(answer, { status: IOERR, bytesWritten: room + 1, output: new Uint8Array(room) });
  }
  assertEquals(new Set(made.rules()), new Set(["lifetime-length"]));
  await made.machine.close();
});

Deno.test("GET_LIFETIME is offered exactly when the device was given the numbers (VIRTIO 1.4 §5.2.6.2)", async () => {
  const without = await rig();
  assertEquals(without.machine.device.features >> 15n & 1n, 0n);
  assertEquals((await send(without, header(GET_LIFETIME), 7)).status, UNSUPP);
  await without.machine.close();
  const given = await rig({ device: ALL });
  assertEquals(given.machine.device.features >> 15n & 1n, 1n);
  await given.machine.close();
});

for (
  const [name, type] of [["DISCARD", DISCARD], ["WRITE_ZEROES", WRITE_ZEROES], ["SECURE_ERASE", SECURE_ERASE]] as const
) {
  Deno.test(`${name} clears each of its ranges, and nothing beside them (VIRTIO 1.4 §5.2.6)`, async () => {
    for (const layout of LAYOUTS) {
      const made = await rig({ layout, device: ALL });
      const model = diskBytes(made.memory.sizeBytes);
      const ranges = [[0, 1], [3, 2], [8, 8], [127, 1], [20, 0], [128, 0]];
      for (const [sector, sectors] of ranges) model.fill(0, sector * SECTOR, (sector + sectors) * SECTOR);
      const data = concat(...ranges.map(([sector, sectors]) => range(sector, sectors)));
      const answer = await send(made, concat(header(type), data), 1, { readable: [16, 16, 40, 40] });
      assertEquals(answer, { status: OK, bytesWritten: 1, output: new Uint8Array() });
      assertEquals(disk(made, 0, model.length), model);
      await made.machine.close();
    }
  });

  Deno.test(`${name} takes as many ranges as the configuration says, of the length that it says, and no more`, async () => {
    const made = await rig({ device: { ...ALL, maxRanges: 3, maxRangeSectors: 10 } });
    const ranges = (count: number, sectors: number) =>
      concat(header(type), ...Array.from({ length: count }, (_, i) => range(i * 20, sectors)));
    assertEquals((await send(made, ranges(3, 10), 1)).status, OK);
    const model = disk(made, 0, made.memory.sizeBytes);
    assertEquals((await send(made, ranges(4, 10), 1)).status, UNSUPP);
    assertEquals((await send(made, ranges(3, 11), 1)).status, IOERR);
    assertEquals(made.rules(), ["too-many-ranges", "range-too-long"]);
    assertEquals(disk(made, 0, model.length), model);
    await made.machine.close();
  });

  Deno.test(`${name} with data that is no whole number of ranges gets IOERR (VIRTIO 1.4 §5.2.6.1)`, async () => {
    const made = await rig({ device: ALL });
    for (const length of [0, 1, 15, 17, 31]) {
      const answer = await send(made, concat(header(type), range(0, 1), range(0, 1)).subarray(0, 16 + length), 1);
      assertEquals([length, answer.status, answer.bytesWritten], [length, IOERR, 1]);
    }
    assertEquals(new Set(made.rules()), new Set(["range-length"]));
    assertEquals(disk(made, 0, 4096), diskBytes(4096));
    await made.machine.close();
  });

  Deno.test(`${name} past the end gets IOERR and touches no range of the request`, async () => {
    const made = await rig({ device: { ...ALL, maxRangeSectors: 0xffffffff } });
    const sectors = made.memory.sizeBytes / SECTOR;
    const bad: [bigint, number][] = [
      [BigInt(sectors), 1],
      [BigInt(sectors) - 1n, 2],
      [BigInt(sectors) + 1n, 0],
      [1n, 0xffffffff],
      [(1n << 55n) - 1n, 1],
      [1n << 55n, 1],
      [0xffff_ffff_ffff_ffffn, 1],
      [0xffff_ffff_ffff_ffffn, 0xffffffff],
    ];
    for (const [sector, count] of bad) {
      const answer = await send(made, concat(header(type), range(0, 4), range(sector, count)), 1);
      assertEquals([sector, count, answer.status], [sector, count, IOERR]);
    }
    assertEquals(made.rules(), bad.map(() => "beyond-capacity"));
    assertEquals(disk(made, 0, made.memory.sizeBytes), diskBytes(made.memory.sizeBytes));
    await made.machine.close();
  });

  Deno.test(`${name} with an unknown flag in any range gets UNSUPP, whatever else is wrong, and does nothing (VIRTIO 1.4 §5.2.6.2)`, async () => {
    const made = await rig({ device: ALL });
    const unmapIsKnown = type === WRITE_ZEROES;
    for (let bit = 0; bit < 32; bit++) {
      const flags = (1 << bit) >>> 0;
      for (const other of [range(0, 2), range(1000, 1), range(0, 0xffffffff)]) {
        const answer = await send(made, concat(header(type), other, range(4, 1, flags)), 1);
        if (bit === 0 && unmapIsKnown) continue;
        assertEquals([bit, answer.status, answer.bytesWritten], [bit, UNSUPP, 1]);
      }
    }
    if (!unmapIsKnown) assertEquals(disk(made, 0, 65536), diskBytes(65536));
    assertEquals(disk(made, 5 * SECTOR, 16 * SECTOR), diskBytes(65536).subarray(5 * SECTOR, 21 * SECTOR));
    await made.machine.close();
  });

  Deno.test(`${name} with overlapping ranges is OK and clears their union`, async () => {
    const made = await rig({ device: ALL });
    const model = diskBytes(made.memory.sizeBytes).fill(0, 2 * SECTOR, 12 * SECTOR);
    const data = concat(range(2, 6), range(5, 7), range(2, 6), range(6, 1));
    assertEquals((await send(made, concat(header(type), data), 1)).status, OK);
    assertEquals(disk(made, 0, model.length), model);
    await made.machine.close();
  });
}

Deno.test("DISCARD gets UNSUPP when the unmap flag is set, WRITE_ZEROES takes it (VIRTIO 1.4 §5.2.6.2)", async () => {
  const made = await rig({ device: ALL });
  const kinds: [string, boolean | undefined][] = [];
  const zero = made.memory.zero.bind(made.memory) as (offset: number, length: number, unmap: boolean) => void;
  made.memory.zero = ((offset: number, length: number, unmap: boolean) => {
    kinds.push(["zero", unmap]);
    zero(offset, length, unmap);
  }) as typeof made.memory.zero;
  made.storage.hook = ({ kind }) => {
    if (kind === "discard") kinds.push([kind, undefined]);
  };
  assertEquals((await send(made, concat(header(DISCARD), range(0, 1, 1)), 1)).status, UNSUPP);
  assertEquals((await send(made, concat(header(SECURE_ERASE), range(0, 1, 1)), 1)).status, UNSUPP);
  assertEquals(kinds, []);
  assertEquals((await send(made, concat(header(WRITE_ZEROES), range(0, 1, 1), range(1, 1, 0)), 1)).status, OK);
  assertEquals(kinds, [["zero", true], ["zero", false]]);
  await made.machine.close();
});

Deno.test("reads after WRITE_ZEROES return zeros, with unmap set or clear (VIRTIO 1.4 §5.2.6.2)", async () => {
  for (const flags of [0, 1]) {
    const made = await rig();
    assertEquals((await send(made, concat(header(WRITE_ZEROES), range(7, 9, flags)), 1)).status, OK);
    const answer = await send(made, header(IN, 6), 11 * SECTOR + 1);
    const expected = diskBytes(65536).fill(0, 7 * SECTOR, 16 * SECTOR).subarray(6 * SECTOR, 17 * SECTOR);
    assertEquals(answer.output, expected);
    await made.machine.close();
  }
});

Deno.test("SECURE_ERASE is on stable storage before it completes, even with a writeback cache", async () => {
  const made = await rig({ device: ALL });
  const kinds: string[] = [];
  made.storage.hook = ({ kind }) => void kinds.push(kind);
  assertEquals(made.machine.device.writethrough, false);
  await send(made, concat(header(SECURE_ERASE), range(0, 1), range(2, 1)), 1);
  assertEquals(kinds, ["zero", "zero", "flush"]);
  await made.machine.close();
});

Deno.test("a request type whose feature was not negotiated gets UNSUPP and does nothing (VIRTIO 1.4 §5.2.3)", async () => {
  const cases: [number, number, Uint8Array, number][] = [
    [DISCARD, F.DISCARD, range(0, 1), 1],
    [WRITE_ZEROES, F.WRITE_ZEROES, range(0, 1), 1],
    [SECURE_ERASE, F.SECURE_ERASE, range(0, 1), 1],
    [GET_LIFETIME, F.LIFETIME, new Uint8Array(), 7],
  ];
  for (const [type, feature, data, room] of cases) {
    const declined = await rig({ device: ALL, driver: { decline: [feature] } });
    const notOffered = await rig({ device: { discard: false, writeZeroes: false } });
    for (const made of [declined, notOffered]) {
      const answer = await send(made, concat(header(type), data), room);
      assertEquals([type, answer], [type, { status: UNSUPP, bytesWritten: room, output: new Uint8Array(room - 1) }]);
      assertEquals(made.rules(), ["not-negotiated"]);
      assertEquals(disk(made, 0, 4096), diskBytes(4096));
      await made.machine.close();
    }
  }
});

Deno.test("an unknown request type gets UNSUPP, and its buffers read as zeros (VIRTIO 1.4 §5.2.6)", async () => {
  const made = await rig({ device: ALL });
  for (const type of [2, 3, 5, 6, 7, 9, 12, 17, 19, 27, 100, 0x80000000, 0x80000001, 0xffffffff]) {
    const answer = await send(made, concat(header(type), new Uint8Array(512)), 101);
    assertEquals([type, answer], [type, { status: UNSUPP, bytesWritten: 101, output: new Uint8Array(100) }]);
  }
  assertEquals(new Set(made.rules()), new Set(["unknown-type"]));
  assertEquals(disk(made, 0, 4096), diskBytes(4096));
  await made.machine.close();
});

Deno.test("the zone request types get UNSUPP, as ZONED is not offered (VIRTIO 1.4 §5.2.6.2)", async () => {
  const made = await rig();
  assertEquals(made.machine.device.features >> 17n & 1n, 0n);
  for (const type of [15, 16, 18, 20, 22, 24, 26]) {
    const answer = await send(made, concat(header(type), new Uint8Array(512)), 1);
    assertEquals([type, answer.status, answer.bytesWritten], [type, UNSUPP, 1]);
  }
  assertEquals(disk(made, 0, 65536), diskBytes(65536));
  await made.machine.close();
});

Deno.test("a read that the host failed leaves zeros, not what the buffer or half a read held, and covers them (VIRTIO 1.4 §2.7.8.2)", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout });
    const cut = { writable: [700, 324, 1] };
    made.storage.hook = () => {
      throw new BlockError({ kind: "io", path: "disk", operation: "read", offset: 0 });
    };
    const answer = await send(made, header(IN), 1025, cut);
    assertEquals(answer, { status: IOERR, bytesWritten: 1025, output: new Uint8Array(1024) });
    // A storage that fails after it moved some bytes.
    made.storage.hook = () => {};
    const read = made.memory.read.bind(made.memory);
    made.memory.read = (offset, into) => {
      read(offset, into);
      throw new BlockError({ kind: "truncated", path: "disk", operation: "read", offset });
    };
    assertEquals(await send(made, header(IN), 1025, cut), answer);
    assertEquals(made.errors.map(({ kind }) => kind), ["io", "truncated"]);
    made.memory.read = read;
    assertEquals((await send(made, header(IN), 1025, cut)).output, diskBytes(1024));
    await made.machine.close();
  }
});
