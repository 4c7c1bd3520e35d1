/** Seeded messages of a front-end that means no good: right, bent and random, with random descriptors. */

import { MESSAGES, REFUSED } from "../../../src/transport/vhost_user/messages.ts";
import { REQUEST, type RequestName } from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import type { Random } from "../../random.ts";
import { FakeEvent, FakeFile, FakeSocket } from "./fake_host.ts";
import {
  config,
  type FrontEnd,
  inflight,
  oneRegion,
  regionTable,
  type TestGuest,
  u64,
  u64s,
  USER_BASE,
  vringAddress,
  vringState,
} from "./front_end.ts";
import { ALL } from "./rig.ts";

/** A payload that may well be right for a guest. */
export function likelyPayload(
  name: RequestName,
  random: Random,
  guest: Pick<TestGuest, "region" | "features" | "size" | "userAddresses">,
): Uint8Array {
  const queue = random.below(random.oneIn(5) ? 300 : 2);
  const place = () =>
    random.oneIn(2) ? guest.region : {
      guest: random.pick([0, 0x4000_0000, 0x9000_0000, 2n ** 64n - 4096n]),
      size: random.pick([0, 1, 4096, 4099, 1 << 17, 2n ** 40n, 2n ** 63n]),
      user: random.pick([0, USER_BASE, 0x1000, 2n ** 64n - 1n]),
      offset: random.pick([0, 0, 4096, 1, 2n ** 63n]),
    };
  const states = [0, 1, 7, 16, 0x8000_8000, random.next()];
  const rows: Partial<Record<RequestName, () => Uint8Array>> = {
    SET_FEATURES: () =>
      u64(random.pick([guest.features, guest.features | 1n << 26n, guest.features & ~(1n << 30n), 0n])),
    SET_PROTOCOL_FEATURES: () => u64(random.pick([ALL, ALL, ALL & ~8n, 2n ** 64n - 1n])),
    SET_MEM_TABLE: () => regionTable(...Array.from({ length: random.between(1, 3) }, place)),
    ADD_MEM_REG: () => oneRegion(place()),
    REM_MEM_REG: () => oneRegion(place()),
    SET_LOG_BASE: () => u64s(random.pick([0, 0x8005, 0x9000, 2n ** 63n]), random.pick([0, 4096, 3])),
    SET_VRING_NUM: () => vringState(queue, random.pick([guest.size, guest.size, ...states])),
    SET_VRING_BASE: () => vringState(queue, random.pick([0x8000_8000, 0, ...states])),
    GET_VRING_BASE: () => vringState(queue, 0),
    SET_VRING_ENABLE: () => vringState(queue, random.pick([0, 1, 1, 2])),
    SET_VRING_ADDR: () => {
      const at = guest.userAddresses(queue % 2);
      const bent = random.oneIn(4) ? { ...at, desc: at.desc + random.below(0x2_0000) } : at;
      return vringAddress(queue, bent, random.below(2), random.pick([0, 0x4000_0000, 2n ** 64n - 1n]));
    },
    SET_VRING_KICK: () => u64(queue | random.pick([0, 0, 0x100, 0x1000])),
    SET_VRING_CALL: () => u64(queue | random.pick([0, 0, 0x100])),
    SET_VRING_ERR: () => u64(queue | random.pick([0, 0, 0x100])),
    GET_CONFIG: () => config(random.below(64), new Array<number>(random.below(64)).fill(0)),
    SET_CONFIG: () => config(random.pick([32, 0, random.next()]), [random.below(2)], random.below(2)),
    GET_INFLIGHT_FD: () => inflight(0, 0, random.below(4), random.pick([16, 0, 40000])),
    SET_INFLIGHT_FD: () => {
      const sizeBytes = random.pick([8192, 0, 1 << 20, 2n ** 62n] as number[]);
      return inflight(sizeBytes, random.pick([0, 0, 4096]), random.below(4), 16);
    },
    SET_STATUS: () => u64(random.pick([0, 15, 255, 256])),
  };
  return rows[name]?.() ?? new Uint8Array(0);
}

function thing(random: Random, name: RequestName, guest: TestGuest): FakeFile | FakeEvent | FakeSocket {
  if (random.oneIn(8)) return random.pick([new FakeFile(random.below(9000)), new FakeEvent(), new FakeSocket()]);
  if (/KICK/.test(name)) return random.pick(guest.kicks);
  if (/CALL|ERR|LOG_FD/.test(name)) return random.pick(guest.calls);
  if (/REQ_FD/.test(name)) return new FakeSocket();
  if (/INFLIGHT/.test(name)) return inflightFile(random);
  return /LOG_BASE/.test(name) ? new FakeFile(0xa000) : guest.ram;
}

function inflightFile(random: Random): FakeFile {
  const file = new FakeFile(8192);
  if (random.oneIn(2)) random.fill(file.bytes.subarray(0, 600));
  return file;
}

const EVERY = [...Object.keys(MESSAGES), ...Object.keys(MESSAGES), ...Object.keys(REFUSED)] as RequestName[];
const SET_UP = EVERY.filter((name) => /VRING|MEM|FEATURES/.test(name));

/** Sends one. */
export function randomMessage(front: FrontEnd, random: Random, guest: TestGuest): void {
  const name = random.pick(random.oneIn(2) ? EVERY : SET_UP);
  let bytes = likelyPayload(name, random, guest);
  const bend = random.below(12);
  if (bend === 0) bytes = random.bytes(random.below(300));
  if (bend === 1 && bytes.byteLength > 0) bytes[random.below(bytes.byteLength)] = random.next();
  // What the row wants, mostly.
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const row = MESSAGES[name];
  const [least] = row !== undefined && row.payload.accepts(view) ? row.fds(view) : [random.below(2)];
  const count = random.oneIn(10) ? random.below(9) : least;
  const fds = Array.from({ length: count }, () => front.host.give(thing(random, name, guest)));
  const request = random.oneIn(60) ? random.next() : REQUEST[name];
  const odd = random.oneIn(120) ? { flags: random.next() } : random.oneIn(120) ? { size: random.next() } : {};
  front.send(request, bytes, { fds, needReply: !random.oneIn(30), chunk: random.pick([Infinity, 1, 7]), ...odd });
}
