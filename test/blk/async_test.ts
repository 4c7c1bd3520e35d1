/**
 * Requests that do not end at once: held back, reordered, failed. No test waits for time to pass: `FaultStorage`
 * decides when each operation of the storage goes on.
 */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { GuestIoError } from "../../src/guest/guest_error.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import { Random } from "../random.ts";
import {
  concat,
  delays,
  disk,
  diskBytes,
  Gate,
  header,
  IOERR,
  LAYOUTS,
  OK,
  range,
  type Rig,
  rig,
  SECTOR,
  send,
  turn,
} from "./rig.ts";

function ioError(operation: "read" | "write" | "flush" | "zero" | "discard", kind: "io" | "no-space" = "io") {
  return new BlockError({ kind, path: "disk", operation, offset: 0 });
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: requests complete in the order in which the storage ends them, each with its own data`, async () => {
    const gate = new Gate();
    const made = await rig({ layout, hook: gate.hook });
    const ended: number[] = [];
    const reads = [0, 1, 2, 3, 4].map((sector) =>
      made.machine.guest.read(sector * SECTOR, SECTOR).then((data) => {
        ended.push(sector);
        assertEquals(data, diskBytes(4096).subarray(sector * SECTOR, (sector + 1) * SECTOR));
      })
    );
    await turn();
    assertEquals(gate.held.map(({ offset }) => offset / SECTOR), [0, 1, 2, 3, 4]);
    for (const sector of [3, 0, 4, 1, 2]) {
      gate.held[sector].go();
      await turn();
    }
    await Promise.all(reads);
    assertEquals(ended, [3, 0, 4, 1, 2]);
    made.storage.hook = () => {};
    await made.machine.close();
  });

  Deno.test(`${layout} ring: with IN_ORDER, buffers are used in the order in which they became available, however the storage ends them (VIRTIO 1.4 §6.2)`, async () => {
    const random = new Random(7);
    for (let round = 0; round < 8; round++) {
      const gate = new Gate();
      const made = await rig({ layout, device: { inOrder: true }, hook: gate.hook });
      const ended: number[] = [];
      const reads = Array.from(
        { length: 8 },
        (_, sector) =>
          made.machine.guest.read(sector * SECTOR, SECTOR).then((data) => {
            ended.push(sector);
            assertEquals(data, diskBytes(4096).subarray(sector * SECTOR, (sector + 1) * SECTOR));
          }),
      );
      await turn();
      const held = gate.held.splice(0);
      const gone = new Set<number>();
      while (gone.size < 8) {
        const pick = random.below(8);
        held[pick].go();
        gone.add(pick);
        await turn();
        let prefix = 0;
        while (gone.has(prefix)) prefix++;
        // Exactly the requests with none unfinished before them have been returned.
        assertEquals(ended, Array.from({ length: prefix }, (_, i) => i));
      }
      await Promise.all(reads);
      made.storage.hook = () => {};
      await made.machine.close();
    }
  });

  Deno.test(`${layout} ring: everything is right when every operation takes its own number of turns`, async () => {
    for (const inOrder of [false, true]) {
      const made = await rig({
        layout,
        hook: delays(11, 5),
        sizeBytes: 32 * SECTOR,
        device: { inOrder, queueSize: 16, secureErase: true },
      });
      const { guest } = made.machine;
      const model = diskBytes(32 * SECTOR);
      const random = new Random(99);
      for (let round = 0; round < 12; round++) {
        // Each request of a round has sectors of its own, so that their order does not matter.
        const requests = Array.from({ length: 16 }, (_, i) => {
          const [offset, length] = [i * 2 * SECTOR, SECTOR * (1 + random.below(2))];
          const part = model.subarray(offset, offset + length);
          switch (random.below(6)) {
            case 0:
              part.set(random.bytes(length));
              return guest.write(offset, part.slice());
            case 1:
              part.fill(0);
              return guest.writeZeroes(offset, length, { unmap: random.below(2) === 1 });
            case 2:
              part.fill(0);
              return guest.discard(offset, length);
            case 3:
              return guest.flush();
            case 4:
              part.fill(0);
              return guest.secureErase(offset, length);
            default:
              return guest.read(offset, length).then((data) => assertEquals(data, part));
          }
        });
        await Promise.all(requests);
        assertEquals(disk(made, 0, model.length), model);
      }
      assertEquals(made.rules(), []);
      await made.machine.close();
    }
  });

  Deno.test(`${layout} ring: each operation of the storage may fail, at once or later: IOERR, one hostError, and the device lives`, async () => {
    const requests: [Uint8Array, number][] = [
      [header(0, 1), 1025],
      [concat(header(1, 1), new Uint8Array(1024).fill(1)), 1],
      [header(4), 1],
      [concat(header(11), range(0, 1), range(2, 1), range(4, 1)), 1],
      [concat(header(13), range(0, 1), range(2, 1, 1), range(4, 1)), 1],
      [concat(header(14), range(0, 1), range(2, 1), range(4, 1)), 1],
    ];
    // Writethrough: a flush follows each write, and may fail too.
    for (const writeback of [true, false]) {
      const made = await rig({ layout, device: { secureErase: true, writeback } });
      for (const [request, room] of requests) {
        let operations = 0;
        made.storage.hook = () => void operations++;
        assertEquals((await send(made, request, room)).status, OK);
        assert(operations > 0);
        for (let failing = 0; failing < operations; failing++) {
          for (const later of [false, true]) {
            let index = 0;
            const error = ioError("write", failing % 2 ? "no-space" : "io");
            made.storage.hook = () => {
              if (index++ !== failing) return;
              if (!later) throw error;
              return turn().then(() => Promise.reject(error));
            };
            const answer = await send(made, request, room);
            assertEquals([answer.status, answer.bytesWritten], [IOERR, room]);
            assertEquals(answer.output, new Uint8Array(room - 1), "what a failed request returns is zeros");
            assertEquals(index, failing + 1, "nothing follows the operation that failed");
            assertEquals(made.errors.splice(0), [error]);
            const event = made.events.findLast(({ event }) => event === "host-error");
            assertEquals([event?.event === "host-error" && event.message], [error.message]);
            made.storage.hook = () => {};
            assertEquals((await send(made, request, room)).status, OK);
          }
        }
      }
      await made.machine.close();
    }
  });
}

Deno.test("a disk that is full answers writes with IOERR and reads as before; the host learns which file and where", async () => {
  const made = await rig();
  made.storage.hook = ({ kind, offset }) => {
    if (kind === "write") throw new BlockError({ kind: "no-space", path: "disk.img", operation: "write", offset });
  };
  const error = await assertRejects(() => made.machine.guest.write(512, new Uint8Array(SECTOR)), GuestIoError);
  assertEquals([error.message, error.operation, error.status], ["write failed: S_IOERR", "write", IOERR]);
  assertEquals(made.errors.map(({ message }) => message), [
    "write of 'disk.img' at offset 512: No space left on device",
  ]);
  assertEquals(await made.machine.guest.read(0, 1024), diskBytes(1024));
  await made.machine.close();
});

/** Makes a flush available and notifies the device of it. */
function kickFlush({ machine }: Rig): void {
  const { driver } = machine.guest;
  const slot = driver.take();
  driver.begin(slot, 4, 0);
  driver.end(slot);
  driver.submit(slot, 0, () => {});
  driver.kick(0);
}

Deno.test("an exception that is no BlockError is a bug of ours: it comes out of the register write that made the device run", async () => {
  const made = await rig();
  const bug = new TypeError("a bug");
  made.storage.hook = () => {
    throw bug;
  };
  assertEquals(assertThrows(() => kickFlush(made), TypeError, "a bug"), bug);
  assertEquals(made.errors, []);
});

Deno.test("a rejection that is no BlockError is a bug of ours: nobody handles it, which ends the process", async () => {
  const made = await rig();
  const unhandled = new Promise((resolve) => {
    globalThis.addEventListener("unhandledrejection", (event) => {
      event.preventDefault();
      resolve(event.reason);
    }, { once: true });
  });
  const bug = new TypeError("a late bug");
  made.storage.hook = () => turn().then(() => Promise.reject(bug));
  kickFlush(made);
  assertEquals(await unhandled, bug);
  assertEquals(made.errors, []);
});

Deno.test("requests that end in the same turn share one notification", async () => {
  const gate = new Gate();
  const made = await rig({ hook: gate.hook });
  const { guest, transport } = made.machine;
  const reads = Array.from({ length: 10 }, (_, i) => guest.read(i * SECTOR, SECTOR));
  await turn();
  const { interrupts } = transport.counters;
  made.storage.hook = () => {};
  gate.open();
  await Promise.all(reads);
  assertEquals(transport.counters.interrupts, interrupts + 1);
  assertEquals(made.machine.device.counters.batches, 1);
  await made.machine.close();
});
