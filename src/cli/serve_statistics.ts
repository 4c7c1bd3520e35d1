/**
 * The numbers of a served device for people.
 *
 * @module
 */

import { formatSize } from "../image/size.ts";
import type { ServedReport } from "../serve/statistics.ts";
import { kindLines } from "../statistics.ts";

/** What was printed before, and when: the difference is the speed. */
export interface EarlierReport {
  readonly report: ServedReport;
  readonly seconds: number;
}

/**
 * Lines for all numbers.
 *
 * @param seconds since the start
 * @param earlier what was printed before, for the speed since then; since the start without it
 */
export function servedLines(report: ServedReport, seconds: number, earlier?: EarlierReport): string[] {
  const since = Math.max(0.001, seconds - (earlier?.seconds ?? 0));
  const rate = (of: "requests" | "bytes") => Math.max(0, (report[of] - (earlier?.report[of] ?? 0)) / since);
  const { batches, kicks, calls, callsSuppressed, inFlight, tableHits, tableMisses } = report;
  const lines = [
    `rings: ${report.buffers} buffers in ${batches} batches (${report.meanBatch.toFixed(1)} each), ${kicks} kicks, ` +
    `${calls} calls sent, ${callsSuppressed} suppressed; ${inFlight} in flight`,
  ];
  if (report.replayed > 0) {
    lines.push(`replayed: ${report.replayed} requests that were in flight as the process before this one ended`);
  }
  if (report.threads !== undefined) {
    lines.push(`threads: ${report.threads.map(({ buffers }) => buffers).join(" and ")} buffers`);
  }
  if (tableHits + tableMisses > 0) {
    lines.push(`tables: ${tableHits} found in memory, ${tableMisses} read`);
  }
  if (report.kinds.length === 0) return [`vblk: note: statistics after ${seconds.toFixed(0)} s`, ...lines];
  return [
    `vblk: note: statistics after ${seconds.toFixed(0)} s; in the last ${since.toFixed(0)} s ` +
    `${rate("requests").toFixed(0)} requests/s, ${formatSize(Math.round(rate("bytes")))}/s`,
    ...kindLines(report.kinds),
    `depth: ${report.meanDepth.toFixed(1)} requests in flight on average as one started`,
    ...lines,
  ];
}
