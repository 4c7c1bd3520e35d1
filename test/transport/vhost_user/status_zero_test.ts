/** SET_STATUS 0 as QEMU 7.2 sends it: before GET_VRING_BASE, whenever a virtual machine is stopped. */

import { assertEquals } from "@std/assert";
import { TestGuest, u64, vringState } from "./front_end.ts";
import { ALL, Rig } from "./rig.ts";

for (const layout of ["split", "packed"] as const) {
  Deno.test(`${layout} ring: SET_STATUS 0 returns what was taken, and GET_VRING_BASE still tells where the ring stands`, () => {
    const rig = new Rig();
    const front = rig.connect();
    const guest = new TestGuest({ layout });
    guest.start(front, ALL);
    for (let i = 0; i < 3; i++) guest.add("read", i, 512);
    guest.kicks[0].kick();
    front.good("SET_STATUS", u64(0));
    front.good("SET_VRING_ENABLE", vringState(0, 0));
    const base = front.ask("GET_VRING_BASE", vringState(0, 0)).view.getUint32(4, true);
    assertEquals(base, layout === "split" ? 3 : 0x8009_8009);
    assertEquals(guest.collect().map(({ token }) => token).sort(), [0, 1, 2]);
    front.good("SET_FEATURES", u64(guest.features));
    guest.add("read", 9, 512);
    guest.startRing(front, 0, base);
    assertEquals(guest.collect().map(({ token, status }) => [token, status]), [[3, 0]]);
    assertEquals(rig.rules(), []);
  });
}
