/**
 * What a machine did, in numbers: requests, bytes, latency, batches, and the exits that a virtual machine would have
 * paid for.
 *
 * @module
 */

import { VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "./blk/blk_layout.ts";
import type { BlkDevice } from "./blk/device.ts";
import { REQUEST_KINDS } from "./blk/request.ts";
import type { BlockDriver } from "./guest/block_driver.ts";
import type { RequestSlot } from "./guest/request_slot.ts";
import { formatSize } from "./image/size.ts";
import { Histogram } from "./trace/histogram.ts";
import type { MmioTransport } from "./transport/mmio/mmio_transport.ts";

/** Numbers of one kind of request. */
export interface KindReport {
  /** Name of the request type, as in `writeZeroes`; `chain` for one made by hand. */
  readonly kind: string;
  /** Requests that ended. */
  readonly requests: number;
  /** Those of them whose status was not S_OK. */
  readonly failed: number;
  /** Bytes of data, for reads and writes. */
  readonly bytes: number;
  /** From submission to completion, in microseconds. */
  readonly latency: { readonly mean: number; readonly p50: number; readonly p99: number; readonly max: number };
}

/** All numbers, as `--stats --json` prints them. */
export interface StatisticsReport {
  /** One for each kind of request that there was. */
  readonly kinds: readonly KindReport[];
  /** Requests that ended. */
  readonly requests: number;
  /** Buffers that the device returned. */
  readonly buffers: number;
  /** How many times the device published used buffers. */
  readonly batches: number;
  /** Buffers in a batch, on average. */
  readonly meanBatch: number;
  /** Available buffer notifications: sent by the driver. */
  readonly kicks: number;
  /** Used buffer notifications: sent by the device. */
  readonly calls: number;
  /** Used buffer notifications that the driver did not want. */
  readonly callsSuppressed: number;
  /** Times that the interrupt line went up. */
  readonly interrupts: number;
  /** Reads and writes of registers since the driver was ready; kicks are among them. */
  readonly registerAccesses: number;
  /** Register accesses and interrupts, each of which is an exit of a virtual machine, by request. */
  readonly exitsPerRequest: number;
}

/** Collects the numbers of one machine. */
export class Statistics {
  readonly #kinds = new Map<number, { failed: number; bytes: number; latency: Histogram }>();
  readonly #transport: MmioTransport;
  readonly #device: BlkDevice;
  /** What the counters stood at when the driver was ready: booting is not the price of a request. */
  readonly #booted: { reads: number; writes: number; notifications: number; interrupts: number };
  readonly #driver: BlockDriver;

  /** Reads the counters of these three. */
  constructor(driver: BlockDriver, transport: MmioTransport, device: BlkDevice) {
    this.#driver = driver;
    this.#transport = transport;
    this.#device = device;
    this.#booted = { ...transport.counters };
  }

  /** Starts to look at every request. Until then only counters run, which cost nothing. */
  enable(): void {
    this.#driver.onComplete = (slot) => this.#add(slot);
  }

  /** The numbers so far. */
  report(): StatisticsReport {
    const kinds = [...this.#kinds].map(([type, { failed, bytes, latency }]): KindReport => ({
      kind: REQUEST_KINDS[type] ?? "chain",
      requests: latency.count,
      failed,
      bytes,
      latency: {
        mean: latency.mean,
        p50: latency.percentile(0.5),
        p99: latency.percentile(0.99),
        max: latency.max,
      },
    }));
    const requests = kinds.reduce((sum, kind) => sum + kind.requests, 0);
    const rings = this.#device.counters;
    const { counters } = this.#transport;
    const registerAccesses = counters.reads - this.#booted.reads + counters.writes - this.#booted.writes;
    const interrupts = counters.interrupts - this.#booted.interrupts;
    return {
      kinds,
      requests,
      buffers: rings.pushed,
      batches: rings.batches,
      meanBatch: rings.batches === 0 ? 0 : rings.pushed / rings.batches,
      kicks: counters.notifications - this.#booted.notifications,
      calls: rings.calls,
      callsSuppressed: rings.callsSuppressed,
      interrupts,
      registerAccesses,
      exitsPerRequest: requests === 0 ? 0 : (registerAccesses + interrupts) / requests,
    };
  }

  #add(slot: RequestSlot): void {
    let kind = this.#kinds.get(slot.type);
    if (kind === undefined) this.#kinds.set(slot.type, kind = { failed: 0, bytes: 0, latency: new Histogram() });
    kind.latency.add((performance.now() - slot.submittedAt) * 1000);
    if (slot.status !== VIRTIO_BLK_S_OK) kind.failed++;
    else if (slot.type === VIRTIO_BLK_T_IN || slot.type === VIRTIO_BLK_T_OUT) {
      // All but the header and the status byte.
      for (let i = 1; i < slot.count - 1; i++) kind.bytes += slot.elements[i].length;
    }
  }
}

/** An aligned table, a row for each kind of request. */
export function kindLines(kinds: readonly KindReport[]): string[] {
  const rows = [["request", "count", "failed", "data", "mean us", "p50 us", "p99 us", "max us"]];
  for (const { kind, requests, failed, bytes, latency } of kinds) {
    const times = [latency.mean, latency.p50, latency.p99, latency.max].map((value) => value.toFixed(0));
    rows.push([kind, String(requests), String(failed), bytes > 0 ? formatSize(bytes) : "-", ...times]);
  }
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows.map((row) =>
    row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  ")
  );
}

/** The printed form: an aligned table, then a line for the rings and one for the exits. */
export function formatStatistics(report: StatisticsReport): string[] {
  return [
    ...kindLines(report.kinds),
    `rings: ${report.buffers} buffers in ${report.batches} batches (${report.meanBatch.toFixed(1)} each), ` +
    `${report.calls} calls sent, ${report.callsSuppressed} suppressed`,
    `exits: ${report.kicks} kicks, ${report.registerAccesses} register accesses in all, ${report.interrupts} interrupts: ` +
    `${report.exitsPerRequest.toFixed(3)} exits per request`,
  ];
}
