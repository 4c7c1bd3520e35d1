/**
 * The rules that a driver can break at the registers, with the sections that state them.
 *
 * @module
 */

import type { Rule, Violation } from "../../virtio/violation.ts";

const RULES = {
  "register-unknown": { section: "4.2.2.2", expected: "only registers of the table are accessed" },
  "register-read-only": { section: "4.2.2.2", expected: "read-only registers are not written" },
  "register-write-only": { section: "4.2.2.2", expected: "write-only registers are not read" },
  "register-width": { section: "4.2.2.2", expected: "control registers are accessed with 32 bits, aligned" },
  "status-cleared": { section: "2.1.1", expected: "no status bit is cleared but by a reset" },
  "status-order": { section: "3.1.1", expected: "FEATURES_OK comes before DRIVER_OK" },
  "features-late": { section: "3.1.1", expected: "features are accepted before FEATURES_OK" },
  "queue-unknown": { section: "4.2.3.2", expected: "only queues with a QueueSizeMax above zero are used" },
  "queue-early": { section: "3.1.1", expected: "queues are set up after FEATURES_OK" },
  "queue-ready": { section: "4.2.2.2", expected: "a queue's set-up is not touched while QueueReady is not zero" },
  "queue-twice": { section: "4.2.3.2", expected: "a queue is not set up while it is in use" },
  "queue-size-max": { section: "4.2.2.2", expected: "QueueSize is at most QueueSizeMax" },
  "queue-reset": { section: "2.6.1", expected: "QueueReset is written only with VIRTIO_F_RING_RESET negotiated" },
  "notify-unknown": { section: "2.9", expected: "a notification names a queue that is ready" },
  "notify-early": { section: "3.1.1", expected: "nothing is notified before DRIVER_OK" },
  "config-early": { section: "3.1.1", expected: "the configuration is not written before FEATURES_OK" },
  "suspend": { section: "3.4.1", expected: "SUSPEND is set only with VIRTIO_F_SUSPEND negotiated" },
  "in-reset": { section: "2.4.2", expected: "the driver waits until the status reads 0 after a reset" },
} satisfies Record<string, Rule>;

/** Name of a rule of the register file. */
export type MmioRule = keyof typeof RULES;

/** Makes the violation of `rule` with what was found. */
export function mmioViolation(rule: MmioRule, found: string): Violation {
  return { rule, ...RULES[rule], found };
}
