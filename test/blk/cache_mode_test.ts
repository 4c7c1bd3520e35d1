/** The cache mode: when a write is stable, and how the driver chooses (VIRTIO 1.4 §5.2.5.2, §5.2.6.2). */

import { assertEquals, assertThrows } from "@std/assert";
import type { BlkOptions } from "../../src/blk/options.ts";
import { featureSet } from "../../src/virtio/features.ts";
import { concat, header, range, type Rig, rig, SECTOR, send, turn } from "./rig.ts";

const CONFIG = 0x100;
const WRITEBACK = 32;
const F = { FLUSH: 9, CONFIG_WCE: 11 };
const [OUT, FLUSH, DISCARD, WRITE_ZEROES] = [1, 4, 11, 13];

/** How many flushes reach the storage for a write, a write zeroes, a discard and a flush. */
async function flushes(made: Rig): Promise<number[]> {
  const counts: number[] = [];
  const requests = [
    concat(header(OUT), new Uint8Array(SECTOR)),
    concat(header(WRITE_ZEROES), range(0, 1)),
    concat(header(DISCARD), range(1, 1)),
    header(FLUSH),
  ];
  for (const request of requests) {
    let count = 0;
    made.storage.hook = ({ kind }) => {
      if (kind === "flush") count++;
    };
    assertEquals((await send(made, request, 1)).status, 0);
    counts.push(count);
  }
  made.storage.hook = () => {};
  return counts;
}

const WRITEBACK_COUNTS = [0, 0, 0, 1];
const WRITETHROUGH_COUNTS = [1, 1, 1, 1];

/** The cache mode after negotiation: what was offered and declined, and what `writeback` reads then. */
const MODES: readonly {
  what: string;
  device: Partial<BlkOptions>;
  decline: number[];
  counts: number[];
  writeback: number | undefined;
}[] = [
  { what: "FLUSH and CONFIG_WCE", device: {}, decline: [], counts: WRITEBACK_COUNTS, writeback: 1 },
  { what: "FLUSH alone", device: {}, decline: [F.CONFIG_WCE], counts: WRITEBACK_COUNTS, writeback: undefined },
  {
    what: "CONFIG_WCE without FLUSH",
    device: {},
    decline: [F.FLUSH],
    counts: WRITETHROUGH_COUNTS,
    writeback: 0,
  },
  {
    what: "neither, though FLUSH was offered",
    device: {},
    decline: [F.FLUSH, F.CONFIG_WCE],
    counts: WRITETHROUGH_COUNTS,
    writeback: undefined,
  },
  {
    what: "FLUSH and CONFIG_WCE of a device that starts in writethrough mode",
    device: { writeback: false },
    decline: [],
    counts: WRITETHROUGH_COUNTS,
    writeback: 0,
  },
  {
    what: "nothing, as nothing was offered",
    device: { flush: false },
    decline: [],
    counts: WRITEBACK_COUNTS,
    writeback: undefined,
  },
  {
    what: "nothing, of a device that writes through",
    device: { flush: false, writeback: false },
    decline: [],
    counts: WRITETHROUGH_COUNTS,
    writeback: undefined,
  },
];

for (const { what, device, decline, counts, writeback } of MODES) {
  Deno.test(`negotiated ${what}: writes are ${counts === WRITEBACK_COUNTS ? "cached" : "stable when they complete"} (VIRTIO 1.4 §5.2.6.2)`, async () => {
    const made = await rig({ device, driver: { decline } });
    assertEquals(made.machine.guest.config().writeback, writeback);
    assertEquals(await flushes(made), counts);
    await made.machine.close();
  });
}

Deno.test("a write is committed before its completion when FLUSH was offered and neither FLUSH nor CONFIG_WCE negotiated (VIRTIO 1.4 §5.2.6.2 case 1)", async () => {
  const made = await rig({ driver: { decline: [F.FLUSH, F.CONFIG_WCE] } });
  await committedBeforeCompletion(made);
  await made.machine.close();
});

Deno.test("a write is committed before its completion while writeback is 0 (VIRTIO 1.4 §5.2.6.2 case 2)", async () => {
  const made = await rig();
  made.machine.guest.setWriteback(false);
  await committedBeforeCompletion(made);
  await made.machine.close();
});

/** A write does not complete while the flush that follows it is held back. */
async function committedBeforeCompletion(made: Rig): Promise<void> {
  const order: string[] = [];
  let release = () => {};
  made.storage.hook = ({ kind }) => {
    order.push(kind);
    if (kind === "flush") return new Promise((go) => release = go);
  };
  const write = made.machine.guest.write(0, new Uint8Array(SECTOR)).then(() => order.push("completed"));
  await turn();
  assertEquals(order, ["write", "flush"]);
  release();
  await write;
  assertEquals(order, ["write", "flush", "completed"]);
  made.storage.hook = () => {};
}

Deno.test("the driver switches the cache mode by writing writeback, which reads back as written (VIRTIO 1.4 §5.2.6.1)", async () => {
  const made = await rig();
  const { guest } = made.machine;
  const expected = [[false, 0, WRITETHROUGH_COUNTS], [true, 1, WRITEBACK_COUNTS], [false, 0, WRITETHROUGH_COUNTS]];
  for (const [writeback, byte, counts] of expected) {
    guest.setWriteback(writeback as boolean);
    assertEquals(guest.config().writeback, byte);
    assertEquals(await flushes(made), counts);
  }
  await made.machine.close();
});

Deno.test("without CONFIG_WCE negotiated writeback takes no writes, and the driver does not write it (VIRTIO 1.4 §2.5.1)", async () => {
  const made = await rig({ driver: { decline: [F.CONFIG_WCE] } });
  const { guest, transport, device } = made.machine;
  const { writes } = transport.counters;
  const error = assertThrows(() => guest.setWriteback(false), Error);
  assertEquals([error.name, error.message], ["GuestIoError", "setWriteback failed: S_UNSUPP"]);
  assertEquals(transport.counters.writes, writes);
  transport.write(CONFIG + WRITEBACK, 1, 0);
  assertEquals(device.writethrough, false);
  assertEquals(await flushes(made), WRITEBACK_COUNTS);
  await made.machine.close();
});

Deno.test("a reset brings the cache mode back to what the device starts with", async () => {
  for (const writeback of [true, false]) {
    const made = await rig({ device: { writeback } });
    made.machine.guest.setWriteback(!writeback);
    assertEquals(made.machine.device.writethrough, writeback);
    await made.machine.guest.reset();
    assertEquals(made.machine.guest.config().writeback, writeback ? 1 : 0);
    assertEquals(await flushes(made), writeback ? WRITEBACK_COUNTS : WRITETHROUGH_COUNTS);
    await made.machine.close();
  }
});

Deno.test("a driver may negotiate fewer features after a reset, and the cache mode follows (VIRTIO 1.4 §5.2.5.2)", async () => {
  const made = await rig();
  const { transport } = made.machine;
  const offered = made.machine.device.features;
  for (const [declined, writeback] of [[[F.FLUSH], 0], [[], 1], [[F.FLUSH], 0]] as const) {
    const accepted = offered & ~featureSet(...declined);
    transport.write(0x070, 4, 0);
    transport.write(0x070, 4, 1);
    transport.write(0x070, 4, 3);
    for (const word of [0, 1]) {
      transport.write(0x024, 4, word);
      transport.write(0x020, 4, Number((accepted >> BigInt(32 * word)) & 0xffffffffn));
    }
    assertEquals(transport.read(CONFIG + WRITEBACK, 1), 1, "what the device starts with, until FEATURES_OK");
    transport.write(0x070, 4, 11);
    assertEquals(transport.read(CONFIG + WRITEBACK, 1), writeback);
  }
  await made.machine.guest.reset();
  await made.machine.close();
});
