/**
 * The rules that a driver can break in a virtqueue, with the sections that state them.
 *
 * @module
 */

import type { Rule, Violation } from "../violation.ts";

interface VirtqueueRow extends Rule {
  /** The section that states the rule for the packed layout, where it is another. */
  readonly packed?: string;
}

const RULES = {
  "queue-size": { section: "2.7", expected: "a split queue's size is a power of two from 1 to 32768" },
  "packed-queue-size": { section: "2.8.10.1", expected: "a packed queue's size is a number from 1 to 32768" },
  "queue-alignment": {
    section: "2.7.1",
    packed: "2.8.11",
    expected: "each part of a queue starts at a multiple of its alignment",
  },
  "queue-memory": {
    section: "2.7",
    packed: "2.8.10.1",
    expected: "each part of a queue is contiguous in guest memory",
  },
  "avail-jump": { section: "2.7.13", expected: "at most one queue size of buffers is available at a time" },
  "head-range": { section: "2.7.13.2", expected: "an entry of the available ring is below the queue size" },
  "head-in-flight": {
    section: "2.7.13.1",
    expected: "a descriptor is free until the device has returned the buffer that it belongs to",
  },
  "id-in-flight": {
    section: "2.8.21.1",
    expected: "a buffer ID is free until the device has returned the buffer that it belongs to",
  },
  "desc-shared": { section: "2.7.13.1", expected: "a descriptor belongs to one buffer at a time" },
  "ring-overrun": { section: "2.8.16", expected: "a descriptor is not made available again before it was used" },
  "list-unavailable": {
    section: "2.8.17",
    expected: "all descriptors of a list are made available before its first one",
  },
  "desc-range": { section: "2.7.5", expected: "the next field is below the number of descriptors in the table" },
  "chain-too-long": {
    section: "2.7.5.3.1",
    packed: "2.8.17",
    expected: "a chain has at most as many descriptors as the queue; a longer one is too long or has a loop",
  },
  "indirect-not-negotiated": {
    section: "2.7.5.3.1",
    packed: "2.8.19",
    expected: "INDIRECT is used only when VIRTIO_F_INDIRECT_DESC was negotiated",
  },
  "indirect-nested": { section: "2.7.5.3.1", expected: "an indirect table holds no descriptor with INDIRECT" },
  "indirect-next": {
    section: "2.7.5.3.1",
    packed: "2.8.19",
    expected: "a descriptor with INDIRECT is not linked to another by NEXT",
  },
  "indirect-length": {
    section: "2.7.5.3",
    packed: "2.8.7",
    expected: "an indirect table holds one descriptor or more of 16 bytes each",
  },
  "indirect-memory": { section: "2.7.5.3", packed: "2.8.7", expected: "an indirect table lies in guest memory" },
  "unmapped": { section: "2.7.5", packed: "2.8.13", expected: "a buffer lies in guest memory" },
  "readable-after-writable": {
    section: "2.7.4.2",
    packed: "2.8.17",
    expected: "device-writable descriptors come after all device-readable ones",
  },
  "chain-bytes": { section: "2.7.5.2", packed: "2.8.4", expected: "a chain describes at most 2^32 bytes" },
} satisfies Record<string, VirtqueueRow>;

/** Name of a rule of the virtqueue. */
export type VirtqueueRule = keyof typeof RULES;

/** Makes the violation of `rule` with what was found in a queue of the given layout. */
export function virtqueueViolation(rule: VirtqueueRule, found: string, packed: boolean): Violation {
  const row: VirtqueueRow = RULES[rule];
  return { rule, section: packed && row.packed ? row.packed : row.section, expected: row.expected, found };
}
