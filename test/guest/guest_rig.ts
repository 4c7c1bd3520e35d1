/** What the tests of the guest share: a machine with a model of its disk, and random operations on both. */

import { assertEquals } from "@std/assert";
import type { BlkOptions } from "../../src/blk/options.ts";
import type { BlockDriverOptions } from "../../src/guest/block_driver.ts";
import { Guest, type RequestOptions } from "../../src/guest/guest.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { Machine } from "../../src/machine.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import type { TraceEvent } from "../../src/trace/events.ts";
import { Random } from "../random.ts";

export const SECTOR = 512;
export const DISK = 96 * SECTOR;

export interface Made {
  guest: Guest;
  machine: Machine;
  storage: FaultStorage;
  memory: MemoryStorage;
  events: TraceEvent[];
}

export async function machine(
  device: Partial<BlkOptions> = {},
  driver: BlockDriverOptions = {},
  sizeBytes = DISK,
  ramBytes = 4 << 20,
): Promise<Made> {
  const memory = new MemoryStorage(sizeBytes);
  memory.write(0, SegmentList.over(model(sizeBytes)));
  const storage = new FaultStorage(memory);
  const events: TraceEvent[] = [];
  const made = await Machine.start(new RawImage(storage), {
    device,
    driver,
    ramBytes,
    trace: (event) => events.push(event),
  });
  return { guest: made.guest, machine: made, storage, memory, events };
}

export function model(sizeBytes = DISK): Uint8Array<ArrayBuffer> {
  return new Random(3).bytes(sizeBytes);
}

export function stored({ memory }: Made): Uint8Array {
  const bytes = new Uint8Array(memory.sizeBytes);
  memory.read(0, SegmentList.over(bytes));
  return bytes;
}

export function violations({ events }: Made): string[] {
  return events.flatMap((event) => event.event === "violation" ? [event.violation.rule] : []);
}

/** The requests that the device saw: kind, offset, length, sizes of the data elements. */
export function requests({ events }: Made): [kind: string, offset: number, lengthBytes: number, elements: number[]][] {
  return events.flatMap((event, i) => {
    const before = events[i - 1];
    if (event.event !== "request" || before?.event !== "chain") return [];
    // Of an indirect chain the first record is the one that points to the table.
    const list = before.descriptors.some(({ indirect }) => indirect)
      ? before.descriptors.filter(({ indirect }) => indirect)
      : before.descriptors;
    return [[event.kind, event.offset, event.lengthBytes, list.slice(1, -1).map(({ length }) => length)]];
  });
}

/** One random operation at any byte offset, on the guest and on the model. */
export async function step(
  guest: Guest,
  disk: Uint8Array,
  random: Random,
  features: { erase: boolean },
): Promise<void> {
  const options: RequestOptions = random.below(2) ? { queue: random.below(guest.queueCount) } : {};
  const offset = random.below(disk.length);
  const length = random.below(Math.min(5000, disk.length - offset) + 1);
  const sectors = () => {
    const start = random.below(disk.length / SECTOR);
    return [start * SECTOR, random.below(Math.min(20, disk.length / SECTOR - start) + 1) * SECTOR];
  };
  switch (random.below(8)) {
    case 0:
    case 1: {
      const data = random.bytes(length);
      disk.set(data, offset);
      return await guest.write(offset, data, options);
    }
    case 2: {
      const [start, count] = sectors();
      disk.fill(0, start, start + count);
      return await guest.writeZeroes(start, count, { ...options, unmap: random.below(2) === 1 });
    }
    case 3: {
      const [start, count] = sectors();
      disk.fill(0, start, start + count);
      return await (features.erase && random.below(2)
        ? guest.secureErase(start, count, options)
        : guest.discard(start, count, options));
    }
    case 4:
      return await guest.flush(options);
    case 5: {
      // The whole of a range in elements of its own choice.
      const [start, count] = sectors();
      const cut = random.below(count + 1);
      assertEquals(
        await guest.read(start, count, { ...options, segments: [cut, count - cut] }),
        disk.slice(start, start + count),
      );
      return;
    }
    default:
      assertEquals(await guest.read(offset, length, options), disk.slice(offset, offset + length));
  }
}

/** All combinations of the two layouts, notification, order, indirection, sizes and limits. */
export function* combinations(): Generator<{ name: string; device: Partial<BlkOptions>; driver: BlockDriverOptions }> {
  const limits: [string, Partial<BlkOptions>][] = [
    ["no limits", {}],
    ["size_max 512, seg_max 3", { sizeMax: 512, segMax: 3 }],
    ["size_max 1000, seg_max 1", { sizeMax: 1000, segMax: 1 }],
    ["size_max 4096, no seg_max", { sizeMax: 4096, segMaxOffered: false }],
  ];
  const queues: [string, Partial<BlkOptions>][] = [
    ["1 queue of 4", { queueSize: 4 }],
    ["3 queues of 8", { queues: 3, queueSize: 8 }],
    ["2 queues of 256", { queues: 2 }],
  ];
  for (const packed of [false, true]) {
    for (const eventIdx of [true, false]) {
      for (const inOrder of [false, true]) {
        for (const useIndirect of [true, false]) {
          for (const [queuesName, queueOptions] of queues) {
            for (const [limitName, limit] of limits) {
              yield {
                name: `${packed ? "packed" : "split"}, EVENT_IDX ${eventIdx}, IN_ORDER ${inOrder}, ` +
                  `indirect ${useIndirect}, ${queuesName}, ${limitName}`,
                device: { packed, eventIdx, inOrder, ...queueOptions, ...limit, secureErase: true },
                driver: { useIndirect },
              };
            }
          }
        }
      }
    }
  }
}
