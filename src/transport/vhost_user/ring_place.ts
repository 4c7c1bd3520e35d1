/**
 * Where the parts of a ring are in guest memory ("Memory access"), and where writes to it are logged ("Migration").
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import { packedSizes } from "../../virtio/virtqueue/packed_layout.ts";
import { splitSizes } from "../../virtio/virtqueue/split_layout.ts";
import type { LoggedRange } from "./dirty_log.ts";
import type { MemoryTable } from "./memory_table.ts";
import { vhostUserViolation } from "./rules.ts";
import { VHOST_VRING_F_LOG, type VringAddress } from "./vhost_user_layout.ts";

/** The parts of a ring, by guest address. */
export interface RingAddresses {
  readonly descAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
}

function sizesOf(size: number, packed: boolean): { desc: number; driver: number; device: number } {
  return packed ? packedSizes(size) : splitSizes(size);
}

/** Translates the addresses of a ring, which are user addresses; each part must lie in one region. */
export function locateRing(
  table: MemoryTable,
  address: VringAddress,
  size: number,
  packed: boolean,
): RingAddresses | Violation {
  const sizes = sizesOf(size, packed);
  const descAddress = table.guestAddressOf(address.descriptor, sizes.desc);
  const driverAddress = table.guestAddressOf(address.available, sizes.driver);
  const deviceAddress = table.guestAddressOf(address.used, sizes.device);
  if (descAddress !== null && driverAddress !== null && deviceAddress !== null) {
    return { descAddress, driverAddress, deviceAddress };
  }
  const part = descAddress === null ? "descriptors" : driverAddress === null ? "available ring" : "used ring";
  const known = `${table.count} region${table.count === 1 ? " is" : "s are"} known`;
  return vhostUserViolation("ring-memory", `the ${part} of ring ${address.index} lie elsewhere; ${known}`);
}

function isLogged(address: VringAddress): boolean {
  return (address.flags >> VHOST_VRING_F_LOG & 1) === 1;
}

/** Where the log must reach so that writes to the used ring can be logged; 0 when they are not. */
export function logEnd(address: VringAddress, size: number, packed: boolean): number {
  return isLogged(address) ? address.log + sizesOf(size, packed).device : 0;
}

/** What is marked when the used ring was written; nothing when the front-end does not want it. */
export function loggedRanges(
  table: MemoryTable,
  address: VringAddress,
  size: number,
  packed: boolean,
): LoggedRange[] {
  if (!isLogged(address)) return [];
  const sizes = sizesOf(size, packed);
  const used: LoggedRange = [address.log, sizes.device];
  if (!packed) return [used];
  // The used descriptors of a packed ring are in the descriptor ring, of whose place `log` says nothing.
  const ring = table.guestAddressOf(address.descriptor, sizes.desc);
  return ring === null ? [used] : [used, [ring, sizes.desc]];
}
