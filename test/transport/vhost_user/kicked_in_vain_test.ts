/** Kicks that bring nothing: what a front-end looks like that keeps the guest's memory to itself. */

import { assertEquals } from "@std/assert";
import { BlkDevice } from "../../../src/blk/device.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import { FakeHost } from "./fake_host.ts";
import { FrontEnd, type Layout, LAYOUTS, TestGuest, vringState } from "./front_end.ts";
import { ALL, filledDisk } from "./rig.ts";

/** A running ring, and the rings of which it was told that they are kicked in vain. */
function running(layout: Layout) {
  const host = new FakeHost();
  const told: number[] = [];
  const device = new BlkDevice(new RawImage(filledDisk()), { packed: true, queues: 2 });
  const backEnd = new VhostUserBackEnd(device, host, { kickedInVain: (ring) => told.push(ring) });
  const front = new FrontEnd(backEnd, host);
  const guest = new TestGuest({ layout, queues: 2 });
  return { front, guest, told };
}

for (const layout of LAYOUTS) {
  Deno.test(`${layout} ring: the second kick of a new ring in which nothing ever was is told, once a connection`, () => {
    const { front, guest, told } = running(layout);
    guest.start(front, ALL);
    // The front-end sends one by itself.
    for (const kick of guest.kicks) kick.kick();
    assertEquals(told, []);
    guest.kicks[1].kick();
    assertEquals(told, [1]);
    for (let i = 0; i < 3; i++) for (const kick of guest.kicks) kick.kick();
    assertEquals(told, [1]);
  });

  Deno.test(`${layout} ring: one in which something was may be kicked for nothing`, () => {
    const { front, guest, told } = running(layout);
    guest.start(front, ALL);
    guest.kicks[0].kick();
    guest.add("read", 0, 512);
    for (let i = 0; i < 5; i++) guest.kicks[0].kick();
    assertEquals([guest.collect().length, told], [1, []]);
  });

  Deno.test(`${layout} ring: one that goes on where another back-end left it may be kicked for nothing`, () => {
    const { front, guest, told } = running(layout);
    guest.start(front, ALL);
    guest.add("read", 0, 512);
    guest.kicks[0].kick();
    assertEquals(guest.collect().length, 1);
    const base = front.ask("GET_VRING_BASE", vringState(0, 0)).payload;
    guest.startRing(front, 0, new DataView(base.buffer, base.byteOffset).getUint32(4, true));
    for (let i = 0; i < 5; i++) guest.kicks[0].kick();
    assertEquals(told, []);
  });
}
