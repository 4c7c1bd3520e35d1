/**
 * Several back-ends that look like one to a front-end: which of them is told what, what comes back, and how it ends when
 * they do not agree.
 */

import { assert, assertEquals } from "@std/assert";
import { Gate } from "../../blk/rig.ts";
import { forSeedsAsync, Random } from "../../random.ts";
import { FakeFile, FakeSocket } from "./fake_host.ts";
import {
  config,
  type FrontEnd,
  inflight,
  oneRegion,
  type Received,
  regionTable,
  TestGuest,
  u64,
  vringAddress,
  vringState,
} from "./front_end.ts";
import { randomMessage } from "./random_messages.ts";
import { ALL, Rig, turn } from "./rig.ts";
import { SplitRig } from "./split_rig.ts";

/** Waits until what was sent has been carried out; returns the replies. */
async function settled(front: FrontEnd): Promise<Received[]> {
  while (front.connection.wantedBytes === 0 && front.connection.endReason === null) await turn();
  return front.replies.splice(0);
}

/** Sends a message, and returns the number that came back. */
async function ask(front: FrontEnd, ...message: Parameters<FrontEnd["send"]>): Promise<bigint> {
  const [request, payload, options] = message;
  front.send(request, payload, { needReply: true, ...options });
  const [reply] = await settled(front);
  assert(reply !== undefined, `${request} was not answered: ${JSON.stringify(front.connection.endReason)}`);
  for (const fd of reply.fds) front.host.closeFd(fd);
  return reply.view.byteLength === 8 ? reply.view.getBigUint64(0, true) : -1n;
}

async function good(front: FrontEnd, ...message: Parameters<FrontEnd["send"]>): Promise<void> {
  assertEquals(await ask(front, ...message), 0n, `${message[0]}`);
}

/** Everything up to running rings. */
async function start(front: FrontEnd, guest: TestGuest, rings = guest.queues.map((_, i) => i)): Promise<void> {
  const { host } = front;
  front.send("SET_PROTOCOL_FEATURES", u64(ALL));
  await good(front, "SET_FEATURES", u64(guest.features));
  await good(front, "SET_MEM_TABLE", regionTable(guest.region), { fds: [host.give(guest.ram)] });
  for (const ring of rings) {
    await good(front, "SET_VRING_NUM", vringState(ring, guest.size));
    await good(front, "SET_VRING_BASE", vringState(ring, guest.layout === "packed" ? 0x8000_8000 : 0));
    await good(front, "SET_VRING_ADDR", vringAddress(ring, guest.userAddresses(ring)));
    await good(front, "SET_VRING_CALL", u64(ring), { fds: [host.give(guest.calls[ring])] });
    await good(front, "SET_VRING_ERR", u64(ring), { fds: [host.give(guest.errs[ring])] });
    await good(front, "SET_VRING_KICK", u64(ring), { fds: [host.give(guest.kicks[ring])] });
    await good(front, "SET_VRING_ENABLE", vringState(ring, 1));
  }
}

async function end(rig: SplitRig, front: FrontEnd): Promise<void> {
  front.connection.disconnected();
  await front.connection.closed;
  assertEquals(rig.host.problems, []);
  assert(rig.host.clean, `${rig.host.open.size} descriptors, ${rig.host.mappings} mappings`);
}

Deno.test("ring i is that of back-end i modulo their number, and the memory is everybody's", async () => {
  const rig = new SplitRig(3, 5);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 5 });
  await start(front, guest);
  const devices = [rig.device, ...rig.otherDevices];
  for (let ring = 0; ring < 5; ring++) {
    const before = devices.map(({ counters }) => counters.popped);
    guest.add("write", ring, new Uint8Array(512).fill(0x30 + ring), ring);
    guest.kicks[ring].kick();
    assertEquals(guest.collect(ring).map(({ status }) => status), [0]);
    assertEquals(
      devices.map(({ counters }, i) => counters.popped - before[i]),
      [0, 1, 2].map((i) => +(i === ring % 3)),
    );
    assertEquals(guest.calls[ring].take() > 0, true);
  }
  for (let ring = 0; ring < 5; ring++) {
    const other = (ring + 1) % 5;
    guest.add("read", ring, 512, other);
    guest.kicks[other].kick();
    assertEquals(guest.collect(other)[0].data[0], 0x30 + ring);
  }
  await end(rig, front);
});

Deno.test("each seeded sequence of messages is answered, refused and ended as by one back-end", async () => {
  let [answers, refusals, ends] = [0, 0, 0];
  const count = Number(Deno.env.get("VBLK_SESSIONS") ?? 100);
  await forSeedsAsync(count, Number(Deno.env.get("VBLK_SEED") ?? 1), async (random) => {
    const seed = random.next();
    const one = new Rig({ queues: 3 });
    const alone = await session(one.connect(), new Random(seed));
    const rig = new SplitRig(2 + seed % 2, 3);
    const split = await session(rig.connect(), new Random(seed));
    assertEquals(split, alone);
    assertEquals(rig.refusals.map(({ rule }) => rule), one.rules());
    assertEquals(rig.host.problems, []);
    assert(rig.host.clean, `${rig.host.open.size} descriptors, ${rig.host.mappings} mappings`);
    answers += alone.length;
    refusals += rig.refusals.length;
    ends += alone.at(-1) === "ended" ? 1 : 0;
  });
  assert(
    answers > 6 * count && refusals > 3 * count && ends > count / 4,
    `${answers} answers, ${refusals} refusals, ${ends} ends`,
  );
});

/** What is seen of one connection. */
async function session(front: FrontEnd, random: Random): Promise<string[]> {
  const log: string[] = [];
  const guest = new TestGuest({ layout: random.pick(["split", "packed"]), queues: 3 });
  if (!random.oneIn(4)) await start(front, guest);
  for (let step = 0; step < 50 && front.connection.endReason === null; step++) {
    randomMessage(front, random, guest);
    for (const { request, flags, payload, fds } of await settled(front)) {
      for (const fd of fds) front.host.closeFd(fd);
      log.push(`${step}: ${request} ${flags} ${payload} ${fds.length}`);
    }
    if (front.connection.endReason !== null) break;
    // A kick while a message is on its way would come before it or after it.
    const ring = random.below(3);
    try {
      if (random.oneIn(2)) guest.add(random.pick(["read", "write"]), random.below(300), random.below(3) * 512, ring);
    } catch {
      // The ring is full.
    }
    if (random.oneIn(2)) guest.kicks[ring].kick();
  }
  if (front.connection.endReason !== null) log.push("ended");
  front.connection.disconnected();
  await front.connection.closed;
  return log;
}

Deno.test("a wrong message is reported by one back-end only, and changes nothing in any", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  await start(front, guest);
  const far = { guest: 0x9000_0000, size: 4096, user: 0x9000_0000 };
  assertEquals(await ask(front, "REM_MEM_REG", oneRegion(far)), 1n);
  assertEquals(await ask(front, "SET_VRING_ENABLE", vringState(1, 2)), 1n);
  // Nobody has ring 300; it falls to the first by its number.
  assertEquals(await ask(front, "SET_VRING_NUM", vringState(300, 16)), 1n);
  assertEquals(await ask(front, "SET_VRING_NUM", vringState(301, 16)), 1n);
  const rules = [[0, "memory-unknown"], [1, "payload-value"], [0, "queue-unknown"], [1, "queue-unknown"]];
  assertEquals(rig.refusals.map(({ by, rule }) => [by, rule]), rules);
  // Too short to name a ring: the first refuses it, and nobody is there to be told.
  front.send("SET_VRING_NUM", new Uint8Array(3));
  await front.connection.closed;
  assertEquals(rig.refusals.at(-1), { by: 0, rule: "payload-size" });
  await end(rig, front);
});

Deno.test("rings that only another back-end runs keep what is shared from changing", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  await start(front, guest, [1]);
  assertEquals(await ask(front, "SET_PROTOCOL_FEATURES", u64(ALL)), 1n);
  assertEquals(await ask(front, "SET_FEATURES", u64(guest.features & ~(1n << 9n))), 1n);
  assertEquals(rig.refusals.map(({ by, rule }) => [by, rule]), [[0, "state"], [0, "state"]]);
  front.send("GET_VRING_BASE", vringState(1, 0));
  await settled(front);
  await good(front, "SET_PROTOCOL_FEATURES", u64(ALL));
  await end(rig, front);
});

Deno.test("a region that one back-end can't map is taken away from those that could; the session goes on", async () => {
  const rig = new SplitRig(3, 3);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 3 });
  await start(front, guest);
  const far = oneRegion({ guest: 0x9000_0000, size: 4096, user: 0x9000_0000 });
  const add = () => ask(front, "ADD_MEM_REG", far, { fds: [rig.host.give(new FakeFile(4096))] });
  const before = rig.host.mappings;
  for (const mapsLeft of [0, 1, 2]) {
    rig.host.mapsLeft = mapsLeft;
    assertEquals(await add(), 1n, `${mapsLeft} mappings`);
    assertEquals(rig.host.mappings, before);
  }
  rig.host.mapsLeft = Infinity;
  assertEquals(await add(), 0n);
  guest.add("read", 0, 512, 2);
  guest.kicks[2].kick();
  assertEquals(guest.collect(2).length, 1);
  await end(rig, front);
});

Deno.test("a new memory that not all can map ends the session: some would be in the old one", async () => {
  const rig = new SplitRig(2, 2);
  const guest = new TestGuest({ queues: 2 });
  const front = rig.connect();
  await start(front, guest);
  rig.host.mapsLeft = 1;
  const table = { needReply: true, fds: [rig.host.give(guest.ram)] };
  front.send("SET_MEM_TABLE", regionTable(guest.region), table);
  assertEquals((await front.connection.closed).kind, "stopped");
  assertEquals(rig.refusals, [{ by: 1, rule: "memory-map" }]);
  rig.host.mapsLeft = Infinity;
  await end(rig, front);
  // The next one is served.
  const next = rig.connect();
  await start(next, new TestGuest({ queues: 2 }));
  await end(rig, next);
});

Deno.test("without a descriptor left for the others nobody is told, and the session ends", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  rig.host.failing.add("duplicateFd");
  front.send("SET_MEM_TABLE", regionTable(new TestGuest().region), { fds: [rig.host.give(new FakeFile(1 << 18))] });
  assertEquals((await front.connection.closed).kind, "stopped");
  assertEquals([rig.refusals, rig.host.mappings], [[{ by: 0, rule: "host" }], 0]);
  await end(rig, front);
});

Deno.test("a drain in another back-end holds up the messages behind it, but no other ring, and no disconnection", async () => {
  for (const disconnects of [false, true]) {
    const rig = new SplitRig(2, 2);
    const front = rig.connect();
    const guest = new TestGuest({ queues: 2 });
    await start(front, guest);
    const gate = new Gate();
    rig.storage.hook = ({ kind, offset, ...rest }) => offset === 512 ? gate.hook({ kind, offset, ...rest }) : undefined;
    guest.add("read", 1, 512, 1);
    guest.kicks[1].kick();
    front.send("GET_VRING_BASE", vringState(1, 0));
    front.send("GET_FEATURES");
    for (let i = 0; i < 5; i++) await turn();
    assertEquals(front.replies, []);
    guest.add("read", 0, 512, 0);
    guest.kicks[0].kick();
    assertEquals(guest.collect(0).length, 1);
    let closed = false;
    if (disconnects) {
      front.connection.disconnected();
      front.connection.closed.then(() => closed = true);
    }
    for (let i = 0; i < 5; i++) await turn();
    // The driver's memory is being read into.
    assertEquals([closed, rig.host.mappings > 0], [false, true]);
    gate.open();
    if (!disconnects) {
      const replies = await settled(front);
      while (replies.length < 2) replies.push(...await settled(front));
      assertEquals(guest.collect(1).length, 1);
      assertEquals(replies.map(({ payload }) => payload[4]).slice(0, 1), [1]);
    }
    await end(rig, front);
  }
});

Deno.test("GET_STATUS says that the device needs a reset, whoever has the broken ring", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  await start(front, guest);
  await good(front, "SET_STATUS", u64(15));
  assertEquals(await ask(front, "GET_STATUS"), 15n);
  // An index that says more buffers than the ring has.
  const driver = guest.queues[1].addresses.driver - Number(guest.region.guest);
  new DataView(guest.ram.bytes.buffer).setUint16(driver + 2, 1000, true);
  guest.kicks[1].kick();
  assertEquals(guest.errs.map(({ count }) => count > 0), [false, true]);
  assertEquals(await ask(front, "GET_STATUS"), 15n | 64n);
  await good(front, "SET_STATUS", u64(0));
  assertEquals(await ask(front, "GET_STATUS"), 0n);
  await end(rig, front);
});

Deno.test("a change of the configuration is told once, also when only another back-end has rings that run", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  const channel = new FakeSocket();
  await start(front, guest, []);
  await good(front, "SET_BACKEND_REQ_FD", new Uint8Array(0), { fds: [rig.host.give(channel)] });
  const change = () => [...rig.otherDevices, rig.device].forEach((device) => device.capacityChanged());
  change();
  // A device that is suspended says nothing.
  assertEquals(channel.received.length, 0);
  await start(front, guest, [1]);
  assertEquals(channel.received.length, 1);
  change();
  assertEquals(channel.received.length, 2);
  await end(rig, front);
});

Deno.test("drain() returns what is in flight in all back-ends, and starts nothing more", async () => {
  const rig = new SplitRig(2, 2);
  const front = rig.connect();
  const guest = new TestGuest({ queues: 2 });
  await start(front, guest);
  const gate = new Gate();
  rig.storage.hook = gate.hook;
  for (const ring of [0, 1]) {
    guest.add("read", ring, 512, ring);
    guest.kicks[ring].kick();
  }
  const drained = Promise.resolve(rig.backEnd.drain());
  for (const ring of [0, 1]) {
    guest.add("read", 5, 512, ring);
    guest.kicks[ring].kick();
  }
  await turn();
  assertEquals(gate.open(), 2);
  await drained;
  assertEquals([guest.collect(0).length, guest.collect(1).length, gate.held.length], [1, 1, 0]);
  await end(rig, front);
});

Deno.test("the cache mode goes for the rings of all back-ends, and one that starts anew takes it from the area", async () => {
  const first = new SplitRig(3, 3);
  const guest = new TestGuest({ queues: 3 });
  const area = new FakeFile(1 << 16);
  const modes = (rig: SplitRig) => [rig.device, ...rig.otherDevices].map(({ writethrough }) => writethrough);
  const share = async (rig: SplitRig, front: FrontEnd) => {
    front.send("SET_PROTOCOL_FEATURES", u64(ALL));
    await good(front, "SET_FEATURES", u64(guest.features));
    const fds = [rig.host.give(area)];
    await good(front, "SET_INFLIGHT_FD", inflight(area.bytes.byteLength, 0, 3, 16), { fds });
  };
  const front = first.connect();
  await share(first, front);
  assertEquals(modes(first), [false, false, false]);
  await good(front, "SET_CONFIG", config(32, [0]));
  assertEquals(modes(first), [true, true, true]);
  await end(first, front);
  const second = new SplitRig(3, 3);
  const again = second.connect();
  await share(second, again);
  assertEquals(modes(second), [true, true, true]);
  await end(second, again);
});
