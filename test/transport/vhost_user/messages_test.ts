/** The table of messages: each row right, and wrong in every way that the row names. */

import { assert, assertEquals } from "@std/assert";
import { MESSAGES, REFUSED } from "../../../src/transport/vhost_user/messages.ts";
import { REQUEST, type RequestName } from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import { FakeEvent, FakeFile, type FakeHost, FakeSocket } from "./fake_host.ts";
import {
  config,
  type FrontEnd,
  inflight,
  oneRegion,
  regionTable,
  TestGuest,
  u64,
  u64s,
  vringAddress,
  vringState,
} from "./front_end.ts";
import { ALL, Rig } from "./rig.ts";

const NONE = new Uint8Array(0);

/** One message that is right when features, protocol features and memory are there and no ring runs. */
interface Sample {
  payload: Uint8Array;
  fds?: (host: FakeHost) => number[];
  /** The reply's payload, for rows that have one. */
  reply?: Uint8Array | null;
}

const file = (sizeBytes: number) => (host: FakeHost) => [host.give(new FakeFile(sizeBytes))];
const event = (host: FakeHost) => [host.give(new FakeEvent())];

function samples(guest: TestGuest): Record<string, Sample> {
  const added = { guest: 0x9000_0000, size: 4096, user: 0x1000 };
  return {
    GET_FEATURES: { payload: NONE, reply: null },
    SET_FEATURES: { payload: u64(guest.features) },
    GET_PROTOCOL_FEATURES: { payload: NONE, reply: u64(ALL) },
    SET_PROTOCOL_FEATURES: { payload: u64(ALL) },
    SET_OWNER: { payload: NONE },
    RESET_OWNER: { payload: NONE },
    SET_MEM_TABLE: { payload: regionTable(added), fds: file(4096) },
    SET_LOG_BASE: { payload: u64s(0x8005, 4096), fds: file(0x9005), reply: u64(0) },
    SET_LOG_FD: { payload: NONE, fds: event },
    SET_VRING_NUM: { payload: vringState(0, 16) },
    SET_VRING_ADDR: { payload: vringAddress(0, guest.userAddresses(0)) },
    SET_VRING_BASE: { payload: vringState(0, 5) },
    GET_VRING_BASE: { payload: vringState(0, 0), reply: vringState(0, 0) },
    SET_VRING_KICK: { payload: u64(0), fds: event },
    SET_VRING_CALL: { payload: u64(0), fds: event },
    SET_VRING_ERR: { payload: u64(0), fds: event },
    GET_QUEUE_NUM: { payload: NONE, reply: u64(2) },
    SET_VRING_ENABLE: { payload: vringState(0, 1) },
    SET_BACKEND_REQ_FD: { payload: NONE, fds: (host) => [host.give(new FakeSocket())] },
    GET_CONFIG: { payload: config(0, [0, 0, 0, 0, 0, 0, 0, 0]), reply: config(0, [0, 1, 0, 0, 0, 0, 0, 0]) },
    SET_CONFIG: { payload: config(32, [0]) },
    GET_INFLIGHT_FD: { payload: inflight(0, 0, 2, 16), reply: null },
    SET_INFLIGHT_FD: { payload: inflight(8192, 0, 2, 16), fds: file(8192) },
    RESET_DEVICE: { payload: NONE },
    GET_MAX_MEM_SLOTS: { payload: NONE, reply: u64(64) },
    ADD_MEM_REG: { payload: oneRegion(added), fds: file(4096) },
    REM_MEM_REG: { payload: oneRegion(guest.region) },
    SET_STATUS: { payload: u64(3) },
    GET_STATUS: { payload: NONE, reply: u64(0) },
  };
}

const NAMES = Object.keys(MESSAGES) as RequestName[];

interface Ready {
  rig: Rig;
  front: FrontEnd;
  guest: TestGuest;
  sample: Sample;
}

function ready(name: RequestName, protocolFeatures = ALL): Ready {
  const rig = new Rig({ queues: 2 });
  const front = rig.connect();
  const guest = new TestGuest();
  guest.negotiate(front, protocolFeatures);
  if (protocolFeatures & 1n << 3n) guest.shareMemory(front);
  return { rig, front, guest, sample: samples(guest)[name] };
}

/** The message was refused for `rule`, in the way its row says, and nothing of it is left; the next session works. */
async function refused({ rig, front }: Ready, name: RequestName, rule: string, before: number): Promise<void> {
  assertEquals(rig.rules(), [rule], name);
  if (MESSAGES[name]?.replies) {
    assertEquals(front.connection.endReason?.kind, "refused", name);
    assertEquals(front.replies.length, 0);
  } else {
    assertEquals(front.connection.endReason, null, name);
    assertEquals(rig.host.open.size, before, name);
    assertEquals(front.replies.splice(0).map(({ payload }) => payload), [u64(1)], name);
    front.ask("GET_FEATURES");
  }
  await theEnd(rig, front);
}

async function theEnd(rig: Rig, front: FrontEnd): Promise<void> {
  front.connection.disconnected();
  await front.connection.closed;
  assert(rig.host.clean, rig.host.problems.join() || [...rig.host.open.keys()].join());
  const guest = new TestGuest();
  const again = rig.connect();
  guest.start(again, ALL);
  guest.add("read", 0, 512);
  guest.kicks[0].kick();
  assertEquals(guest.collect().length, 1);
  again.connection.stop();
  assertEquals(await again.connection.closed, { kind: "stopped" });
  assert(rig.host.clean);
}

Deno.test("every request of the text is carried out or refused, and every row has its sample", () => {
  const known = [...NAMES, ...Object.keys(REFUSED)];
  assertEquals(known.toSorted(), Object.keys(REQUEST).toSorted());
  assertEquals(new Set(known).size, known.length);
  assertEquals(Object.keys(samples(new TestGuest())).toSorted(), NAMES.toSorted());
});

for (const name of NAMES) {
  Deno.test(`${name}: right, cut anywhere, it is carried out and answered`, async () => {
    for (const chunk of [Infinity, 1, 5]) {
      const { rig, front, sample } = ready(name);
      front.send(name, sample.payload, { fds: sample.fds?.(rig.host), needReply: true, chunk });
      const { payload, flags, request, fds } = await front.later();
      assertEquals([request, flags], [REQUEST[name], 5]);
      if (MESSAGES[name]?.replies) assert(sample.reply !== undefined);
      if (sample.reply !== null) assertEquals(payload, sample.reply ?? u64(0));
      for (const fd of fds) rig.host.closeFd(fd);
      assertEquals(rig.rules(), []);
      await theEnd(rig, front);
    }
  });

  Deno.test(`${name}: a payload of any other size is refused`, async () => {
    const { payload } = ready(name).sample;
    const sizes = [payload.byteLength + 1, payload.byteLength - 1, payload.byteLength === 0 ? 8 : 0, 272 - 1];
    for (const size of sizes.filter((size) => size >= 0)) {
      if (name.endsWith("CONFIG") && size >= 12 && size <= 268) continue;
      const made = ready(name);
      const other = new Uint8Array(size);
      other.set(payload.subarray(0, Math.min(size, payload.byteLength)));
      const fds = made.sample.fds?.(made.rig.host) ?? [];
      const before = made.rig.host.open.size - fds.length;
      if (size > 268) continue;
      made.front.send(name, other, { fds, needReply: true });
      await refused(made, name, "payload-size", before);
    }
  });

  Deno.test(`${name}: a descriptor too few or too many is refused, and all are closed`, async () => {
    const made = ready(name);
    const { fds } = made.sample;
    if (fds !== undefined) {
      const before = made.rig.host.open.size;
      made.front.send(name, made.sample.payload, { needReply: true });
      await refused(made, name, "fds-missing", before);
    }
    const more = ready(name);
    const before = more.rig.host.open.size;
    const surplus = [...fds?.(more.rig.host) ?? [], ...event(more.rig.host), ...event(more.rig.host)];
    more.front.send(name, more.sample.payload, { fds: surplus, needReply: true });
    await refused(more, name, "fds-surplus", before);
  });

  const { feature } = MESSAGES[name]!;
  if (feature !== undefined) {
    Deno.test(`${name}: refused without ${feature}`, async () => {
      const made = ready(name, 1n << 3n);
      const fds = made.sample.fds?.(made.rig.host) ?? [];
      const before = made.rig.host.open.size - fds.length;
      made.front.send(name, made.sample.payload, { fds, needReply: true });
      await refused(made, name, "feature-needed", before);
    });
  }
}

for (const name of ["SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE"] as const) {
  Deno.test(`${name}: refused before SET_FEATURES`, async () => {
    const rig = new Rig();
    const front = rig.connect();
    const guest = new TestGuest();
    front.send("SET_PROTOCOL_FEATURES", u64(ALL));
    const sample = samples(guest)[name];
    front.send(name, sample.payload, { fds: sample.fds?.(rig.host), needReply: true });
    await refused({ rig, front, guest, sample }, name, "state", 0);
  });
}

for (const name of ["SET_VRING_NUM", "SET_VRING_BASE", "SET_PROTOCOL_FEATURES", "SET_INFLIGHT_FD"] as const) {
  Deno.test(`${name}: refused while a ring runs`, async () => {
    const made = ready(name);
    made.guest.startRing(made.front, 0);
    const fds = made.sample.fds?.(made.rig.host) ?? [];
    const before = made.rig.host.open.size - fds.length;
    made.front.send(name, made.sample.payload, { fds, needReply: true });
    await refused(made, name, "state", before);
  });
}

Deno.test("SET_VRING_ADDR of a running ring: the same addresses are taken, others refused", async () => {
  const made = ready("SET_VRING_ADDR");
  const { front, guest, rig } = made;
  guest.startRing(front, 0);
  front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0), 1, 0x1000));
  const { desc, driver, device } = guest.userAddresses(0);
  const before = rig.host.open.size;
  front.send("SET_VRING_ADDR", vringAddress(0, { desc: desc + 16, driver, device }), { needReply: true });
  await refused(made, "SET_VRING_ADDR", "state", before);
});

Deno.test("requests that belong to what is not offered, or that nobody knows, are refused and their descriptors closed", async () => {
  const unknown = [0, 44, 0xffff_ffff].map((request) => [request, "message-unknown"] as const);
  const listed = Object.keys(REFUSED).map((name) => [REQUEST[name as RequestName], "message-refused"] as const);
  for (const [request, rule] of [...unknown, ...listed]) {
    for (const needReply of [true, false]) {
      const { rig, front } = ready("SET_OWNER");
      const before = rig.host.open.size;
      front.send(request, u64(1), { fds: event(rig.host), needReply });
      assertEquals(rig.rules(), [rule]);
      if (needReply) {
        assertEquals(front.replies.pop()?.payload, u64(1));
        assertEquals(rig.host.open.size, before);
      } else {
        assertEquals(front.connection.endReason?.kind, "refused");
      }
      await theEnd(rig, front);
    }
  }
});

Deno.test("a refusal ends the connection when the front-end asked for no acknowledgement, or cannot get one", async () => {
  for (const [protocolFeatures, needReply] of [[ALL, false], [ALL & ~(1n << 3n), true]] as const) {
    const rig = new Rig();
    const front = rig.connect();
    front.send("SET_PROTOCOL_FEATURES", u64(protocolFeatures));
    front.send("SET_VRING_NUM", vringState(0, 16), { needReply });
    assertEquals(front.replies.length, needReply && protocolFeatures & 8n ? 1 : 0);
    front.send("SET_VRING_NUM", vringState(7, 16), { needReply });
    const reason = front.connection.endReason;
    assert(reason?.kind === "refused" && reason.violation.rule === "queue-unknown");
    await theEnd(rig, front);
  }
});
