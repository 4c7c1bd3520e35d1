/** What messages say is checked before it is used: memory, rings, configuration, features, framing. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { formatVhostUserViolation } from "../../../src/transport/vhost_user/rules.ts";
import type { RequestName } from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import { FakeEvent, FakeFile } from "./fake_host.ts";
import {
  config,
  type FrontEnd,
  inflight,
  oneRegion,
  RAM_BYTES,
  region,
  regionTable,
  type SendOptions,
  TestGuest,
  type TestRegion,
  u64,
  u64s,
  USER_BASE,
  vringAddress,
  vringState,
} from "./front_end.ts";
import { ALL, Rig } from "./rig.ts";

type HostOperation = Parameters<Rig["host"]["failing"]["add"]>[0];

function ready(device: ConstructorParameters<typeof Rig>[0] = { queues: 2 }) {
  const rig = new Rig(device);
  const front = rig.connect();
  const guest = new TestGuest();
  guest.negotiate(front, ALL);
  guest.shareMemory(front);
  return { rig, front, guest };
}

/** Sends a message that must be refused for `rule` and change nothing: no descriptor and no mapping is left of it. */
function refuse(
  { rig, front }: { rig: Rig; front: FrontEnd },
  rule: string,
  name: RequestName,
  payload: Uint8Array,
  things: (FakeFile | FakeEvent)[] = [],
  options: SendOptions = {},
): void {
  const before = [rig.host.open.size, rig.host.mappings];
  const fds = things.map((thing) => rig.host.give(thing));
  const { payload: answer } = front.ask(name, payload, { fds, ...options });
  assertEquals(answer, u64(1));
  assertEquals(rig.rules(), [rule]);
  assertEquals([rig.host.open.size, rig.host.mappings], before);
  assertEquals(rig.host.problems, []);
}

Deno.test("regions that are empty, wrap, overlap, or do not lie in their file are refused; the others stay", () => {
  const wrong: [string, TestRegion, number][] = [
    ["memory-region", { guest: 0, size: 0, user: 0 }, 4096],
    ["memory-region", { guest: 2n ** 64n - 4096n, size: 8192, user: 0 }, 8192],
    ["memory-region", { guest: 0, size: 8192, user: 2n ** 64n - 4096n }, 8192],
    ["memory-region", { guest: 0, size: 2n ** 63n, user: 0 }, 8192],
    ["memory-region", { guest: 0, size: 4096, user: 0, offset: 2n ** 64n - 1n }, 8192],
    ["memory-region", { guest: 0, size: 4095, user: 0, offset: 1 }, 4096],
    ["memory-map", { guest: 0, size: 4097, user: 0 }, 4096],
    ["memory-map", { guest: 0, size: 4096, user: 0, offset: 2 }, 4096],
    ["memory-overlap", { guest: 0x4000_0000 + RAM_BYTES - 4, size: 4096, user: 0 }, 4096],
    ["memory-overlap", { guest: 0x4000_0000 - 4095, size: 4096, user: 0 }, 4096],
    ["memory-overlap", { guest: 0, size: 4096, user: USER_BASE - 4095 }, 4096],
    ["memory-overlap", { guest: 0, size: 4096, user: USER_BASE + 8 }, 4096],
  ];
  for (const [rule, place, fileBytes] of wrong) {
    const made = ready();
    refuse(made, rule, "ADD_MEM_REG", oneRegion(place), [new FakeFile(fileBytes)]);
    // In a whole table the first region is good; the old table stays when the second is not.
    const table = regionTable(made.guest.region, place);
    refuse(made, rule, "SET_MEM_TABLE", table, [made.guest.ram, new FakeFile(fileBytes)]);
    made.guest.startRing(made.front, 0);
    made.guest.add("read", 0, 512);
    made.guest.kicks[0].kick();
    assertEquals(made.guest.collect().length, 1);
  }
  const made = ready();
  refuse(made, "memory-map", "ADD_MEM_REG", oneRegion({ guest: 0, size: 4096, user: 0 }), [new FakeEvent()]);
});

Deno.test("a region that ends right before another, by either address, is taken, and so are 64 and no more", () => {
  const made = ready();
  const before = { guest: 0x4000_0000 - 4096, size: 4096, user: USER_BASE - 4096 };
  made.front.good("ADD_MEM_REG", oneRegion(before), { fds: [made.rig.host.give(new FakeFile(4096))] });
  const numbered = (i: number) => oneRegion({ guest: i * 4096, size: 4096, user: i * 4096 });
  for (let i = 2; i < 64; i++) {
    made.front.good("ADD_MEM_REG", numbered(i), { fds: [made.rig.host.give(new FakeFile(4096))] });
  }
  refuse(made, "memory-slots", "ADD_MEM_REG", numbered(64), [new FakeFile(4096)]);
  refuse(made, "memory-unknown", "REM_MEM_REG", numbered(64));
  // A descriptor that comes with a removal is closed unused.
  const open = made.rig.host.open.size;
  made.front.good("REM_MEM_REG", numbered(2), { fds: [made.rig.host.give(new FakeFile(4096))] });
  assertEquals(made.rig.host.open.size, open);
  assertEquals(made.rig.host.mappings, 63);
  made.front.good("ADD_MEM_REG", numbered(2), { fds: [made.rig.host.give(new FakeFile(4096))] });
});

Deno.test("SET_MEM_TABLE takes one to eight regions, with as many descriptors", () => {
  const made = ready();
  const regions = Array.from({ length: 8 }, (_, i) => ({ guest: i * 4096, size: 4096, user: i * 4096 }));
  const fds = (count: number) => Array.from({ length: count }, () => made.rig.host.give(new FakeFile(4096)));
  made.front.good("SET_MEM_TABLE", regionTable(...regions), { fds: fds(8) });
  assertEquals(made.rig.host.mappings, 8);
  // With room for eight regions, as the text has it, of which one counts.
  const padded = new Uint8Array(8 + 8 * 32);
  padded.set(regionTable(regions[0]));
  made.front.good("SET_MEM_TABLE", padded, { fds: fds(1) });
  assertEquals(made.rig.host.mappings, 1);
  for (const count of [0, 9, 0xffff_ffff]) {
    const table = Uint8Array.from([...vringState(count, 0), ...region(regions[0])]);
    refuse(made, "payload-size", "SET_MEM_TABLE", table, [new FakeFile(4096)]);
  }
});

Deno.test("rings must lie in one region of memory by their user addresses, and be aligned", () => {
  const made = ready();
  const { front, guest } = made;
  front.good("SET_VRING_NUM", vringState(0, 16));
  const at = guest.userAddresses(0);
  const end = USER_BASE + guest.ram.bytes.byteLength;
  for (const part of ["desc", "driver", "device"] as const) {
    for (const address of [0, 0x4000_0000, end - 8, end, USER_BASE - 16]) {
      refuse(made, "ring-memory", "SET_VRING_ADDR", vringAddress(0, { ...at, [part]: address }));
    }
  }
  refuse(made, "queue-unknown", "SET_VRING_ADDR", vringAddress(2, at));
  // A ring that is set up wrong is refused when it would start, and may be set up again.
  front.good("SET_VRING_ADDR", vringAddress(0, { ...at, desc: at.desc + 8 }));
  const kick = new FakeEvent();
  assertEquals(front.ask("SET_VRING_KICK", u64(0), { fds: [made.rig.host.give(kick)] }).payload, u64(1));
  assertEquals(made.rig.rules(), ["queue-alignment"]);
  guest.startRing(front, 0);
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  assertEquals(guest.collect().length, 1);
});

Deno.test("a ring is set up in any order: the kick that comes last starts it, or the enabling", () => {
  for (const last of ["kick", "enable"]) {
    const { front, guest, rig } = ready();
    const kick = () => front.good("SET_VRING_KICK", u64(0), { fds: [rig.host.give(guest.kicks[0])] });
    front.good("SET_VRING_ENABLE", vringState(1, 1));
    kick();
    guest.kicks[0].kick();
    front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0)));
    front.good("SET_VRING_NUM", vringState(0, guest.size));
    guest.add("read", 0, 512);
    if (last === "kick") front.good("SET_VRING_ENABLE", vringState(0, 1));
    guest.kicks[0].kick();
    if (last === "enable") front.good("SET_VRING_ENABLE", vringState(0, 1));
    assertEquals(guest.collect().length, 1);
  }
});

Deno.test("values that have no meaning are refused", () => {
  const made = ready();
  for (const size of [0, 32769, 0xffff_ffff]) refuse(made, "payload-value", "SET_VRING_NUM", vringState(0, size));
  refuse(made, "payload-value", "SET_VRING_ENABLE", vringState(0, 2));
  refuse(made, "queue-unknown", "SET_VRING_ENABLE", vringState(2, 1));
  refuse(made, "queue-unknown", "SET_VRING_BASE", vringState(0xffff_ffff, 1));
  for (const name of ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] as const) {
    refuse(made, "payload-value", name, u64(0x200), [new FakeEvent()]);
    refuse(made, "payload-value", name, u64(1n << 40n), [new FakeEvent()]);
    refuse(made, "queue-unknown", name, u64(2), [new FakeEvent()]);
    refuse(made, "fds-surplus", name, u64(0x100), [new FakeEvent()]);
  }
  refuse(made, "status", "SET_STATUS", u64(0x100));
  const after = made.front.ask("SET_STATUS", u64(0xff));
  assertEquals(after.payload, u64(0));
  assertEquals(made.front.ask("GET_STATUS").payload, u64(0xff & ~64));
});

Deno.test("SET_FEATURES takes what is on offer; what no message can carry is not on offer", () => {
  const made = ready({ notificationData: true });
  const offered = made.front.ask("GET_FEATURES").view.getBigUint64(0, true);
  for (const bit of [26n, 30n, 32n, 34n]) assert(offered >> bit & 1n, `bit ${bit}`);
  // NOTIFICATION_DATA, RING_RESET.
  for (const bit of [38n, 40n]) assertEquals(offered >> bit & 1n, 0n);
  refuse(made, "feature-not-offered", "SET_FEATURES", u64(offered | 1n << 40n));
  refuse(made, "protocol-feature-not-offered", "SET_PROTOCOL_FEATURES", u64(ALL | 1n << 8n));
  made.guest.startRing(made.front, 0);
  refuse(made, "state", "SET_FEATURES", u64(made.guest.features & ~(1n << 9n)));
  made.front.good("SET_FEATURES", u64(made.guest.features | 1n << 26n));
});

Deno.test("a driver that declines VERSION_1 is served: the legacy interface is the front-end's", () => {
  const made = ready();
  const { front, guest } = made;
  front.good("SET_FEATURES", u64(guest.features & ~(1n << 32n)));
  guest.startRing(front, 0);
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  assertEquals(guest.collect().length, 1);
});

Deno.test("without PROTOCOL_FEATURES all rings are enabled at once, and SET_VRING_ENABLE means nothing", () => {
  const rig = new Rig();
  const front = rig.connect();
  const guest = new TestGuest();
  front.send("SET_PROTOCOL_FEATURES", u64(ALL));
  front.good("SET_FEATURES", u64(guest.features & ~(1n << 30n)));
  guest.shareMemory(front);
  refuse({ rig, front }, "state", "SET_VRING_ENABLE", vringState(0, 0));
  front.good("SET_VRING_NUM", vringState(0, 16));
  front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0)));
  front.good("SET_VRING_KICK", u64(0), { fds: [rig.host.give(guest.kicks[0])] });
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  assertEquals(guest.collect().length, 1);
});

Deno.test("GET_CONFIG answers with as many bytes as were asked for, or none; SET_CONFIG writes the cache mode only", () => {
  const made = ready();
  const { front, rig } = made;
  const zeros = (count: number) => new Array<number>(count).fill(0);
  for (const [offset, size] of [[0, 57], [0, 60], [0, 256], [200, 56], [32, 1]]) {
    const { payload } = front.ask("GET_CONFIG", config(offset, zeros(size)));
    const expected = new Uint8Array(size);
    rig.device.readConfig(offset, expected);
    assertEquals(payload, config(offset, [...expected]));
  }
  for (const bad of [config(1, zeros(256)), config(0, []), config(0, zeros(8), 0, 9), config(0xffff_ffff, [0])]) {
    const { payload, flags } = front.ask("GET_CONFIG", bad);
    assertEquals([payload.byteLength, flags], [0, 5]);
    assertEquals(rig.rules(), ["config-range"]);
  }
  assertEquals(rig.device.writethrough, false);
  front.good("SET_CONFIG", config(32, [0]));
  assertEquals(rig.device.writethrough, true);
  refuse(made, "config-read-only", "SET_CONFIG", config(0, [9, 9]));
  refuse(made, "config-read-only", "SET_CONFIG", config(31, [0, 0]));
  refuse(made, "config-range", "SET_CONFIG", config(32, [0], 0, 2));
  // A migration writes all of it, of which the cache mode is taken.
  front.good("SET_CONFIG", config(0, [...zeros(32), 1], 1));
  assertEquals(rig.device.writethrough, false);
  assertEquals(rig.device.options.queues, 2);
});

Deno.test("the cache mode outlives resets, repeated negotiation and, with the in-flight area, the back-end: the front-end says it once", async () => {
  const { rig, front, guest } = ready();
  const ask = inflight(0, 0, 2, 16);
  const reply = front.ask("GET_INFLIGHT_FD", ask);
  assertEquals(reply.payload.byteLength, ask.byteLength);
  const area = rig.host.open.get(reply.fds[0]) as FakeFile;
  rig.host.closeFd(reply.fds[0]);
  front.good("SET_INFLIGHT_FD", reply.payload, { fds: [rig.host.give(area)] });
  front.good("SET_CONFIG", config(32, [0]));
  front.good("SET_FEATURES", u64(guest.features));
  assertEquals(rig.device.writethrough, true);
  for (const [name, payload] of [["SET_STATUS", u64(0)], ["RESET_DEVICE", undefined]] as const) {
    front.good(name, payload);
    front.good("SET_FEATURES", u64(guest.features));
    assertEquals(rig.device.writethrough, true);
  }
  const second = new Rig({ queues: 2 }, rig.memory);
  const again = second.connect();
  guest.negotiate(again, ALL);
  assertEquals(second.device.writethrough, false);
  again.good("SET_INFLIGHT_FD", reply.payload, { fds: [second.host.give(area)] });
  assertEquals(second.device.writethrough, true);
  // Another virtual machine is not concerned.
  front.connection.disconnected();
  await front.connection.closed;
  guest.negotiate(rig.connect(), ALL);
  assertEquals(rig.device.writethrough, false);
});

Deno.test("RESET_DEVICE and SET_STATUS 0 stop the rings and keep the memory; RESET_OWNER disables the rings", async () => {
  for (const message of ["RESET_DEVICE", "SET_STATUS", "RESET_OWNER"] as const) {
    const { rig, front, guest } = ready();
    guest.startRing(front, 0);
    front.good(message, message === "SET_STATUS" ? u64(0) : undefined);
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    assertEquals(guest.collect(), []);
    assertEquals(rig.host.mappings, 1);
    if (message === "RESET_OWNER") {
      front.good("SET_VRING_ENABLE", vringState(0, 1));
    } else {
      front.good("SET_FEATURES", u64(guest.features));
      guest.startRing(front, 0);
    }
    assertEquals(guest.collect().length, 1);
    front.connection.disconnected();
    await front.connection.closed;
    assert(rig.host.clean);
  }
});

Deno.test("the log must be in its file and cover the memory; the area for buffers in flight must be large enough", () => {
  const made = ready();
  const log = new FakeFile(65536);
  refuseAndEnd(made, "log-map", "SET_LOG_BASE", u64s(0, 0), log);
  refuseAndEnd(ready(), "log-map", "SET_LOG_BASE", u64s(65536, 1), log);
  refuseAndEnd(ready(), "log-map", "SET_LOG_BASE", u64s(2n ** 64n - 1n, 1), log);
  // The memory ends at 0x40020004: 0x8005 bytes of log cover it.
  refuseAndEnd(ready(), "log-range", "SET_LOG_BASE", u64s(0x8004, 0), log);
  const fresh = ready();
  assertEquals(fresh.front.ask("SET_LOG_BASE", u64s(0x8005, 0), { fds: [fresh.rig.host.give(log)] }).payload, u64(0));
  fresh.front.good("SET_FEATURES", u64(fresh.guest.features | 1n << 26n));
  const at = fresh.guest.userAddresses(0);
  refuse(fresh, "log-range", "SET_VRING_ADDR", vringAddress(0, at, 1, 2n ** 63n));
  refuse(fresh, "log-range", "SET_VRING_ADDR", vringAddress(0, at, 1, 0x8005 * 8 * 4096));
  for (const [queues, size] of [[0, 16], [3, 16], [1, 0], [1, 32769]]) {
    refuse(fresh, "inflight-range", "SET_INFLIGHT_FD", inflight(1 << 20, 0, queues, size), [new FakeFile(1 << 20)]);
  }
  refuse(fresh, "inflight-range", "SET_INFLIGHT_FD", inflight(512, 0, 1, 16), [new FakeFile(1 << 20)]);
  refuse(fresh, "inflight-range", "SET_INFLIGHT_FD", inflight(8192, 4, 1, 16), [new FakeFile(1 << 20)]);
  refuse(fresh, "inflight-map", "SET_INFLIGHT_FD", inflight(8192, 0, 1, 16), [new FakeFile(512)]);
  // A ring that has no place in the area is not started: what is in flight could not be found again.
  fresh.front.good("SET_INFLIGHT_FD", inflight(8192, 0, 1, 8), { fds: [fresh.rig.host.give(new FakeFile(8192))] });
  fresh.front.good("SET_VRING_NUM", vringState(0, 16));
  fresh.front.good("SET_VRING_ADDR", vringAddress(0, at));
  fresh.front.ask("SET_VRING_KICK", u64(0), { fds: [fresh.rig.host.give(new FakeEvent())] });
  assertEquals(fresh.rig.rules(), ["inflight-range"]);
});

/** For a message whose refusal ends the connection. */
function refuseAndEnd(
  made: ReturnType<typeof ready>,
  rule: string,
  name: RequestName,
  payload: Uint8Array,
  file: FakeFile,
) {
  made.front.send(name, payload, { fds: [made.rig.host.give(file)], needReply: true });
  assertEquals(made.rig.rules(), [rule]);
  assertEquals(made.front.connection.endReason?.kind, "refused");
}

Deno.test("what the machine cannot do is refused, with its reason", () => {
  const attempts: [HostOperation, RequestName, Uint8Array][] = [
    ["map", "ADD_MEM_REG", oneRegion({ guest: 0, size: 4096, user: 0 })],
    ["notifier", "SET_VRING_CALL", u64(0)],
    ["notifier", "SET_VRING_ERR", u64(0)],
    ["notifier", "SET_LOG_FD", new Uint8Array(0)],
    ["watchKicks", "SET_VRING_KICK", u64(0)],
    ["backendChannel", "SET_BACKEND_REQ_FD", new Uint8Array(0)],
  ];
  for (const [operation, name, payload] of attempts) {
    const made = ready();
    made.rig.host.failing.add(operation);
    refuse(made, operation === "map" ? "memory-map" : "host", name, payload, [new FakeFile(4096)]);
  }
  const made = ready();
  made.rig.host.failing.add("createShared");
  made.front.send("GET_INFLIGHT_FD", inflight(0, 0, 1, 16));
  assertEquals(made.front.connection.endReason?.kind, "refused");
});

Deno.test("a header that is wrong ends the connection before its payload is waited for", () => {
  const wrong: [string, SendOptions][] = [
    ["header-version", { flags: 0 }],
    ["header-version", { flags: 2 }],
    ["header-reply", { flags: 5 }],
    ["payload-length", { size: 269 }],
    ["payload-length", { size: 0xffff_ffff }],
  ];
  for (const [rule, options] of wrong) {
    const { rig, front } = ready();
    front.send("SET_OWNER", undefined, { ...options, fds: [rig.host.give(new FakeEvent())] });
    const reason = front.connection.endReason;
    assert(reason?.kind === "refused");
    assertEquals(reason.violation.rule, rule);
    assertEquals(front.connection.wantedBytes, 0);
    assert(formatVhostUserViolation(reason.violation).includes("vhost-user, "));
  }
});

Deno.test("descriptors that come in the middle of a message, or more than eight, end the connection", async () => {
  for (const at of [1, 11, 12, 15]) {
    const { rig, front } = ready();
    const bytes = Uint8Array.from([8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, ...vringState(0, 16)]);
    front.connection.receive(bytes.subarray(0, Math.min(12, at)), [rig.host.give(new FakeEvent())]);
    if (at > 12) front.connection.receive(bytes.subarray(12, at));
    front.connection.receive(bytes.subarray(at, at + 1), [rig.host.give(new FakeEvent())]);
    assertEquals(rig.rules(), ["fds-late"]);
    await front.connection.closed;
    assert(rig.host.clean);
  }
  const { rig, front } = ready();
  front.send("SET_OWNER", undefined, { fds: Array.from({ length: 9 }, () => rig.host.give(new FakeEvent())) });
  assertEquals(rig.rules(), ["fds-surplus"]);
  await front.connection.closed;
  assert(rig.host.clean);
});

Deno.test("a front-end that stops in the middle of a message leaves nothing behind", async () => {
  for (let at = 1; at < 20; at++) {
    const { rig, front } = ready();
    const bytes = Uint8Array.from([8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, ...vringState(0, 16)]);
    front.connection.receive(bytes.subarray(0, Math.min(12, at)), [rig.host.give(new FakeEvent())]);
    if (at > 12) front.connection.receive(bytes.subarray(12, at));
    front.connection.disconnected();
    assertEquals(rig.rules(), ["message-cut"]);
    assertEquals(await front.connection.closed, { kind: "disconnected" });
    assert(rig.host.clean);
  }
});

Deno.test("one front-end at a time, and no more bytes than are wanted", () => {
  const { rig, front } = ready();
  assertThrows(() => rig.connect(), RangeError, "another front-end is connected");
  const fd = rig.host.give(new FakeEvent());
  assertThrows(() => front.connection.receive(new Uint8Array(13), [fd]), RangeError, "13 bytes were read");
  assert(!rig.host.open.has(fd));
});
