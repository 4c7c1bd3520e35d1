/**
 * The numbers of a served device as text for Prometheus (exposition format 0.0.4).
 *
 * @module
 */

import { type Figures, type KindFigures, RESULTS, type Single } from "./figures.ts";

/** What the text is sent as. */
export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** What is known of the disk and does not change. */
export interface ServedDisk {
  readonly image: string;
  readonly format: string;
}

/** Upper ends of the buckets of latency: powers of two of nanoseconds, from 1 us to 17 s. */
const EDGES: readonly number[] = Array.from({ length: 25 }, (_, i) => 2 ** (10 + i));

interface SingleMetric {
  readonly name: string;
  readonly type: "counter" | "gauge";
  readonly help: string;
  readonly figure: Single;
}

const SINGLES: readonly SingleMetric[] = [
  {
    name: "vblk_requests_in_flight",
    type: "gauge",
    help: "Requests that were started and have not ended.",
    figure: "inFlight",
  },
  {
    name: "vblk_requests_started_total",
    type: "counter",
    help: "Requests that were taken from a ring.",
    figure: "started",
  },
  {
    name: "vblk_queue_depth_sum",
    type: "counter",
    help: "Sum of the requests in flight as each one started; by vblk_requests_started_total, the mean depth.",
    figure: "depthSum",
  },
  {
    name: "vblk_requests_replayed_total",
    type: "counter",
    help: "Requests that were in flight as the process before this one ended, and were carried out again.",
    figure: "replayed",
  },
  { name: "vblk_batches_total", type: "counter", help: "Looks at a ring that found buffers.", figure: "batches" },
  {
    name: "vblk_batch_buffers_total",
    type: "counter",
    help: "Buffers returned; by vblk_batches_total, the mean batch.",
    figure: "published",
  },
  { name: "vblk_kicks_total", type: "counter", help: "Notifications by the driver that were seen.", figure: "kicks" },
  { name: "vblk_calls_total", type: "counter", help: "Notifications of the driver.", figure: "calls" },
  {
    name: "vblk_calls_suppressed_total",
    type: "counter",
    help: "Batches that the driver wanted no notification of.",
    figure: "callsSuppressed",
  },
  {
    name: "vblk_table_cache_hits_total",
    type: "counter",
    help: "Parts of qcow2 tables that were in memory when they were needed.",
    figure: "tableHits",
  },
  {
    name: "vblk_table_cache_misses_total",
    type: "counter",
    help: "Parts of qcow2 tables that had to be read.",
    figure: "tableMisses",
  },
  { name: "vblk_disk_size_bytes", type: "gauge", help: "Size of the disk.", figure: "sizeBytes" },
  { name: "vblk_front_ends_total", type: "counter", help: "Front-ends that connected.", figure: "frontEnds" },
  { name: "vblk_front_end_connected", type: "gauge", help: "1 while a front-end is connected.", figure: "connected" },
];

/** The whole text. */
export function metricsText(figures: Figures, { image, format }: ServedDisk): string {
  // Reads and writes are there from the start: a rate needs a first value.
  const kinds = figures.kinds(true).filter(({ kind, latency }) =>
    latency.count > 0 || /^(read|write|flush)$/.test(kind)
  );
  const lines = [
    ...head("vblk_info", "gauge", "What is served."),
    `vblk_info{image=${quoted(image)},format=${quoted(format)}} 1`,
    ...head("vblk_requests_total", "counter", "Requests that ended, by kind and result."),
    ...kinds.flatMap(({ kind, results }) =>
      RESULTS.map((result) => `vblk_requests_total{kind="${kind}",result="${result}"} ${results[result]}`)
    ),
    ...head("vblk_request_bytes_total", "counter", "Bytes of data that were read and written."),
    ...kinds.filter(({ kind }) => kind === "read" || kind === "write")
      .map(({ kind, bytes }) => `vblk_request_bytes_total{kind="${kind}"} ${bytes}`),
    ...head("vblk_request_duration_seconds", "histogram", "From the ring to the status, by kind."),
    ...kinds.flatMap(histogramLines),
    ...SINGLES.flatMap(({ name, type, help, figure }) => [
      ...head(name, type, help),
      `${name} ${figures.get(figure)}`,
    ]),
  ];
  return `${lines.join("\n")}\n`;
}

function head(name: string, type: string, help: string): string[] {
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
}

function histogramLines({ kind, latency }: KindFigures): string[] {
  const name = "vblk_request_duration_seconds";
  // The thread goes on counting meanwhile, and a bucket must never hold more than the next one.
  let most = 0;
  const buckets = EDGES.map((edge) => {
    most = Math.max(most, latency.countBelow(edge));
    return `${name}_bucket{kind="${kind}",le="${edge / 1e9}"} ${most}`;
  });
  const count = Math.max(most, latency.count);
  return [
    ...buckets,
    `${name}_bucket{kind="${kind}",le="+Inf"} ${count}`,
    `${name}_sum{kind="${kind}"} ${latency.sum / 1e9}`,
    `${name}_count{kind="${kind}"} ${count}`,
  ];
}

/** A label's value: what the format wants escaped is escaped. */
function quoted(text: string): string {
  return `"${text.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n")}"`;
}
