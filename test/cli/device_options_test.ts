import { assertEquals } from "@std/assert";
import { BLK_DEFAULTS } from "../../src/blk/options.ts";
import { deviceHelp, parseDevice } from "../../src/cli/device_options.ts";

Deno.test("parseDevice() reads switches, numbers, text and wear", () => {
  assertEquals(parseDevice("packed,in_order=on,event_idx=off,num-queues=4,opt_io_size=1M,serial=a b,lifetime=1:2:3"), {
    packed: true,
    inOrder: true,
    eventIdx: false,
    queues: 4,
    optIoSize: 1 << 20,
    serial: "a b",
    lifetime: { preEolInfo: 1, typA: 2, typB: 3 },
  });
});

Deno.test("every option of the device but readOnly, which is -r, has a property", () => {
  const properties = deviceHelp().slice(2).map((line) => line.trim().split("=")[0]);
  assertEquals(properties.length, Object.keys(BLK_DEFAULTS).length - 1);
  assertEquals(new Set(properties).size, properties.length);
});
