/** What the guest's requests look like in the ring, whatever they ask for. */

import { assert, assertEquals } from "@std/assert";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import type { TraceDescriptor } from "../../src/trace/events.ts";

const [WRITE, INDIRECT] = [2, 4];

for (const layout of ["split", "packed"] as const) {
  Deno.test(`${layout} ring: every request of the guest is a header, one piece of data if it has any, and a status, the writable ones last (VIRTIO 1.4 §2.7.4.2, §2.8.17)`, async () => {
    for (const useIndirect of [false, true]) {
      const chains: TraceDescriptor[][] = [];
      const machine = await Machine.start(new RawImage(new MemoryStorage(1 << 20)), {
        device: { packed: layout === "packed", secureErase: true, lifetime: { preEolInfo: 1, typA: 1, typB: 1 } },
        driver: { useIndirect },
        trace: (event) => {
          if (event.event === "chain") {
            chains.push(event.descriptors.filter(({ flags, indirect }) => indirect || !(flags & INDIRECT)));
          }
        },
      });
      const { guest } = machine;
      const elements: Record<string, number> = {};
      const count = async (name: string, request: Promise<unknown>) => {
        chains.length = 0;
        await request;
        assertEquals(chains.length, 1, name);
        elements[name] = chains[0].length;
        const writable = chains[0].map(({ flags }) => (flags & WRITE) !== 0);
        assertEquals(
          writable.toSorted((a, b) => +a - +b),
          writable,
          `${name}: a readable element behind a writable one`,
        );
        assert(!writable[0] && writable[writable.length - 1], `${name}: a header first, a status last`);
      };
      await count("read", guest.read(0, 65536));
      await count("write", guest.write(0, new Uint8Array(65536)));
      await count("flush", guest.flush());
      await count("discard", guest.discard(0, 4096));
      await count("write zeroes", guest.writeZeroes(0, 4096));
      await count("secure erase", guest.secureErase(0, 4096));
      await count("identify", guest.identify());
      const three = ["read", "write", "discard", "write zeroes", "secure erase", "identify"];
      assertEquals(elements, { ...Object.fromEntries(three.map((name) => [name, 3])), flush: 2 });
      await machine.close();
    }
  });
}
