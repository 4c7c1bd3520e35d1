/**
 * A request is two byte strings, however its chain is cut: header, data and status may be cut anywhere, share
 * descriptors, lie in an indirect table or not.
 */

import { assert, assertEquals } from "@std/assert";
import { concat, disk, diskBytes, header, LAYOUTS, OK, rig, SECTOR, send } from "./rig.ts";

/** All ways to cut `total` bytes at exactly `pieces - 1` of the given places. */
function* cuts(total: number, pieces: number, places: readonly number[]): Generator<number[]> {
  if (pieces === 1) return yield [total];
  for (const first of places) {
    if (first <= 0 || first >= total) continue;
    const rest = places.filter((place) => place > first).map((place) => place - first);
    for (const lengths of cuts(total - first, pieces - 1, rest)) yield [first, ...lengths];
  }
}

function upTo(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i + 1);
}

/** Places that matter when two cuts are made: around each border, and one in the middle of each part. */
const OUT_PLACES = [...upTo(18), 272, 511, 512, 513, 526, 527];
const IN_PLACES = [1, 2, 3, 16, 255, 256, 257, 510, 511, 512];

/** Every layout of an IN or OUT request of 16 + 512 + 1 bytes in up to four descriptors. */
function layouts(kind: "read" | "write"): { readable: number[]; writable: number[] }[] {
  const found: { readable: number[]; writable: number[] }[] = [];
  const readableBytes = kind === "read" ? 16 : 16 + SECTOR;
  const writableBytes = kind === "read" ? SECTOR + 1 : 1;
  for (let a = 1; a <= 3; a++) {
    for (let b = 1; a + b <= 4; b++) {
      // A single cut is tried at every byte; where there are more cuts, the long string at the places that matter.
      const readPlaces = kind === "read" || a + b === 3 ? upTo(readableBytes) : OUT_PLACES;
      const writePlaces = a + b === 3 ? upTo(writableBytes) : IN_PLACES;
      for (const readable of cuts(readableBytes, a, readPlaces)) {
        for (const writable of cuts(writableBytes, b, writePlaces)) found.push({ readable, writable });
      }
    }
  }
  // And the header in pieces of one byte each.
  const bytes = upTo(16).map(() => 1);
  if (kind === "read") found.push({ readable: bytes, writable: [SECTOR, 1] }, { readable: bytes, writable: [513] });
  else found.push({ readable: [...bytes, SECTOR], writable: [1] });
  return found;
}

Deno.test("the layouts of a request are enumerated: each adds up, and none comes twice", () => {
  for (const kind of ["read", "write"] as const) {
    const all = layouts(kind);
    const sum = (lengths: number[]) => lengths.reduce((a, b) => a + b, 0);
    for (const { readable, writable } of all) assertEquals(sum(readable) + sum(writable), 529);
    assertEquals(new Set(all.map((layout) => JSON.stringify(layout))).size, all.length);
    const has = (readable: number[], writable: number[]) =>
      all.some((layout) => JSON.stringify(layout) === JSON.stringify({ readable, writable }));
    if (kind === "read") {
      assert(has([16], [513]), "data and status share a descriptor");
      assert(has([16], [512, 1]) && has([1, 15], [512, 1]) && has([3, 8, 5], [513]) && has([16], [257, 255, 1]));
      assertEquals(all.length, 1 + 15 + 512 + 105 + 15 * 10 + 45 + 2);
    } else {
      assert(has([528], [1]), "header and data share a descriptor");
      assert(has([16, 512], [1]) && has([15, 513], [1]) && has([17, 511], [1]) && has([1, 1, 526], [1]));
      assertEquals(all.length, 1 + 527 + 24 * 23 / 2 + 1);
    }
  }
});

for (const layout of LAYOUTS) {
  for (const indirect of [false, true]) {
    const where = `${layout} ring, ${indirect ? "indirect" : "direct"} descriptors`;

    Deno.test(`${where}: a read is the same in every layout of up to four descriptors (VIRTIO 1.4 §2.7.4.1)`, async () => {
      const made = await rig({ layout, ramBytes: 32 << 10, sizeBytes: 8192, device: { queueSize: 32 } });
      const expected = diskBytes(8192).subarray(3 * SECTOR, 4 * SECTOR);
      for (const cut of layouts("read")) {
        const { status, bytesWritten, output } = await send(made, header(0, 3), 513, { indirect, ...cut });
        if (status !== OK || bytesWritten !== 513 || !same(output, expected)) {
          assertEquals({ cut, status, bytesWritten, output }, { cut, status: OK, bytesWritten: 513, output: expected });
        }
      }
      assertEquals(made.rules(), []);
      await made.machine.close();
    });

    Deno.test(`${where}: a write is the same in every layout of up to four descriptors (VIRTIO 1.4 §2.7.4.1)`, async () => {
      const made = await rig({ layout, ramBytes: 32 << 10, sizeBytes: 8192, device: { queueSize: 32 } });
      const model = diskBytes(8192);
      for (const [i, cut] of layouts("write").entries()) {
        const data = new Uint8Array(SECTOR).map((_, k) => i * 31 + k * 7);
        const sector = i % 16;
        model.set(data, sector * SECTOR);
        const { status, bytesWritten } = await send(made, concat(header(1, sector), data), 1, { indirect, ...cut });
        if (status !== OK || bytesWritten !== 1) {
          assertEquals({ cut, status, bytesWritten }, { cut, status: OK, bytesWritten: 1 });
        }
        if (!same(disk(made, 0, 8192), model)) assertEquals({ cut, disk: disk(made, 0, 8192) }, { cut, disk: model });
      }
      assertEquals(made.rules(), []);
      await made.machine.close();
    });
  }
}

Deno.test("the status byte is the last device-writable byte of the chain, wherever it lies (VIRTIO 1.4 §5.2.6)", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout });
    const data = diskBytes(1024);
    for (
      const writable of [[1025], [1024, 1], [1, 1024], [1000, 25], [1, 1, 1022, 1], [512, 513], [512, 512, 1]]
    ) {
      const { status, bytesWritten, output } = await send(made, header(0), 1025, { writable });
      assertEquals({ writable, status, bytesWritten }, { writable, status: OK, bytesWritten: 1025 });
      assertEquals(output, data);
    }
    await made.machine.close();
  }
});

Deno.test("an element of length zero is no element: it may stand anywhere among its kind (VIRTIO 1.4 §2.7.4.2)", async () => {
  for (const layout of LAYOUTS) {
    const made = await rig({ layout });
    const { guest } = made.machine;
    const area = guest.allocate(4096, 4096);
    guest.memory(area, 16).set(header(0, 2));
    const element = (length: number, at: number, writable: boolean) => ({ address: area + at, length, writable });
    const whole = [element(16, 0, false), element(512, 64, true), element(1, 640, true)];
    for (const empty of [element(0, 2000, false), element(0, 2000, true)]) {
      // A device-writable one in front of the header would break the order of §2.7.4.2.
      for (let place = empty.writable ? 1 : 0; place <= 3; place++) {
        const elements = whole.toSpliced(place, 0, empty);
        const chain = elements.map(({ address, length, writable }, i) => ({
          address: BigInt(address),
          length,
          flags: (i < 3 ? 1 : 0) | (writable ? 2 : 0),
        }));
        guest.memory(area + 64, 512).fill(0);
        const answer = await guest.chain(chain, { statusAddress: area + 640 });
        assertEquals({ place, ...answer }, { place, status: OK, bytesWritten: 513 });
        assertEquals(guest.memory(area + 64, 512), diskBytes(4096).subarray(1024, 1536));
      }
    }
    await made.machine.close();
  }
});

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
