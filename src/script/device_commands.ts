/**
 * Requests that qemu-io has no command for: `identify`, `lifetime`, `secure_erase`, and the cache switch `writeback`.
 *
 * @module
 */

import { VIRTIO_BLK_F_CONFIG_WCE } from "../blk/blk_layout.ts";
import { hasFeature } from "../virtio/features.ts";
import { MAX_BYTES, readArguments, sizeAt } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import { shown, timed } from "./data_common.ts";
import { transferResult } from "./report.ts";
import { table } from "./table.ts";

async function identify(invocation: Invocation): Promise<Result> {
  return await timed("identify", invocation, async () => {
    const id = await invocation.session.machine.guest.identify();
    return { text: [id], json: { id } };
  });
}

const PRE_EOL = [
  "not defined",
  "normal",
  "warning: 80 % of reserved blocks used",
  "urgent: 90 % of reserved blocks used",
];

async function lifetime(invocation: Invocation): Promise<Result> {
  return await timed("lifetime", invocation, async () => {
    const { preEolInfo, typA, typB } = await invocation.session.machine.guest.lifetime();
    return {
      text: table([
        ["pre_eol_info", String(preEolInfo), PRE_EOL[preEolInfo] ?? "reserved"],
        ["device_lifetime_est_typ_a", String(typA), wear(typA)],
        ["device_lifetime_est_typ_b", String(typB), wear(typB)],
      ]),
      json: { preEolInfo, typA, typB },
    };
  });
}

function wear(value: number): string {
  if (value === 0) return "not defined";
  return value <= 10 ? `up to ${value * 10} % of the lifetime used` : "lifetime exceeded";
}

async function secureErase(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  const args = readArguments(invocation);
  if (args.operands.length !== 2) throw usageError(command);
  const [offset, length] = args.operands.map((index) => sizeAt(invocation, index));
  [offset, length].forEach((value, i) => {
    if (value % 512 === 0) return;
    // Half a sector can't be erased, and more than was asked for must not be.
    const name = i === 0 ? "offset" : "count";
    throw new CommandError(`${value} is not a sector-aligned value for '${name}'`, { word: args.operands[i] });
  });
  if (length > MAX_BYTES) throw new CommandError(`length cannot exceed ${MAX_BYTES}`, { word: args.operands[1] });
  return await timed("secure_erase", invocation, async (done) => {
    await session.machine.guest.secureErase(offset, length);
    return transferResult({ verb: "erased", offset, lengthBytes: length, seconds: done() }, shown(args));
  });
}

function writeback({ session, words }: Invocation): Result {
  const { guest, device } = session.machine;
  if (words.length > 1) {
    const { text } = words[1];
    if (text !== "on" && text !== "off") throw new CommandError(`${text} is neither on nor off`, { word: 1 });
    if (!hasFeature(guest.features, VIRTIO_BLK_F_CONFIG_WCE)) {
      throw new CommandError("writeback failed: Operation not supported", {
        hint: "the driver can switch the cache only when CONFIG_WCE was negotiated",
      });
    }
    guest.setWriteback(text === "on");
    return SILENT;
  }
  const mode = device.writethrough ? "writethrough" : "writeback";
  return { text: [`the cache is in ${mode} mode`], json: { mode } };
}

/** The commands of this file. */
export const DEVICE_COMMANDS: readonly Command[] = [
  { name: "identify", summary: "sends a GET_ID: prints the device ID string", sends: true, run: identify },
  { name: "lifetime", summary: "sends a GET_LIFETIME: prints the wear of the medium", sends: true, run: lifetime },
  {
    name: "secure_erase",
    args: "[-Cq] off len",
    summary: "sends a SECURE_ERASE: erases whole sectors for good",
    help: ["Example: secure_erase 0 64k", "", "The device offers it with --device secure-erase=on."],
    count: [2, Infinity],
    writes: true,
    sends: true,
    letters: "Cq",
    run: secureErase,
  },
  {
    name: "writeback",
    args: "[on|off]",
    summary: "prints or switches the mode of the device's cache, by its configuration",
    count: [0, 1],
    run: writeback,
  },
];
