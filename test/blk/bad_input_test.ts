/**
 * Requests that break the rules of VIRTIO 1.4 §5.2.6: each gets its answer, nothing is touched that it does not name,
 * and the device works on. (`send` compares all of RAM.)
 */

import { assert, assertEquals } from "@std/assert";
import {
  concat,
  disk,
  diskBytes,
  header,
  IOERR,
  LAYOUTS,
  linked,
  OK,
  ram,
  range,
  rig,
  ringSpans,
  SECTOR,
  send,
  stillWorks,
  strayWrites,
  UNSUPP,
  violations,
} from "./rig.ts";

const [IN, OUT, DISCARD, WRITE_ZEROES, SECURE_ERASE] = [0, 1, 11, 13, 14];

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: a header that is too short gets IOERR, whatever its length (VIRTIO 1.4 §5.2.6)`, async () => {
    const made = await rig({ layout });
    for (let length = 0; length < 16; length++) {
      const answer = await send(made, header(IN).subarray(0, length), 513);
      assertEquals(answer, { status: IOERR, bytesWritten: 513, output: new Uint8Array(512) });
    }
    const [violation] = violations(made);
    assertEquals(violation, {
      rule: "short-header",
      section: "5.2.6",
      expected: "a request begins with a device-readable header of 16 bytes",
      found: "the chain has 0 device-readable bytes",
    });
    assertEquals(made.rules(), Array(16).fill("short-header"));
    await stillWorks(made);
    await made.machine.close();
  });
}

Deno.test("a read or write past the end gets IOERR and moves no byte, however large the sector (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await rig();
  const sectors = made.memory.sizeBytes / SECTOR;
  const bad: [bigint, number][] = [
    [BigInt(sectors), 1],
    [BigInt(sectors) - 1n, 2],
    [BigInt(sectors) + 1n, 0],
    // Sector numbers whose product with 512 is beyond 2^53, wraps 2^64 to 0 or to the middle of the disk, or is -512.
    [(1n << 44n) - 1n, 1],
    [1n << 44n, 1],
    [1n << 53n, 1],
    [1n << 55n, 1],
    [(1n << 55n) + 3n, 1],
    [0xffff_ffff_ffff_ffffn, 1],
    [0xffff_ffff_ffff_ffffn, 0],
  ];
  for (const [sector, count] of bad) {
    const read = await send(made, header(IN, sector), count * SECTOR + 1);
    const output = new Uint8Array(count * SECTOR);
    assertEquals([sector, read], [sector, { status: IOERR, bytesWritten: count * SECTOR + 1, output }]);
    const write = await send(made, concat(header(OUT, sector), output), 1);
    assertEquals([sector, write], [sector, { status: IOERR, bytesWritten: 1, output: new Uint8Array() }]);
  }
  assertEquals(made.rules(), bad.flatMap(() => ["beyond-capacity", "beyond-capacity"]));
  const found = violations(made).map((violation) => violation.found);
  assertEquals(found[0], "1 sectors from sector 128, the capacity is 128");
  assertEquals(found.at(-1), "0 sectors from sector 2^44 or more, the capacity is 128");
  assertEquals(disk(made, 0, made.memory.sizeBytes), diskBytes(made.memory.sizeBytes));
  await stillWorks(made);
  await made.machine.close();
});

Deno.test("a read or write whose data is not a multiple of 512 bytes gets IOERR and moves no byte (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await rig();
  for (const length of [1, 15, 511, 513, 1023, 1025]) {
    const read = await send(made, header(IN), length + 1);
    assertEquals(read, { status: IOERR, bytesWritten: length + 1, output: new Uint8Array(length) });
    const write = await send(made, concat(header(OUT), new Uint8Array(length)), 1);
    assertEquals(write, { status: IOERR, bytesWritten: 1, output: new Uint8Array() });
  }
  assertEquals(new Set(made.rules()), new Set(["data-length"]));
  assertEquals(violations(made)[0].found, "1 bytes of data came");
  assertEquals(disk(made, 0, 4096), diskBytes(4096));
  await made.machine.close();
});

Deno.test("BlkDevice answers a write with IOERR when RO is offered, accepted or not, and writes nothing (VIRTIO 1.4 §5.2.6.2)", async () => {
  for (const decline of [[], [5]]) {
    const made = await rig({ device: { readOnly: true, secureErase: true }, driver: { decline } });
    const operations: string[] = [];
    made.storage.hook = ({ kind }) => void operations.push(kind);
    assertEquals(made.machine.device.features >> 5n & 1n, 1n);
    const data = concat(header(OUT), new Uint8Array(SECTOR));
    assertEquals(await send(made, data, 1), { status: IOERR, bytesWritten: 1, output: new Uint8Array() });
    for (const type of [DISCARD, WRITE_ZEROES, SECURE_ERASE]) {
      assertEquals((await send(made, concat(header(type), range(0, 1)), 1)).status, IOERR);
    }
    assertEquals(made.rules(), Array(4).fill("read-only"));
    assertEquals(operations, []);
    assertEquals(disk(made, 0, 65536), diskBytes(65536));
    await stillWorks(made);
    await made.machine.close();
  }
});

Deno.test("a read-only device offers none of the features that write", async () => {
  const made = await rig({ device: { readOnly: true, secureErase: true, discard: true, writeZeroes: true } });
  for (const bit of [13n, 14n, 16n]) assertEquals(made.machine.device.features >> bit & 1n, 0n);
  await made.machine.close();
});

Deno.test("a request whose buffers overlap each other, or the header, does what its bytes say and harms nobody", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout });
    const { guest } = made.machine;
    const area = guest.allocate(4096, 4096);
    const answers: unknown[] = [];
    for (let round = 0; round < 2; round++) {
      guest.memory(area, 4096).fill(0);
      guest.memory(area, 16).set(header(IN, 2));
      // The data lands on the header; the status byte on the middle of the data.
      const chain = linked([
        { address: area, length: 16, writable: false },
        { address: area, length: 512, writable: true },
        { address: area + 100, length: 1, writable: true },
      ]);
      const pending = guest.chain(chain, { statusAddress: area + 100 });
      const before = ram(made.machine);
      answers.push(await pending, guest.memory(area, 512).slice());
      assertEquals(strayWrites(made.machine, before, [[area, 512], ...ringSpans(made.machine)]), []);
    }
    const expected = diskBytes(2048).slice(1024, 1536);
    expected[100] = OK;
    assertEquals(answers, [{ status: OK, bytesWritten: 513 }, expected, { status: OK, bytesWritten: 513 }, expected]);
    await made.machine.close();
  }
});

Deno.test("a write whose elements are all the same memory writes it again and again", async () => {
  const made = await rig();
  const { guest } = made.machine;
  const area = guest.allocate(4096, 4096);
  guest.memory(area, 16).set(header(OUT, 0));
  guest.memory(area + 512, SECTOR).fill(7);
  const piece = { address: area + 512, length: SECTOR, writable: false };
  const chain = linked([
    { address: area, length: 16, writable: false },
    piece,
    piece,
    piece,
    { address: area + 2048, length: 1, writable: true },
  ]);
  assertEquals(await guest.chain(chain, { statusAddress: area + 2048 }), { status: OK, bytesWritten: 1 });
  assertEquals(
    disk(made, 0, 4 * SECTOR),
    concat(new Uint8Array(3 * SECTOR).fill(7), diskBytes(4 * SECTOR).subarray(1536)),
  );
  await made.machine.close();
});

Deno.test("a driver that changes its header and ranges after the kick changes nothing: the device checks its own copy", async () => {
  const made = await rig();
  const { guest } = made.machine;
  const area = guest.allocate(4096, 4096);
  guest.memory(area, 48).set(concat(header(WRITE_ZEROES), range(0, 1), range(2, 1)));
  let hostile = false;
  made.storage.hook = () => {
    // Between two ranges the driver rewrites all of them to lie far outside the disk.
    hostile = true;
    guest.memory(area, 48).set(concat(header(OUT, 0), range(1 << 30, 8), range(1 << 30, 8)));
  };
  const chain = linked([
    { address: area, length: 48, writable: false },
    { address: area + 512, length: 1, writable: true },
  ]);
  assertEquals(await guest.chain(chain, { statusAddress: area + 512 }), { status: OK, bytesWritten: 1 });
  assert(hostile);
  const expected = diskBytes(65536).fill(0, 0, SECTOR).fill(0, 2 * SECTOR, 3 * SECTOR);
  assertEquals(disk(made, 0, 65536), expected);
  assertEquals(made.memory.sizeBytes, 65536);
  await made.machine.close();
});

Deno.test("too many ranges of a discard get UNSUPP, as in QEMU, and none is carried out", async () => {
  const made = await rig();
  const ranges = Array.from({ length: 17 }, (_, i) => range(i, 1));
  assertEquals((await send(made, concat(header(DISCARD), ...ranges), 1)).status, UNSUPP);
  assertEquals(violations(made)[0].found, "17 ranges came, 16 at most");
  assertEquals(disk(made, 0, 65536), diskBytes(65536));
  await made.machine.close();
});

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: a chain of more than 2^32 bytes gets IOERR, with its status byte written and nothing else (VIRTIO 1.4 §2.7.5.2, §2.8.4)`, async () => {
    const made = await rig({ layout, ramBytes: 16 << 20 });
    const { guest } = made.machine;
    const header = guest.allocate(16);
    guest.memory(header, 16).fill(0);
    const area = guest.allocate(8 << 20, 4096);
    // The same 8 MiB 600 times: 4.7 GiB to be cleared, if anybody did.
    const chain = linked([
      { address: header, length: 16, writable: false },
      ...Array.from({ length: 600 }, () => ({ address: area, length: 8 << 20, writable: true })),
      { address: header + 20, length: 1, writable: true },
    ]);
    const pending = guest.chain(chain, { indirect: true, statusAddress: header + 20 });
    const before = ram(made.machine);
    assertEquals(await pending, { status: IOERR, bytesWritten: 0 });
    assertEquals(strayWrites(made.machine, before, [[header + 20, 1], ...ringSpans(made.machine)]), []);
    assertEquals(made.rules(), ["chain-bytes"]);
    await stillWorks(made);
    await made.machine.close();
  });
}
