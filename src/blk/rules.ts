/**
 * The rules that a driver can break in a block request, with the sections that state them.
 *
 * @module
 */

import type { Rule, Violation } from "../virtio/violation.ts";

const RULES = {
  "no-status": { section: "5.2.6", expected: "a request ends with a device-writable status byte" },
  "short-header": { section: "5.2.6", expected: "a request begins with a device-readable header of 16 bytes" },
  "read-only": { section: "5.2.6.2", expected: "a device that offers VIRTIO_BLK_F_RO is not written to" },
  "beyond-capacity": { section: "5.2.6.1", expected: "a request stays below the capacity" },
  "data-length": { section: "5.2.6.1", expected: "read and write data is a multiple of 512 bytes" },
  "range-length": { section: "5.2.6.1", expected: "data is one or more ranges of 16 bytes" },
  "too-many-ranges": { section: "5.2.6.1", expected: "a request has at most as many ranges as the device says" },
  "range-too-long": { section: "5.2.5", expected: "a range is at most as long as the device says" },
  "range-flags": { section: "5.2.6.2", expected: "no flag is set but unmap, and that only for write zeroes" },
  "not-negotiated": { section: "5.2.3", expected: "a request type is used only when its feature was negotiated" },
  "unknown-type": { section: "5.2.6", expected: "the type is one that the device knows" },
  "lifetime-length": { section: "5.2.6", expected: "lifetime data takes 6 bytes" },
} satisfies Record<string, Rule>;

/** Name of a rule of the block device. */
export type BlkRule = keyof typeof RULES;

/** Makes the violation of `rule` with what was found. */
export function blkViolation(rule: BlkRule, found: string): Violation {
  return { rule, ...RULES[rule], found };
}
