/**
 * The front-end's memory: regions of files, mapped into this process, each with a guest address and a user address
 * ("Memory region description", "Memory access").
 *
 * What a region says is hostile. It is mapped only when it lies in its file, wraps nowhere and overlaps no other
 * region, by either kind of address. A file that the front-end shortens later is out of anybody's hands.
 *
 * @module
 */

import { GuestMemory } from "../../memory/guest_memory.ts";
import { MemoryRegion } from "../../memory/region.ts";
import type { Violation } from "../../virtio/violation.ts";
import { vhostUserViolation } from "./rules.ts";
import type { MappedBytes, MessageFds, VhostUserHost } from "./seams.ts";
import type { RegionDescription } from "./vhost_user_layout.ts";

/** Most regions at a time: what GET_MAX_MEM_SLOTS says. A lookup walks over them. */
export const MAX_MEMORY_SLOTS = 64;

interface MappedRegion {
  readonly description: RegionDescription;
  readonly mapping: MappedBytes;
  readonly region: MemoryRegion;
}

/** The regions of one session. */
export class MemoryTable {
  /** The same regions, by guest address. Queues keep this object while regions come and go. */
  readonly memory: GuestMemory = GuestMemory.empty();
  readonly #host: VhostUserHost;
  #regions: readonly MappedRegion[] = [];

  constructor(host: VhostUserHost) {
    this.#host = host;
  }

  /** How many regions there are. */
  get count(): number {
    return this.#regions.length;
  }

  /** The end of the highest region, as a guest address. */
  get guestEnd(): number {
    return Math.max(0, ...this.#regions.map(({ region }) => region.guestAddress + region.sizeBytes));
  }

  /** Adds one region, mapped from the first descriptor. Queues that run see it from the next request on. */
  add(description: RegionDescription, fds: MessageFds): Violation | null {
    if (this.#regions.length >= MAX_MEMORY_SLOTS) {
      return vhostUserViolation("memory-slots", `region ${MAX_MEMORY_SLOTS + 1} came`);
    }
    const refused = checkRegion(description) ?? checkOverlap(description, this.#regions);
    if (refused !== null) return refused;
    const mapped = this.#map(description, fds.at(0));
    if ("rule" in mapped) return mapped;
    this.#set([...this.#regions, mapped]);
    return null;
  }

  /** Whether there is the region to be removed: the mmap offset does not count. */
  has(description: RegionDescription): boolean {
    return this.#find(description) !== undefined;
  }

  /** Removes a region that there is. No queue may lie in it, and no request may refer to it. */
  remove(description: RegionDescription): void {
    const gone = this.#find(description);
    if (gone === undefined) return;
    this.#set(this.#regions.filter((region) => region !== gone));
    gone.mapping.unmap();
  }

  /**
   * Maps a whole new table, one descriptor for each region, and leaves the old one as it is.
   *
   * @returns what puts the new table in the place of the old one, or gives it back; or why it was refused
   */
  prepare(descriptions: readonly RegionDescription[], fds: MessageFds): PreparedTable | Violation {
    const fresh: MappedRegion[] = [];
    const undo = () => fresh.forEach(({ mapping }) => mapping.unmap());
    for (const [i, description] of descriptions.entries()) {
      const refused = checkRegion(description) ?? checkOverlap(description, fresh);
      const mapped = refused ?? this.#map(description, fds.at(i));
      if ("rule" in mapped) {
        undo();
        return mapped;
      }
      fresh.push(mapped);
    }
    const commit = () => {
      const old = this.#regions;
      this.#set(fresh);
      for (const { mapping } of old) mapping.unmap();
    };
    return { commit, undo };
  }

  /** The guest address of a range that lies in one region by its user address, or `null`. */
  guestAddressOf(userAddress: number, lengthBytes: number): number | null {
    for (const { description, region } of this.#regions) {
      const offset = userAddress - description.userAddress;
      if (offset >= 0 && offset < region.sizeBytes) {
        return lengthBytes <= region.sizeBytes - offset ? region.guestAddress + offset : null;
      }
    }
    return null;
  }

  /** Gives all memory back. */
  clear(): void {
    const old = this.#regions;
    this.#set([]);
    for (const { mapping } of old) mapping.unmap();
  }

  #find({ guestAddress, userAddress, sizeBytes }: RegionDescription): MappedRegion | undefined {
    return this.#regions.find(({ description }) =>
      description.guestAddress === guestAddress && description.userAddress === userAddress &&
      description.sizeBytes === sizeBytes
    );
  }

  #map(description: RegionDescription, fd: number): MappedRegion | Violation {
    const { guestAddress, mmapOffset, sizeBytes } = description;
    try {
      const mapping = this.#host.map(fd, mmapOffset, sizeBytes);
      return { description, mapping, region: new MemoryRegion(guestAddress, mapping.bytes) };
    } catch (error) {
      return vhostUserViolation("memory-map", `${describe(description)}: ${messageOf(error)}`);
    }
  }

  #set(regions: readonly MappedRegion[]): void {
    this.#regions = regions;
    this.memory.setRegions(regions.map(({ region }) => region));
  }
}

/** A table that is mapped and not yet in use. Exactly one of the two is called. */
export interface PreparedTable {
  commit(): void;
  undo(): void;
}

/** What an `Error` of the host says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function checkRegion(description: RegionDescription): Violation | null {
  const { guestAddress, userAddress, sizeBytes, mmapOffset } = description;
  const fields = [guestAddress, userAddress, mmapOffset];
  if (sizeBytes === 0 || fields.some((field) => !Number.isSafeInteger(field + sizeBytes))) {
    return vhostUserViolation("memory-region", describe(description));
  }
  // Rings are read and written in units of 16 bits, which must not lie across two.
  if (mmapOffset % 2 !== 0) {
    return vhostUserViolation("memory-region", `${describe(description)} starts at an odd offset of its file`);
  }
  return null;
}

function checkOverlap(description: RegionDescription, others: readonly MappedRegion[]): Violation | null {
  const overlap = (a: number, b: number, other: RegionDescription) =>
    a < b + other.sizeBytes && b < a + description.sizeBytes;
  for (const { description: other } of others) {
    if (
      overlap(description.guestAddress, other.guestAddress, other) ||
      overlap(description.userAddress, other.userAddress, other)
    ) {
      return vhostUserViolation("memory-overlap", `${describe(description)} overlaps ${describe(other)}`);
    }
  }
  return null;
}

function describe({ guestAddress, userAddress, sizeBytes }: RegionDescription): string {
  const hex = (n: number) => n === Infinity ? "2^53 or more" : `0x${n.toString(16)}`;
  return `the region of ${sizeBytes} bytes at guest address ${hex(guestAddress)}, user address ${hex(userAddress)}`;
}
