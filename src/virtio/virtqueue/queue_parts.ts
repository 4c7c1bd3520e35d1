/**
 * Where the three parts of a virtqueue lie in guest memory (VIRTIO 1.4 §2.6).
 *
 * @module
 */

import type { GuestMemory } from "../../memory/guest_memory.ts";
import type { MemoryRegion } from "../../memory/region.ts";
import type { Violation } from "../violation.ts";
import { virtqueueViolation } from "./rules.ts";

/** Where the driver put a queue, and what was negotiated about it. */
export interface VirtqueueConfig {
  /** Where the ring and its buffers are. */
  readonly memory: GuestMemory;
  /** Number of descriptors. */
  readonly size: number;
  /** Guest-physical address of the Descriptor Area (§2.6). */
  readonly descAddress: number;
  /** Guest-physical address of the Driver Area: available ring, or driver event suppression. */
  readonly driverAddress: number;
  /** Guest-physical address of the Device Area: used ring, or device event suppression. */
  readonly deviceAddress: number;
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIdx: boolean;
  /** VIRTIO_F_INDIRECT_DESC was negotiated. */
  readonly indirect: boolean;
  /** VIRTIO_F_IN_ORDER was negotiated. */
  readonly inOrder: boolean;
}

/** Where a part of a queue lies. */
export interface QueuePart {
  readonly region: MemoryRegion;
  /** Where it starts in the region, in bytes. */
  readonly offset: number;
}

/**
 * Finds the three parts of a queue in guest memory and checks their alignment.
 *
 * @returns the parts, or the rule that the driver broke
 */
export function locateParts(
  config: VirtqueueConfig,
  packed: boolean,
  sizes: { desc: number; driver: number; device: number },
  alignment: { desc: number; driver: number; device: number },
): { desc: QueuePart; driver: QueuePart; device: QueuePart } | Violation {
  const found: Partial<Record<"desc" | "driver" | "device", QueuePart>> = {};
  for (const part of ["desc", "driver", "device"] as const) {
    const address = config[`${part}Address`];
    const align = alignment[part];
    const name = PART_NAMES[part][packed ? 1 : 0];
    // An address that no number holds is nowhere in memory, whatever its alignment.
    if (address !== Infinity && address % align !== 0) {
      const what = `the ${name} is at ${formatAddress(address)}, not a multiple of ${align}`;
      return virtqueueViolation("queue-alignment", what, packed);
    }
    const region = config.memory.regionHolding(address, sizes[part]);
    if (region === null) {
      const what = `the ${name} (${sizes[part]} bytes at ${formatAddress(address)}) is not`;
      return virtqueueViolation("queue-memory", what, packed);
    }
    const offset = address - region.guestAddress;
    // Atomic access to 16-bit fields needs host alignment too, which a region at an odd address would break.
    if (offset % 2 !== 0) {
      return virtqueueViolation("queue-alignment", `the ${name} lies at an odd place of its region`, packed);
    }
    found[part] = { region, offset };
  }
  return found as Record<"desc" | "driver" | "device", QueuePart>;
}

const PART_NAMES = {
  desc: ["descriptor table", "descriptor ring"],
  driver: ["available ring", "driver event suppression structure"],
  device: ["used ring", "device event suppression structure"],
} as const;

/** The printed form of a guest address. */
export function formatAddress(address: number): string {
  return address === Infinity ? "an address of 2^53 or more" : `0x${address.toString(16)}`;
}
