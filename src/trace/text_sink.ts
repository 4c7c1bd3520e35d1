/**
 * Events as lines for people. The further a line is from the left, the further its stage is from the driver:
 * driver and notifications, ring, request, image.
 *
 * @module
 */

import { descriptorLines } from "./descriptors.ts";
import type { TraceEvent, TraceExtent, TraceSink } from "./events.ts";
import { explainLines } from "./explain.ts";
import { clock } from "./json_sink.ts";

type Kind = TraceEvent["event"];
type Printer<K extends Kind> = (event: Extract<TraceEvent, { event: K }>) => readonly string[];

/** One row a kind of event: its lines. */
const PRINTERS: { readonly [K in Kind]: Printer<K> } = {
  "device-status": ({ names }) => [`driver sets the device status; it is now ${names}`],
  "features": ({ accepted }) => [`driver accepts ${accepted.join(" ")}`],
  "queue": ({ queue, layout, size, descAddress, driverAddress, deviceAddress }) => [
    `queue ${queue} is ready: ${layout}, ${size} descriptors ` +
    `(descriptors ${hex(descAddress)}, driver area ${hex(driverAddress)}, device area ${hex(deviceAddress)})`,
  ],
  "kick": ({ queue, buffers, sent }) => [
    `driver ${sent ? "==kick==>" : "..kick..."} device   queue ${queue}: ${count(buffers, "buffer")} available` +
    (sent ? "" : ", notification suppressed"),
  ],
  "chain": ({ head, readableBytes, writableBytes, descriptors }) => [
    `  pop     head ${head}: ${readableBytes} bytes for the device to read, ${writableBytes} to write`,
    ...descriptorLines(descriptors).map((line) => `            ${line}`),
  ],
  "request": ({ kind, type, offset, lengthBytes }) => [
    `    request  ${kind} (type ${type}), sector ${
      Number.isFinite(offset) ? offset / 512 : "2^44 or more"
    }, ${lengthBytes} bytes of data`,
  ],
  "extents": ({ extents }) => extents.map((extent) => `      image    ${printExtent(extent)}`),
  "status": ({ name, microseconds }) => [`    status   ${name} after ${microseconds} us`],
  "used": ({ head, bytesWritten }) => [`  push    head ${head}: ${bytesWritten} bytes written`],
  "call": ({ queue, buffers, sent }) => [
    `driver ${sent ? "<==call==" : "...call.."} device   queue ${queue}: ${count(buffers, "buffer")} used` +
    (sent ? "" : ", notification suppressed"),
  ],
  "interrupt": ({ usedBuffer, configChange }) => {
    const reasons = [usedBuffer ? "used buffers" : [], configChange ? "configuration changed" : []].flat();
    return [`driver handles the interrupt: ${reasons.join(", ")}`];
  },
  "violation": (event) => explainLines(event).map((line) => `  ! ${line}`),
  "host-error": ({ message }) => [`      ! host: ${message}`],
};

/** The lines for one event, without a time. */
export function eventLines(event: TraceEvent): readonly string[] {
  // The table has the right printer in each row; that the two belong together is more than the checker can see.
  return (PRINTERS[event.event] as (event: TraceEvent) => readonly string[])(event);
}

/** A sink that prints each event, with the milliseconds since the trace began. */
export function textSink(write: (lines: readonly string[]) => void, now: () => number = clock()): TraceSink {
  return (event) => {
    const time = `${now().toFixed(3).padStart(10)} ms  `;
    const blank = " ".repeat(time.length);
    write(eventLines(event).map((line, i) => (i === 0 ? time : blank) + line));
  };
}

/** Where an extent is. */
const PLACES: Readonly<Record<TraceExtent["kind"], (hostOffset?: number) => string>> = {
  data: (hostOffset) => `stored at offset ${hostOffset}`,
  compressed: (hostOffset) => `stored compressed at offset ${hostOffset}`,
  zero: () => "zeros, stored nowhere",
  unallocated: () => "not in this image: what its backing image has, or zeros",
};

function printExtent({ guestOffset, lengthBytes, kind, hostOffset }: TraceExtent): string {
  return `${lengthBytes} bytes at offset ${guestOffset}: ${PLACES[kind](hostOffset)}`;
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}
