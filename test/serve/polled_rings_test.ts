/** A ring that nobody gives notice of, beside one that has a kick descriptor: both are served. */

import { assert, assertEquals } from "@std/assert";
import { VRING_NOFD } from "../../src/transport/vhost_user/vhost_user_layout.ts";
import { Folder } from "../storage/support.ts";
import { u64 } from "../transport/vhost_user/front_end.ts";
import { FrontEnd, Guest, OK, PATIENCE_MS, requiresServe, ServeProcess, TYPE } from "./rig.ts";

/** More than are started in one turn, and more than two. */
const MANY = 150;

/** A front-end that has told its second ring to be polled. */
async function withPolledRing(pollNanoseconds: number, fn: (guest: Guest) => void): Promise<void> {
  using folder = new Folder();
  const [image, socket] = [folder.file("disk.img", new Uint8Array(1 << 20)), folder.file("vm.sock")];
  await using process = await ServeProcess.ready([
    ...[image, "-f", "raw", "--vhost-user", socket, "--device", "num-queues=2"],
    ...["--poll-max-ns", String(pollNanoseconds)],
  ]);
  using guest = new Guest({ queues: 2, size: 512, slots: MANY });
  using front = new FrontEnd(socket);
  guest.start(front);
  // The thread has looked at this ring, and goes on looking: its driver need not notify.
  for (let i = 0; i < 20; i++) assertEquals(guest.run(TYPE.read, 0, 4096), OK);
  front.good("SET_VRING_KICK", u64(1 | VRING_NOFD));
  fn(guest);
  front.close();
  assertEquals((await process.stop()).code, 0);
}

Deno.test({
  name: "beside a ring that is polled, one that was looked at before is still served, notified or not",
  ...requiresServe(),
  fn: () =>
    withPolledRing(900_000_000, (guest) => {
      for (let i = 0; i < 20; i++) {
        const queue = i % 2;
        const wanted = guest.submit(0, TYPE.read, 0, 4096, queue);
        if (wanted && queue === 0) guest.kick();
        assertEquals(guest.wait(queue, PATIENCE_MS / 4), [{ slot: 0, status: OK }]);
      }
    }),
});

Deno.test({
  name: "beside a ring that is polled, one notification is enough for more than fits into a turn",
  ...requiresServe(),
  fn: () =>
    withPolledRing(0, (guest) => {
      let wanted = false;
      for (let slot = 0; slot < MANY; slot++) wanted = guest.submit(slot, TYPE.read, 0, 4096) || wanted;
      assert(wanted);
      guest.kick();
      for (let left = MANY; left > 0;) left -= guest.wait(0, PATIENCE_MS / 4).length;
    }),
});
