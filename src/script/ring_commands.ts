/**
 * What a ring has and qemu-io lacks: `features`, `config`, `ring`, `kick`, `irq`, `reset`, `stats`.
 *
 * @module
 */

import { BLK_FEATURE_NAMES, CONFIG_FIELDS } from "../blk/blk_layout.ts";
import { formatStatistics } from "../statistics.ts";
import { VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING } from "../transport/mmio/mmio_layout.ts";
import { featureBits, featureNames, hasFeature } from "../virtio/features.ts";
import { statusNames } from "../virtio/status_layout.ts";
import { readArguments, readNumber } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import { table } from "./table.ts";

function features({ session }: Invocation): Result {
  const { device, guest } = session.machine;
  const rows = featureBits(device.features).map((bit) => ({
    bit,
    name: featureNames(1n << BigInt(bit), BLK_FEATURE_NAMES)[0],
    offered: true,
    accepted: hasFeature(guest.features, bit),
  }));
  const cells = rows.map(({ bit, name, accepted }) => [String(bit), name, "yes", accepted ? "yes" : "no"]);
  return {
    text: table([["bit", "name", "offered", "accepted"], ...cells], ["right"]),
    json: { features: rows },
  };
}

function config({ session }: Invocation): Result {
  const { guest } = session.machine;
  const values = guest.config();
  const rows = CONFIG_FIELDS.filter(({ name }) => values[name] !== undefined).map(({ name, offset, width }) => [
    `0x${offset.toString(16).padStart(2, "0")}`,
    `le${width * 8}`,
    name,
    String(values[name]),
  ]);
  return {
    text: table([["offset", "type", "field", "value"], ...rows], ["left", "left", "left", "right"]),
    json: { config: values, generation: guest.driver.registers.read("ConfigGeneration") },
  };
}

function ring(invocation: Invocation): Result {
  const { session, command } = invocation;
  const args = readArguments<{ q: number }>(invocation, { q: (text, word) => readQueue(invocation, text, word) });
  if (args.operands.length > 0) throw usageError(command, "ring takes no operands", args.operands[0]);
  const { queues } = session.machine.guest.driver;
  const text: string[] = [];
  const json: Record<string, unknown>[] = [];
  queues.forEach((queue, index) => {
    if (args.values.q !== undefined && args.values.q !== index) return;
    const [head, ...rest] = queue.describe();
    text.push(`queue ${index}: ${head}`, ...rest);
    json.push({ queue: index, size: queue.size, free: queue.freeCount, addresses: queue.addresses, lines: rest });
  });
  return { text, json: { queues: json } };
}

function kick(invocation: Invocation): Result {
  const { session, words } = invocation;
  const queue = words.length > 1 ? readQueue(invocation, words[1].text, 1) : 0;
  session.machine.guest.driver.notify(queue);
  return SILENT;
}

/** Reads the number of a queue that exists. */
export function readQueue({ session }: Invocation, text: string, word: number): number {
  const queue = readNumber(text, word);
  const { queueCount } = session.machine.guest;
  if (queue < queueCount) return queue;
  const have = queueCount === 1 ? "there is only queue 0" : `there are queues 0 to ${queueCount - 1}`;
  throw new CommandError(`there is no queue ${queue}: ${have}`, { word, hint: "--device num-queues=N makes more" });
}

function irq({ session, words }: Invocation): Result {
  const { guest, transport } = session.machine;
  const wanted = words[1]?.text;
  if (wanted !== undefined && wanted !== "on" && wanted !== "off") {
    throw new CommandError(`${wanted} is neither on nor off`, { word: 1 });
  }
  if (wanted !== undefined) {
    session.interrupts = wanted === "on";
    if (wanted === "on") guest.driver.handleInterrupt();
    return SILENT;
  }
  const reason = guest.driver.registers.read("InterruptStatus");
  const usedBuffer = (reason & VIRTIO_MMIO_INT_VRING) !== 0;
  const configChange = (reason & VIRTIO_MMIO_INT_CONFIG) !== 0;
  const names = [usedBuffer ? "used buffer" : "", configChange ? "configuration change" : ""].filter((name) => name);
  const before = guest.driver.inFlightCount;
  guest.driver.handleInterrupt();
  const completed = before - guest.driver.inFlightCount;
  const { interrupts } = transport.counters;
  const taken = session.interrupts ? "as they come" : "by this command only";
  return {
    text: [
      `InterruptStatus 0x${reason.toString(16)}: ${names.join(", ") || "nothing pending"}`,
      `requests completed by handling it: ${completed}; still in flight: ${guest.driver.inFlightCount}`,
      `interrupts so far: ${interrupts}; the driver takes them ${taken}`,
    ],
    json: { interruptStatus: reason, usedBuffer, configChange, completed, interrupts, automatic: session.interrupts },
  };
}

async function reset(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  const args = readArguments<{ q: number }>(invocation, { q: (text, word) => readQueue(invocation, text, word) });
  if (args.operands.length > 0) throw usageError(command, "reset takes no operands", args.operands[0]);
  const { guest, transport } = session.machine;
  if (args.values.q === undefined) {
    await guest.reset();
  } else {
    if (!featureNames(guest.features).includes("RING_RESET")) {
      throw new CommandError("reset -q failed: Operation not supported", {
        hint: "one queue can be reset only when RING_RESET was negotiated",
      });
    }
    await guest.resetQueue(args.values.q);
  }
  const names = statusNames(transport.status);
  return { text: [`device status: ${names}`], json: { status: transport.status, names: names.split(" ") } };
}

function stats({ session }: Invocation): Result {
  const report = session.machine.statistics.report();
  return { text: formatStatistics(report), json: { statistics: report } };
}

/** The commands of this file. */
export const RING_COMMANDS: readonly Command[] = [
  { name: "features", summary: "prints what the device offers and what the driver accepted", run: features },
  { name: "config", summary: "prints the configuration space, field by field, as the driver reads it", run: config },
  {
    name: "ring",
    args: "[-q queue]",
    summary: "prints the rings and descriptors of all queues, or of one",
    help: ["Example: ring -q 0"],
    count: [0, 2],
    letters: "q:",
    run: ring,
  },
  {
    name: "kick",
    args: "[queue]",
    summary: "notifies the device of a queue, whether it wants to know or not",
    count: [0, 1],
    run: kick,
  },
  {
    name: "irq",
    args: "[on|off]",
    summary: "prints what interrupt is pending, and handles it",
    help: [
      "Example: irq off   then  aio_read 0 4k  and  ring  show a used buffer that nobody has taken; irq takes it",
      "",
      "With `off` the driver takes no interrupts by itself any more; commands that wait then poll the rings.",
    ],
    count: [0, 1],
    run: irq,
  },
  {
    name: "reset",
    args: "[-q queue]",
    summary: "resets the device and sets it up again; requests in flight are lost",
    help: ["  -q  reset one queue only (RING_RESET)"],
    count: [0, 2],
    letters: "q:",
    run: reset,
  },
  { name: "stats", summary: "prints what happened so far, in numbers", run: stats },
];
