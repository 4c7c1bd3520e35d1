/** The log of dirty pages ("Migration"): what is written is marked, and nothing else. */

import { assert, assertEquals } from "@std/assert";
import { DirtyLog } from "../../../src/transport/vhost_user/dirty_log.ts";
import { splitSizes } from "../../../src/virtio/virtqueue/split_layout.ts";
import { Gate } from "../../blk/rig.ts";
import { forSeeds } from "../../random.ts";
import { FakeEvent, FakeFile } from "./fake_host.ts";
import { type FrontEnd, LAYOUTS, RAM_BYTES, TestGuest, u64, u64s, vringAddress, vringState } from "./front_end.ts";
import { ALL, Rig, turn } from "./rig.ts";

const LOG_ALL = 1n << 26n;
/** Where the used ring is logged: outside of all memory, as it may be. */
const LOG_AT = 0x4008_0000;
const LOG_BYTES = 0x9000;
const LOG_OFFSET = 4096;

/** The pages marked in a log, by number; all marks are taken away. */
function takePages(log: FakeFile): number[] {
  const pages: number[] = [];
  log.bytes.forEach((byte, at) => {
    for (let bit = 0; bit < 8; bit++) if (byte >> bit & 1) pages.push((at - LOG_OFFSET) * 8 + bit);
  });
  log.bytes.fill(0);
  return pages;
}

function startLog(front: FrontEnd, guest: TestGuest, log: FakeFile): void {
  const reply = front.ask("SET_LOG_BASE", u64s(LOG_BYTES, LOG_OFFSET), { fds: [front.host.give(log)] });
  assertEquals(reply.payload, u64(0));
  front.good("SET_FEATURES", u64(guest.features | LOG_ALL));
  front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0), 1, LOG_AT));
}

const pageOf = (address: number) => Math.floor(address / 4096);

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: pages that the device writes while the log is on are marked, before the driver sees them, and no others`, async () => {
    const rig = new Rig();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    const log = new FakeFile(LOG_OFFSET + LOG_BYTES);
    const notified = new FakeEvent();
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    guest.collect();
    startLog(front, guest, log);
    front.good("SET_LOG_FD", undefined, { fds: [rig.host.give(notified)] });
    takePages(log);
    const before = guest.ram.bytes.slice();
    const [read, write] = [guest.add("read", 0, 9000), guest.add("write", 8, new Uint8Array(512))];
    const [data, source] = [guest.dataAddress(read), guest.dataAddress(write)];
    const untouched = guest.ram.bytes.slice();
    guest.kicks[0].kick();
    const pages = takePages(log);
    assert(notified.take() > 0);
    // A read of 9000 bytes is no whole number of sectors: it fails, and its buffer is cleared.
    const written = [data, data + 4096, data + 8192, data + 9000, source + 512].map(pageOf);
    const ring = [pageOf(LOG_AT)];
    if (layout === "packed") ring.push(pageOf(guest.queues[0].addresses.desc));
    assertEquals(pages, [...new Set([...written, ...ring])].toSorted((a, b) => a - b));
    // Nothing that changed is left out: the rings' own pages are logged elsewhere.
    const { desc, driver, device } = guest.queues[0].addresses;
    const rings = [desc, driver, device].map(pageOf);
    for (let at = 0; at < RAM_BYTES; at++) {
      if (guest.ram.bytes[at] === untouched[at]) continue;
      const page = pageOf(0x4000_0000 + at);
      assert(pages.includes(page) || rings.includes(page), `page ${page} changed`);
    }
    assert(before.byteLength === RAM_BYTES);
    assertEquals(guest.collect().map(({ token }) => token).toSorted(), [read, write]);
    // Switched off, nothing is marked.
    front.good("SET_FEATURES", u64(guest.features));
    takePages(log);
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    assertEquals([guest.collect().length, takePages(log), notified.count], [1, [], 0]);
    front.connection.disconnected();
    await front.connection.closed;
    assert(rig.host.clean);
  });

  Deno.test(`${layout} ring: what ends after the log was switched on is marked, and so is the ring when it stops`, async () => {
    const rig = new Rig();
    const gate = new Gate();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    rig.storage.hook = gate.hook;
    const token = guest.add("read", 0, 512);
    guest.kicks[0].kick();
    await turn();
    const log = new FakeFile(LOG_OFFSET + LOG_BYTES);
    startLog(front, guest, log);
    takePages(log);
    front.send("GET_VRING_BASE", vringState(0, 0));
    gate.open();
    await front.later();
    const pages = takePages(log);
    assert(pages.includes(pageOf(guest.dataAddress(token))));
    assert(pages.includes(pageOf(LOG_AT)));
    // Without any buffer, the wish for kicks is written all the same.
    guest.startRing(front, 0, layout === "split" ? 1 : 0x8003_8003, 1, LOG_AT);
    takePages(log);
    guest.kicks[0].kick();
    front.send("GET_VRING_BASE", vringState(0, 0));
    await front.later();
    assert(takePages(log).includes(pageOf(LOG_AT)));
    guest.kicks[0].kick();
    await turn();
    assertEquals(takePages(log), []);
  });
}

Deno.test("without VHOST_VRING_F_LOG only buffers are marked", () => {
  const rig = new Rig();
  const front = rig.connect();
  const guest = new TestGuest();
  guest.start(front, ALL);
  const log = new FakeFile(LOG_OFFSET + LOG_BYTES);
  startLog(front, guest, log);
  front.good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0)));
  takePages(log);
  const token = guest.add("write", 0, new Uint8Array(512));
  guest.kicks[0].kick();
  assertEquals(takePages(log), [pageOf(guest.dataAddress(token) + 512)]);
});

Deno.test("DirtyLog.mark() sets the bits of the text's pseudo-code, and none outside its bytes", () => {
  forSeeds(200, 1, (random) => {
    const bytes = new Uint8Array(64);
    const log = new DirtyLog({ bytes: bytes.subarray(8, 24), unmap: () => {} });
    const [address, length] = [random.below(140 * 4096), random.below(4 * 4096)];
    log.mark(address, length);
    const expected = new Uint8Array(64);
    for (let at = address; at < address + length; at++) {
      const page = Math.floor(at / 0x1000);
      if (page / 8 < 16) expected[8 + Math.floor(page / 8)] |= 1 << page % 8;
    }
    assertEquals(bytes, expected);
    assertEquals(log.covers(16 * 8 * 4096), true);
    assertEquals(log.covers(16 * 8 * 4096 + 1), false);
  });
  const huge = new DirtyLog({ bytes: new Uint8Array(16), unmap: () => {} });
  huge.mark(2 ** 52, splitSizes(16).device);
});
