import { assertEquals, assertRejects } from "@std/assert";
import { header, OK, ram, rig, ringSpans, send, strayWrites } from "./rig.ts";

Deno.test("canary: the judge of memory reports each byte written outside the buffers named, and no other", async () => {
  const { machine } = await rig();
  const { bytes, guestAddress } = machine.memory.regions[0];
  const before = ram(machine);
  assertEquals(strayWrites(machine, before, []), []);
  bytes[5000] ^= 1;
  bytes[bytes.length - 1] ^= 1;
  const last = guestAddress + bytes.length - 1;
  assertEquals(strayWrites(machine, before, []), [guestAddress + 5000, last]);
  assertEquals(strayWrites(machine, before, [[guestAddress + 5000, 1]]), [last]);
  await machine.close();
});

Deno.test("canary: the judge of memory knows the rings: a request changes them and nothing else is taken for one", async () => {
  for (const layout of ["split", "packed"] as const) {
    const { machine } = await rig({ layout, driver: { useIndirect: false } });
    const before = ram(machine);
    const { driver } = machine.guest;
    const slot = driver.take();
    driver.begin(slot, 4, 0);
    driver.end(slot);
    await new Promise((done) => {
      driver.submit(slot, 0, done);
      driver.kick(0);
    });
    const changed = strayWrites(machine, before, [[slot.headerAddress, 17]]);
    assertEquals(changed.length > 0, true);
    assertEquals(strayWrites(machine, before, [[slot.headerAddress, 17], ...ringSpans(machine)]), []);
    await machine.close();
  }
});

Deno.test("canary: a request that the device answers by writing elsewhere fails the test that sent it", async () => {
  const made = await rig();
  const { bytes } = made.machine.memory.regions[0];
  made.storage.hook = () => {
    bytes[bytes.length - 1] ^= 1;
  };
  await assertRejects(() => send(made, header(0), 513), Error, "Values are not equal");
  made.storage.hook = () => {};
  assertEquals((await send(made, header(0), 513)).status, OK);
  await made.machine.close();
});
