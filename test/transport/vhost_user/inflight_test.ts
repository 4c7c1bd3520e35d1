/**
 * A back-end that is gone in the middle of its work, and the one that comes after it ("Inflight I/O tracking"): every
 * request is answered once, and what was in flight is carried out in the order in which it was taken.
 */

import { assert, assertEquals } from "@std/assert";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import {
  inflightAreaBytes,
  PACKED_REGION,
  PACKED_STATE,
  QueueRegion,
  REGION_DESC_NUM,
  REGION_VERSION,
  roomyQueueSize,
  SPLIT_REGION,
  SPLIT_STATE,
} from "../../../src/transport/vhost_user/inflight_layout.ts";
import { Gate } from "../../blk/rig.ts";
import { forSeeds, forSeedsAsync, Random } from "../../random.ts";
import { FakeFile } from "./fake_host.ts";
import { type FrontEnd, inflight, type Layout, LAYOUTS, regionTable, TestGuest, vringState } from "./front_end.ts";
import { ALL, DISK_BYTES, diskBytes, Rig, turn } from "./rig.ts";

const SIZE = 8;

/** Gets an area for rings of `size` as a front-end does. */
function getArea(front: FrontEnd, size: number): { area: FakeFile; payload: Uint8Array } {
  const { payload, fds } = front.ask("GET_INFLIGHT_FD", inflight(0, 0, 1, size));
  const area = front.host.open.get(fds[0]) as FakeFile;
  front.host.closeFd(fds[0]);
  assertEquals(area.bytes.byteLength, inflightAreaBytes(1, roomyQueueSize(size)));
  return { area, payload };
}

/** Hands over an area that has room for rings of `SIZE` and no more, as other back-ends make it. */
function shareArea(front: FrontEnd): FakeFile {
  const area = new FakeFile(inflightAreaBytes(1, SIZE));
  front.good("SET_INFLIGHT_FD", inflight(area.bytes.byteLength, 0, 1, SIZE), { fds: [front.host.give(area)] });
  return area;
}

/** A rig that runs `guest` with an area for what is in flight. */
function begin(guest: TestGuest): { rig: Rig; front: FrontEnd; area: FakeFile } {
  const rig = new Rig();
  const front = rig.connect();
  guest.negotiate(front, ALL);
  guest.shareMemory(front);
  const area = shareArea(front);
  guest.startRing(front, 0);
  return { rig, front, area };
}

/** What QEMU says about a ring whose back-end went without a word: the used index, or nothing new. */
function baseAfterCrash(guest: TestGuest, ram: Uint8Array): number {
  if (guest.layout === "packed") return 0x8000_8000;
  const at = guest.queues[0].addresses.device - 0x4000_0000;
  return ram[at + 2] | ram[at + 3] << 8;
}

/** A new back-end on the same memory. */
function restart(guest: TestGuest, rig: Rig, ram: FakeFile, area: FakeFile): FrontEnd {
  const front = rig.connect();
  guest.negotiate(front, ALL);
  front.good("SET_MEM_TABLE", regionTable(guest.region), { fds: [rig.host.give(ram)] });
  const size = area.bytes.byteLength;
  front.good("SET_INFLIGHT_FD", inflight(size, 0, 1, SIZE), { fds: [rig.host.give(area)] });
  guest.startRing(front, 0, baseAfterCrash(guest, ram.bytes));
  return front;
}

/** Heads or IDs in the used entries from a position on. */
function usedIds(guest: TestGuest, ram: Uint8Array, from: number): number[] {
  const view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength);
  const { desc, device } = guest.queues[0].addresses;
  const ids: number[] = [];
  if (guest.layout === "split") {
    const end = view.getUint16(device - 0x4000_0000 + 2, true);
    for (let idx = from; idx !== end; idx = (idx + 1) & 0xffff) {
      ids.push(view.getUint32(device - 0x4000_0000 + 4 + (idx % SIZE) * 8, true));
    }
    return ids;
  }
  // Every buffer has one descriptor here: `from` counts them.
  for (let n = from; ids.length <= SIZE; n++) {
    const at = desc - 0x4000_0000 + (n % SIZE) * 16;
    const wrap = Math.floor(n / SIZE) % 2 === 0;
    const flags = view.getUint16(at + 14, true);
    if ((flags >> 7 & 1) !== Number(wrap) || (flags >> 15 & 1) !== Number(wrap)) return ids;
    ids.push(view.getUint16(at + 12, true));
  }
  throw new Error("the used descriptors have no end");
}

/** Runs `body` and calls `look` before each write into an area. */
function withEveryWrite(look: () => void, body: () => void): void {
  const { setWord, setByte, setCounter } = QueueRegion.prototype;
  const watch = <T extends (...args: [number, number]) => void>(write: T) =>
    function (this: QueueRegion, at: number, value: number): void {
      look();
      write.call(this, at, value);
    };
  Object.assign(QueueRegion.prototype, {
    setWord: watch(setWord),
    setByte: watch(setByte),
    setCounter: watch(setCounter),
  });
  try {
    body();
  } finally {
    Object.assign(QueueRegion.prototype, { setWord, setByte, setCounter });
  }
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: after a crash before any write into the area, each request is answered once, and in order`, () => {
    for (const warm of [0, 3, 5, 7, 8]) {
      for (const held of [0, 2]) crashEverywhere(layout, warm, held);
    }
  });

  Deno.test(`${layout} ring: longer than those that the area was asked for, as in QEMU 10, it is recorded all the same`, async () => {
    const guest = new TestGuest({ layout, size: 2 * SIZE });
    const rig = new Rig();
    const front = rig.connect();
    guest.negotiate(front, ALL);
    guest.shareMemory(front);
    const { area, payload } = getArea(front, SIZE);
    front.good("SET_INFLIGHT_FD", payload, { fds: [front.host.give(area)] });
    guest.startRing(front, 0);
    const gate = new Gate();
    // Every other request stays behind: the record has holes.
    let count = 0;
    rig.storage.hook = (operation) => count++ % 2 === 0 ? gate.hook(operation) : undefined;
    for (let sector = 0; sector < 5; sector++) guest.add("read", sector, 512);
    guest.kicks[0].kick();
    await turn();
    assertEquals(guest.collect().length, 2);
    const crashed = [guest.ram, area].map((file) => {
      const copy = new FakeFile(file.bytes.byteLength);
      copy.bytes.set(file.bytes);
      return copy;
    });
    gate.open();
    await turn();
    const next = new Rig();
    const operations: number[] = [];
    next.storage.hook = ({ offset }) => void operations.push(offset / 512);
    const again = next.connect();
    guest.negotiate(again, ALL);
    again.good("SET_MEM_TABLE", regionTable(guest.region), { fds: [next.host.give(crashed[0])] });
    again.good("SET_INFLIGHT_FD", payload, { fds: [next.host.give(crashed[1])] });
    guest.startRing(again, 0, baseAfterCrash(guest, crashed[0].bytes));
    await turn();
    assertEquals(operations, [0, 2, 4]);
    assertEquals(next.rules(), []);
  });

  Deno.test(`${layout} ring: the guest notices nothing of back-ends that come and go at any moment`, async () => {
    await forSeedsAsync(10, 1, async (random) => {
      const guest = new TestGuest({ layout, size: SIZE, indirect: random.oneIn(2) });
      const model = diskBytes();
      const pending = new Map<number, Uint8Array>();
      let { rig, area, front } = begin(guest);
      const { memory } = rig;
      let gate = new Gate();
      rig.storage.hook = gate.hook;
      const busy = new Map<number, number>();
      for (let step = 0; step < 120; step++) {
        switch (random.below(6)) {
          case 0:
          case 1: {
            // A sector at a time per request, so that the order of those in flight does not matter.
            const sector = random.below(256);
            if (pending.size >= 2 || [...busy.values()].includes(sector)) break;
            const write = random.oneIn(2);
            const part = model.subarray(sector * 512, sector * 512 + 512);
            if (write) part.set(random.bytes(512));
            const token = guest.add(write ? "write" : "read", sector, write ? part.slice() : 512);
            pending.set(token, write ? new Uint8Array(0) : part.slice());
            busy.set(token, sector);
            guest.kicks[0].kick();
            break;
          }
          case 2:
          case 3:
            if (gate.held.length > 0) gate.held.splice(random.below(gate.held.length), 1)[0].go();
            await turn();
            break;
          case 4: {
            if (!random.oneIn(3)) break;
            // Gone: its storage never goes on, and nobody closes anything.
            rig = new Rig({}, memory);
            gate = new Gate();
            rig.storage.hook = gate.hook;
            front = restart(guest, rig, guest.ram, area);
            break;
          }
          default: {
            if (!random.oneIn(4)) break;
            // A connection that only breaks: the same back-end serves the next one, when all is at rest.
            const { connection } = front;
            connection.disconnected();
            while (rig.backEnd.connection !== null) {
              gate.open();
              await turn();
            }
            assert(rig.host.clean, rig.host.problems.join());
            front = restart(guest, rig, guest.ram, area);
          }
        }
        for (const { token, status, data } of guest.collect()) {
          assertEquals(status, 0);
          assertEquals(data, pending.get(token));
          pending.delete(token);
          busy.delete(token);
        }
      }
      rig.storage.hook = () => {};
      for (let turns = 0; turns < 20; turns++) {
        gate.open();
        await turn();
      }
      for (const { token } of guest.collect()) pending.delete(token);
      assertEquals(pending.size, 0);
      assertEquals(rig.disk(), model);
      assertEquals(rig.rules(), []);
    });
  });

  Deno.test(`${layout} ring: a ring that was stopped goes on where the front-end says, whatever the area holds from before`, async () => {
    const guest = new TestGuest({ layout, size: SIZE, indirect: true });
    const { front } = begin(guest);
    for (let i = 0; i < 5; i++) guest.add("read", i, 512);
    guest.kicks[0].kick();
    assertEquals(guest.collect().length, 5);
    front.send("GET_VRING_BASE", vringState(0, 0));
    await front.later();
    // A driver that starts anew, with the same area.
    const fresh = new TestGuest({ layout, size: SIZE, indirect: true });
    fresh.shareMemory(front);
    fresh.startRing(front, 0);
    fresh.add("read", 7, 512);
    fresh.kicks[0].kick();
    assertEquals(fresh.collect().map(({ data }) => data), [diskBytes().subarray(7 * 512, 8 * 512)]);
  });

  Deno.test(`${layout} ring: what was in flight when the device was reset is not carried out again`, async () => {
    const guest = new TestGuest({ layout, size: SIZE, indirect: true });
    const { rig, front } = begin(guest);
    const gate = new Gate();
    rig.storage.hook = gate.hook;
    guest.add("write", 0, new Uint8Array(512));
    guest.kicks[0].kick();
    await turn();
    front.send("RESET_DEVICE", undefined, { needReply: true });
    assertEquals(front.replies.length, 0);
    gate.open();
    await front.later();
    rig.storage.hook = () => {};
    const fresh = new TestGuest({ layout, size: SIZE, indirect: true });
    fresh.negotiate(front, ALL);
    front.good("SET_MEM_TABLE", regionTable(fresh.region), { fds: [rig.host.give(fresh.ram)] });
    const operations: string[] = [];
    rig.storage.hook = ({ kind }) => void operations.push(kind);
    fresh.startRing(front, 0);
    fresh.add("read", 7, 512);
    fresh.kicks[0].kick();
    assertEquals(fresh.collect().length, 1);
    assertEquals(operations, ["read"]);
  });

  Deno.test(`${layout} ring: an area full of anything breaks nothing; the ring starts or is refused`, () => {
    forSeeds(100, 1, (random) => {
      const guest = new TestGuest({ layout, size: SIZE });
      const { area } = begin(guest);
      guest.add("read", 0, 512);
      spoil(area, random, layout);
      const rig = new Rig();
      const front = rig.connect();
      guest.negotiate(front, ALL);
      guest.shareMemory(front);
      const size = area.bytes.byteLength;
      front.good("SET_INFLIGHT_FD", inflight(size, 0, 1, SIZE), { fds: [rig.host.give(area)] });
      try {
        guest.startRing(front, 0);
        // While the ring runs, the area changes under it.
        spoil(area, random, layout);
        guest.kicks[0].kick();
      } catch (error) {
        assert(error instanceof Error && /refused/.test(error.message), String(error));
        assertEquals(rig.rules(), ["inflight-content"]);
      }
      assertEquals(rig.host.problems, []);
    });
  });
}

Deno.test("packed ring: used descriptors that a back-end wrote and never showed do not pass for used when the one before them is", async () => {
  const guest = new TestGuest({ layout: "packed", size: SIZE, indirect: true });
  const { area } = begin(guest);
  for (let i = 0; i < 3; i++) guest.add("read", i, 512);
  const images: { ram: FakeFile; area: FakeFile }[] = [];
  withEveryWrite(() => images.push({ ram: new FakeFile(guest.ram.bytes), area: new FakeFile(area.bytes) }), () => {
    guest.kicks[0].kick();
  });
  // The last moment at which the driver had not seen the batch.
  const image = images.findLast(({ ram }) => usedIds(guest, ram.bytes, 0).length === 0)!;
  const next = new Rig();
  const gate = new Gate();
  next.storage.hook = gate.hook;
  restart(guest, next, image.ram, image.area);
  gate.held.shift()!.go();
  await turn();
  assertEquals(usedIds(guest, image.ram.bytes, 0).length, 1);
  gate.open();
  await turn();
  assertEquals(usedIds(guest, image.ram.bytes, 0).length, 3);
});

/** Crashes one batch of writes before each write into the area, `warm` requests into the life of the ring. */
function crashEverywhere(layout: Layout, warm: number, held: number): void {
  const guest = new TestGuest({ layout, size: SIZE, indirect: true });
  const { rig, area } = begin(guest);
  for (let i = 0; i < warm; i++) {
    guest.add("read", i, 512);
    guest.kicks[0].kick();
    guest.collect();
  }
  const gate = new Gate();
  const random = new Random(warm);
  let writes = 0;
  rig.storage.hook = (operation) => writes++ < held ? gate.hook(operation) : undefined;
  const count = 5;
  // All to one place: only the order tells what it holds in the end.
  const data = Array.from({ length: count }, () => random.bytes(512));
  for (const bytes of data) guest.add("write", 1, bytes);
  const images: { ram: FakeFile; area: FakeFile }[] = [];
  const look = () => images.push({ ram: new FakeFile(guest.ram.bytes), area: new FakeFile(area.bytes) });
  withEveryWrite(look, () => guest.kicks[0].kick());
  look();
  assert(images.length > 20);
  for (const image of images) {
    const done = usedIds(guest, image.ram.bytes, warm);
    const next = new Rig();
    const order: number[] = [];
    next.storage.hook = ({ kind, offset }) => void (kind === "write" && order.push(offset));
    restart(guest, next, image.ram, image.area);
    const ids = usedIds(guest, image.ram.bytes, warm);
    assertEquals(ids.slice(0, done.length), done);
    assertEquals([ids.length, new Set(ids).size], [count, count]);
    assertEquals(order.length, count - done.length);
    assertEquals(next.rules(), []);
    // Those that are held are never done, the others are done in order; so this is the last one that was not.
    const last = held + done.length < count ? data[count - 1] : data[held - 1];
    if (order.length > 0) assertEquals(next.disk(512, 512), last);
  }
}

/** Writes anything into an area; half of the time only into the places that matter. */
function spoil(area: FakeFile, random: Random, layout: Layout): void {
  const { bytes } = area;
  const view = new DataView(bytes.buffer);
  if (random.oneIn(4)) random.fill(bytes);
  for (let i = random.below(12); i > 0; i--) {
    const entry = random.below(SIZE);
    if (layout === "split") {
      const at = SPLIT_REGION.desc + entry * SPLIT_STATE.bytes;
      bytes[at + SPLIT_STATE.inflight] = random.below(3);
      view.setUint16(at + SPLIT_STATE.next, random.below(SIZE + 2), true);
      view.setUint16(SPLIT_REGION.lastBatchHead, random.below(SIZE + 2), true);
      view.setUint16(SPLIT_REGION.usedIdx, random.below(SIZE), true);
    } else {
      const at = PACKED_REGION.desc + entry * PACKED_STATE.bytes;
      bytes[at] = random.below(3);
      for (const field of ["next", "last", "num", "flags"] as const) {
        view.setUint16(at + PACKED_STATE[field], random.below(SIZE + 2), true);
      }
      for (const field of ["freeHead", "oldFreeHead", "usedIdx", "oldUsedIdx"] as const) {
        if (random.oneIn(3)) view.setUint16(PACKED_REGION[field], random.below(SIZE + 2), true);
      }
    }
  }
  if (!random.oneIn(8)) view.setUint16(REGION_VERSION, 1, true);
  if (!random.oneIn(8)) view.setUint16(REGION_DESC_NUM, SIZE, true);
}

Deno.test("QueueRegionSplit and QueueRegionPacked have the offsets of the text's structs", () => {
  assertEquals([SPLIT_REGION.desc, SPLIT_STATE.bytes, SPLIT_STATE.next, SPLIT_STATE.counter], [16, 16, 6, 8]);
  assertEquals([PACKED_REGION.desc, PACKED_STATE.bytes, PACKED_STATE.addr, PACKED_REGION.oldUsedWrap], [
    32,
    32,
    24,
    21,
  ]);
  const guest = new TestGuest({ size: SIZE });
  const { rig, area } = begin(guest);
  const gate = new Gate();
  rig.storage.hook = gate.hook;
  guest.add("read", 0, 512);
  guest.add("read", 1, 512);
  guest.kicks[0].kick();
  const view = new DataView(area.bytes.buffer);
  assertEquals([view.getUint16(8, true), view.getUint16(10, true)], [1, SIZE]);
  const marked = Array.from({ length: SIZE }, (_, i) => i).filter((i) => view.getUint8(16 + i * 16) === 1);
  assertEquals(marked.map((i) => view.getBigUint64(16 + i * 16 + 8, true)).toSorted(), [0n, 1n]);
});

Deno.test("a disk of the tests holds what the model says", () => {
  const bytes = new Uint8Array(DISK_BYTES);
  new Rig().memory.read(0, SegmentList.over(bytes));
  assertEquals(bytes, diskBytes());
});
