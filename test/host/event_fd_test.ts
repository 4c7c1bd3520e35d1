import { assertEquals } from "@std/assert";
import { EventFd } from "../../src/host/event_fd.ts";
import { libc } from "../../src/host/libc.ts";
import { openDescriptors, requiresLibc } from "./support.ts";

for (const blocking of [false, true]) {
  const kind = blocking ? "that waits" : "that does not wait";

  Deno.test({
    name: `an eventfd ${kind} counts signals until it is drained, and is never waited for`,
    ...requiresLibc(),
    fn() {
      using event = EventFd.create({ blocking });
      assertEquals(event.isNonBlocking, !blocking);
      assertEquals([event.wait(0), event.drain()], [false, 0n]);
      for (let i = 0; i < 3; i++) event.signal();
      assertEquals([event.wait(0), event.drain(), event.drain(), event.wait(0)], [true, 3n, 0n, false]);
    },
  });

  Deno.test({
    name: `a signal to an eventfd ${kind} whose counter is full is no error and does not wait`,
    ...requiresLibc(),
    fn() {
      using event = EventFd.create({ blocking });
      const most = 0xffff_ffff_ffff_fffen;
      assertEquals(libc().write(event.descriptor, new BigUint64Array([most]), 8n), 8);
      event.signal();
      assertEquals(event.drain(), most);
    },
  });
}

Deno.test({
  name: "an eventfd is closed once",
  ...requiresLibc(),
  fn() {
    const before = openDescriptors();
    const event = EventFd.create();
    assertEquals(openDescriptors().length, before.length + 1);
    event.close();
    event.close();
    assertEquals(openDescriptors(), before);
  },
});
