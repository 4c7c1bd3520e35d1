/** Requests through rings in memory that a front-end shares: the whole way from a message to the disk and back. */

import { assert, assertEquals } from "@std/assert";
import { Random } from "../../random.ts";
import { Gate } from "../../blk/rig.ts";
import { LAYOUTS, oneRegion, regionTable, TestGuest, u64, vringAddress, vringState } from "./front_end.ts";
import { FakeEvent, FakeFile, FakeSocket } from "./fake_host.ts";
import { ALL, DISK_BYTES, diskBytes, Rig, turn } from "./rig.ts";

for (const layout of LAYOUTS) {
  for (const [eventIdx, indirect] of [[false, false], [true, true]]) {
    const name = `${layout} ring${eventIdx ? ", EVENT_IDX, INDIRECT_DESC" : ""}`;
    Deno.test(`${name}: writes and reads reach the disk, over many laps, and are called for`, async () => {
      const rig = new Rig({ queues: 2 });
      const front = rig.connect();
      const guest = new TestGuest({ layout, queues: 2, eventIdx, indirect });
      guest.start(front, ALL);
      const model = diskBytes();
      const random = new Random(5);
      for (let round = 0; round < 60; round++) {
        const queue = random.below(2);
        const expected = new Map<number, Uint8Array>();
        for (let i = random.between(1, 4); i > 0; i--) {
          const [sector, length] = [random.below(250), random.between(1, 6) * 512];
          const part = model.subarray(sector * 512, sector * 512 + length);
          if (random.oneIn(2)) {
            part.set(random.bytes(length));
            expected.set(guest.add("write", sector, part.slice(), queue), new Uint8Array(0));
          } else {
            expected.set(guest.add("read", sector, length, queue), part.slice());
          }
        }
        guest.calls[queue].take();
        guest.kicks[queue].kick();
        const answers = guest.collect(queue);
        assertEquals(answers.map(({ token }) => token), [...expected.keys()]);
        for (const { token, status, data } of answers) {
          assertEquals(status, 0);
          assertEquals(data, expected.get(token));
        }
        assertEquals(guest.errs[queue].count, 0);
        if (!eventIdx) assertEquals(guest.calls[queue].count, 1);
      }
      assertEquals(rig.disk(), model);
      assertEquals(rig.rules(), []);
      front.connection.disconnected();
      assertEquals(await front.connection.closed, { kind: "disconnected" });
      assert(rig.host.clean, rig.host.problems.join());
    });
  }

  Deno.test(`${layout} ring: a ring without a kick descriptor is polled, one without a call descriptor not called (invalid FD flag)`, () => {
    const rig = new Rig();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.negotiate(front, ALL);
    guest.shareMemory(front);
    front.good("SET_VRING_NUM", vringState(0, guest.size));
    front.good("SET_VRING_BASE", vringState(0, layout === "packed" ? 0x8000_8000 : 0));
    front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0)));
    for (const message of ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] as const) {
      front.good(message, u64(0x100));
    }
    front.good("SET_VRING_ENABLE", vringState(0, 1));
    guest.add("read", 3, 512);
    assertEquals(guest.collect(), []);
    for (const poll of rig.host.pollers) poll();
    assertEquals(guest.collect().map(({ data }) => data), [diskBytes().subarray(3 * 512, 4 * 512)]);
    front.send("GET_VRING_BASE", vringState(0, 0));
    assertEquals(rig.host.pollers.size, 0);
  });

  Deno.test(`${layout} ring: GET_VRING_BASE waits for what is in flight, and nothing is touched after its reply; SET_VRING_BASE goes on there`, async () => {
    const rig = new Rig();
    const gate = new Gate();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    rig.storage.hook = gate.hook;
    for (let i = 0; i < 3; i++) guest.add("read", i, 512);
    guest.kicks[0].kick();
    await turn();
    assertEquals(gate.held.length, 3);
    front.send("GET_VRING_BASE", vringState(0, 0));
    front.send("GET_QUEUE_NUM");
    // What is made available now is for whoever comes next.
    guest.add("read", 9, 512);
    guest.kicks[0].kick();
    await turn();
    assertEquals(front.replies.length, 0);
    assertEquals(front.connection.wantedBytes, 0);
    gate.held[1].go();
    await turn();
    assertEquals(front.replies.length, 0);
    gate.open();
    const { view, request } = await front.later();
    assertEquals(request, 11);
    const base = view.getUint32(4, true);
    assertEquals(base, layout === "split" ? 3 : 0x8009_8009);
    // The message behind it was carried out after it.
    assertEquals((await front.later()).request, 17);
    assertEquals(guest.collect().map(({ token }) => token).sort(), [0, 1, 2]);
    const [ram, calls] = [guest.ram.bytes.slice(), guest.calls[0].take()];
    assert(calls > 0);
    guest.kicks[0].kick();
    await turn();
    gate.open();
    await turn();
    assertEquals(guest.ram.bytes, ram);
    assertEquals(guest.calls[0].count, 0);
    rig.storage.hook = () => {};
    guest.startRing(front, 0, base);
    // The kick for the buffer was taken while the ring was stopped, so the back-end looks by itself.
    assertEquals(guest.collect().map(({ token, status }) => [token, status]), [[3, 0]]);
    assertEquals(rig.rules(), []);
  });

  Deno.test(`${layout} ring: while disabled nothing is taken; what is in flight is returned; enabling goes on`, async () => {
    const rig = new Rig();
    const gate = new Gate();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    rig.storage.hook = gate.hook;
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    await turn();
    front.good("SET_VRING_ENABLE", vringState(0, 0));
    guest.add("read", 1, 512);
    guest.kicks[0].kick();
    assertEquals(gate.open(), 1);
    await turn();
    assertEquals(guest.collect().map(({ token }) => token), [0]);
    rig.storage.hook = () => {};
    front.good("SET_VRING_ENABLE", vringState(0, 1));
    assertEquals(guest.collect().map(({ token }) => token), [1]);
    front.connection.disconnected();
    await front.connection.closed;
    assert(rig.host.clean);
    // A pause must not outlive the session.
    const again = rig.connect();
    const second = new TestGuest({ layout });
    second.start(again, ALL);
    second.add("read", 1, 512);
    second.kicks[0].kick();
    assertEquals(second.collect().length, 1);
  });

  Deno.test(`${layout} ring: memory that is added while a ring runs is used by the next request; what is removed is gone`, async () => {
    const rig = new Rig();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    const more = new FakeFile(8192 + 3);
    const place = { guest: 0x9000_0000, size: 4099, user: 0x1000, offset: 4096 };
    const raw = () => {
      const readable = guest.queues[0];
      const at = guest.queues[0].size;
      const descriptors = [
        { address: BigInt(header), length: 16, flags: 0 },
        { address: 0x9000_0000n, length: 512, flags: 2 },
        { address: 0x9000_0000n + 4098n, length: 1, flags: 2 },
      ].map((desc, i) => ({ ...desc, flags: desc.flags | (i < 2 ? 1 : 0) }));
      readable.addRaw(descriptors, false, 1000 + at);
      readable.publish();
      guest.kicks[0].kick();
    };
    const header = headerAt(guest);
    front.good("ADD_MEM_REG", oneRegion(place), { fds: [rig.host.give(more)] });
    more.bytes.fill(0xaa);
    raw();
    assert(guest.queues[0].take() >= 1000);
    assertEquals(more.bytes.subarray(4096, 4608), diskBytes().subarray(0, 512));
    assertEquals(more.bytes[8194], 0);
    front.send("REM_MEM_REG", oneRegion({ ...place, offset: 77 }), { needReply: true });
    assertEquals((await front.later()).view.getBigUint64(0, true), 0n);
    more.bytes.fill(0xbb);
    raw();
    // The request fails; there is no place for its status.
    assertEquals(more.bytes, new Uint8Array(8195).fill(0xbb));
    guest.add("read", 1, 512);
  });
}

/** Puts the header of a read of sector 0 at a fixed place in the guest's first page. */
function headerAt(guest: TestGuest): number {
  guest.ram.bytes.fill(0, 0, 16);
  return 0x4000_0000;
}

Deno.test("drain() returns what is in flight, for every queue, and starts nothing more; the rest is for the next back-end", async () => {
  const rig = new Rig({ queues: 2 });
  const gate = new Gate();
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  guest.start(front, ALL);
  rig.storage.hook = gate.hook;
  for (const queue of [0, 1]) {
    guest.add("read", queue, 512, queue);
    guest.kicks[queue].kick();
  }
  await turn();
  let drained = false;
  const done = Promise.resolve(rig.backEnd.drain()).then(() => drained = true);
  guest.add("read", 5, 512);
  guest.kicks[0].kick();
  await turn();
  assertEquals([drained, gate.held.length], [false, 2]);
  gate.open();
  await done;
  assertEquals([0, 1].map((queue) => guest.collect(queue).length), [1, 1]);
  await turn();
  assertEquals(gate.held.length, 0);
  front.connection.stop();
  assertEquals(await front.connection.closed, { kind: "stopped" });
  assert(rig.host.clean);
  const next = new Rig({ queues: 2 });
  const again = next.connect();
  guest.negotiate(again, ALL);
  guest.shareMemory(again);
  guest.startRing(again, 0, 1);
  assertEquals(guest.collect().map(({ token }) => token), [2]);
});

Deno.test("SET_MEM_TABLE under running rings moves them to the new mapping, with what was in flight returned first", async () => {
  const rig = new Rig();
  const gate = new Gate();
  const front = rig.connect();
  const guest = new TestGuest();
  guest.start(front, ALL);
  rig.storage.hook = gate.hook;
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  await turn();
  const upper = new FakeFile(4096);
  front.send("SET_MEM_TABLE", regionTable(guest.region, { guest: 0x1_0000_0000, size: 4096, user: 0x5000 }), {
    fds: [rig.host.give(guest.ram), rig.host.give(upper)],
    needReply: true,
  });
  await turn();
  assertEquals(front.replies.length, 0);
  gate.open();
  assertEquals((await front.later()).view.getBigUint64(0, true), 0n);
  rig.storage.hook = () => {};
  assertEquals(guest.collect().length, 1);
  assertEquals(rig.host.mappings, 2);
  guest.add("read", 1, 512);
  guest.kicks[0].kick();
  assertEquals(guest.collect().length, 1);
});

Deno.test("a broken ring is told by its err descriptor, and to one that is set later", () => {
  const rig = new Rig();
  const front = rig.connect();
  const guest = new TestGuest();
  guest.start(front, ALL);
  const { driver } = guest.queues[0].addresses;
  // An available index that is too far ahead.
  guest.ram.bytes[driver - 0x4000_0000 + 3] = 0x40;
  guest.kicks[0].kick();
  assertEquals(guest.errs[0].take(), 1);
  assertEquals(rig.rules(), ["avail-jump"]);
  assertEquals(front.ask("GET_STATUS").payload[0], 64);
  const err = new FakeEvent();
  front.good("SET_VRING_ERR", u64(0), { fds: [rig.host.give(err)] });
  assertEquals(err.count, 1);
});

Deno.test("a resize is told on the back-end channel, but not while the device is suspended", async () => {
  const rig = new Rig();
  const front = rig.connect();
  const guest = new TestGuest();
  guest.negotiate(front, ALL);
  const socket = new FakeSocket();
  front.good("SET_BACKEND_REQ_FD", undefined, { fds: [rig.host.give(socket)] });
  await rig.device.resize(DISK_BYTES * 2);
  assertEquals(socket.received.length, 0);
  guest.shareMemory(front);
  guest.startRing(front, 0);
  const message = Uint8Array.of(2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0);
  assertEquals(socket.received.splice(0), [message]);
  await rig.device.resize(DISK_BYTES * 4);
  assertEquals(socket.received, [message]);
});
