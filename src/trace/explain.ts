/**
 * What a driver did wrong, in plain words: the rule and where it stands, the chain, what was expected, what was
 * found, and what became of it.
 *
 * @module
 */

import { descriptorLines } from "./descriptors.ts";
import type { TraceEvent, TraceSink } from "./events.ts";

/** The event of a broken rule. */
export type ViolationEvent = Extract<TraceEvent, { event: "violation" }>;

const CONSEQUENCES: Readonly<Record<ViolationEvent["consequence"], string>> = {
  "request failed": "the request failed; the device goes on",
  "device needs reset": "the device set DEVICE_NEEDS_RESET and does nothing until it is reset",
  "ignored": "the device ignored it",
  "refused": "the device refused it",
};

/** The explanation, a line a fact. */
export function explainLines({ violation, consequence, queue, head, descriptors = [] }: ViolationEvent): string[] {
  const { rule, section, expected, found } = violation;
  const places = [queue === undefined ? [] : `queue ${queue}`, head === undefined ? [] : `head ${head}`].flat();
  return [
    `the driver broke a rule: ${rule} (${sourceOf(section)})`,
    ...places.length === 0 ? [] : [`  where        ${places.join(", ")}`],
    `  expected     ${expected}`,
    `  found        ${found}`,
    `  consequence  ${CONSEQUENCES[consequence]}`,
    ...descriptorLines(descriptors).map((line, i) => `  ${(i === 0 ? "chain" : "").padEnd(11)}  ${line}`),
  ];
}

/** Sections of VIRTIO are numbers; the vhost-user protocol's have titles. */
function sourceOf(section: string): string {
  return /^\d/.test(section) ? `VIRTIO 1.4 §${section}` : `vhost-user, "${section}"`;
}

/** A sink that explains broken rules and leaves out everything else. */
export function explainSink(write: (lines: readonly string[]) => void): TraceSink {
  return (event) => {
    if (event.event === "violation") write(explainLines(event));
  };
}
