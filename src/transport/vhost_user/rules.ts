/**
 * The rules of vhost-user that a front-end can break, each with the section of QEMU 10.2's docs/interop/vhost-user that
 * states it (the text has titles, no numbers).
 *
 * @module
 */

import type { Rule, Violation } from "../../virtio/violation.ts";

const RULES = {
  "header-version": { section: "Header", expected: "the lower two bits of the flags are the version, 1" },
  "header-reply": { section: "Header", expected: "a request has the reply flag clear" },
  "payload-length": { section: "Payload", expected: "a payload is no longer than that of the longest message" },
  "payload-size": { section: "Payload", expected: "a message has exactly the payload of its type" },
  "payload-value": { section: "Payload", expected: "a payload holds a value that its message has" },
  "message-unknown": { section: "Front-end message types", expected: "a request is one of the listed types" },
  "message-refused": {
    section: "Protocol features",
    expected: "a request belongs to a protocol feature that the back-end offers",
  },
  "feature-needed": {
    section: "Protocol features",
    expected: "a message that an extension adds comes only when its protocol feature was negotiated",
  },
  "protocol-feature-not-offered": {
    section: "Protocol features",
    expected: "a front-end accepts only protocol features that the back-end offers",
  },
  "state": { section: "Ring states", expected: "a message comes in a state that it has a meaning in" },
  "fds-missing": { section: "Communication", expected: "a message brings the file descriptors that it speaks of" },
  "fds-surplus": { section: "Communication", expected: "a message brings no other file descriptors" },
  "fds-late": {
    section: "Communication",
    expected: "file descriptors come with the first byte of a message's header",
  },
  "message-cut": { section: "Communication", expected: "a message is sent to its end" },
  "queue-unknown": {
    section: "Multiple queue support",
    expected: "a message names a queue below the number of queues",
  },
  "queue-setup": { section: "Ring states", expected: "a ring is set up whole before it is started" },
  "memory-region": {
    section: "Memory region description",
    expected: "a region is not empty and its addresses do not wrap",
  },
  "memory-overlap": { section: "Memory access", expected: "an address belongs to one region" },
  "memory-map": { section: "Memory region description", expected: "a region lies in the file that comes with it" },
  "memory-slots": {
    section: "Front-end message types",
    expected: "there are at most as many regions as GET_MAX_MEM_SLOTS says",
  },
  "memory-unknown": {
    section: "Front-end message types",
    expected: "a region to remove was added with the same addresses and size",
  },
  "ring-memory": { section: "Memory access", expected: "a ring lies in one memory region, by its user address" },
  "log-range": { section: "Migration", expected: "the log covers all that is logged in it" },
  "log-map": { section: "Log description", expected: "the log lies in the file that comes with it" },
  "inflight-range": {
    section: "Inflight description",
    expected: "the area is for queues that there are, and large enough for them",
  },
  "inflight-map": { section: "Inflight description", expected: "the area lies in the file that comes with it" },
  "inflight-content": {
    section: "Inflight I/O tracking",
    expected: "the area holds what a back-end wrote for this ring",
  },
  "config-range": { section: "Virtio device config space", expected: "an access lies in the configuration space" },
  "config-read-only": {
    section: "Front-end message types",
    expected: "SET_CONFIG writes read-only fields only in a live migration",
  },
  "status": { section: "Front-end message types", expected: "a device status is a byte as VIRTIO defines it" },
  "host": { section: "Communication", expected: "the machine can do what the message needs" },
} satisfies Record<string, Rule>;

/** Name of a rule of the protocol. */
export type VhostUserRule = keyof typeof RULES;

/** Makes the violation of `rule` with what was found. */
export function vhostUserViolation(rule: VhostUserRule, found: string): Violation {
  return { rule, ...RULES[rule], found };
}

/** The printed form: `found; expected (vhost-user, "section")`. */
export function formatVhostUserViolation(violation: Violation): string {
  // What the rings and the negotiation find is a matter of VIRTIO, whose sections are numbers.
  const source = /^\d/.test(violation.section)
    ? `VIRTIO 1.4 §${violation.section}`
    : `vhost-user, "${violation.section}"`;
  return `${violation.found}; ${violation.expected} (${source})`;
}
