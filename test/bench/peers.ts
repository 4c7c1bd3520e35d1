/**
 * `vblk serve` beside `qemu-storage-daemon`: the same client (`qemu-img bench` through libblkio), the same file, the same
 * host cache mode, one I/O thread each, alternating; beside them the limit, fio with io_uring on the file itself.
 *
 *     deno task bench:peers [--quick] [--pin] [--rounds N] [--only WORDS] [--folder FOLDER] [-- FLAGS OF vblk serve]
 *
 * `--pin` keeps the client on one processor and the daemon on another. WORDS pick rows by what stands in them:
 * `--only "raw cached 4 KiB"`. The folder should lie on a disk. The offsets of 4 KiB requests are a fixed stride through
 * the image: not random, but no read-ahead guesses it. The client has its own buffers for what it reads and writes, and of
 * those only so many that no more than three requests of 64 KiB, or one of 1 MiB, are in flight whatever the depth.
 *
 * @module
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { makeTrixie, trixie } from "../trixie.ts";
import { Daemon, type Figures, fioLimit, type Format, type Load, processors, type Served } from "./peer_daemons.ts";
import { alternate, median, printTable, ratio } from "./table.ts";

const DISK_BYTES = 1024 ** 3;
const DEPTHS = [1, 8, 32, 64];
/** What is measured when there is little time. */
const FEW = { depths: [1, 8, 64], loads: ["4 KiB far read", "4 KiB far write", "1 MiB read"] };

/** Steps through all of a disk of a power of two: their number of blocks is odd. */
const STRIDE_BLOCKS = 7919;

const LOADS: readonly {
  readonly name: string;
  readonly write: boolean;
  readonly kib: number;
  readonly far: boolean;
}[] = [
  { name: "4 KiB far read", write: false, kib: 4, far: true },
  { name: "4 KiB far write", write: true, kib: 4, far: true },
  { name: "64 KiB read", write: false, kib: 64, far: false },
  { name: "64 KiB write", write: true, kib: 64, far: false },
  { name: "1 MiB read", write: false, kib: 1024, far: false },
  { name: "1 MiB write", write: true, kib: 1024, far: false },
];

const HEADER = [
  "",
  ...["vblk/s", "QSD/s", "ratio (range)"],
  ...["vblk CPU s/M", "QSD CPU s/M", "ratio"],
  ...["fio/s", "vblk:fio"],
];

interface Plan {
  readonly rounds: number;
  /** How long one run of the client should take. */
  readonly seconds: number;
  readonly only: readonly string[];
  /** Some rows of all kinds, unless rows were picked. */
  readonly few: boolean;
  readonly flags: readonly string[];
}

interface Case {
  readonly name: string;
  readonly load: Load;
}

function casesOf(prefix: string, { only, few }: Plan): Case[] {
  const cases: Case[] = LOADS.flatMap(({ name, write, kib, far }) =>
    DEPTHS.map((depth) => {
      const blockBytes = kib * 1024;
      const stepBytes = blockBytes * (far ? STRIDE_BLOCKS : 1);
      return { name: `${name}, depth ${depth}`, load: { write, blockBytes, stepBytes, depth } };
    })
  );
  const isWanted = ({ name, load }: Case) =>
    !few || FEW.depths.includes(load.depth) && FEW.loads.some((load) => name.startsWith(load));
  return cases.filter(isWanted).filter(({ name }) =>
    only.every((word) => `${prefix}, ${name}`.replaceAll(",", "").includes(word))
  );
}

/** How many requests take about as long as a run should, found by shorter runs that warm both up. */
async function requestsFor(daemons: readonly Daemon[], load: Load, seconds: number): Promise<number> {
  let slowest = Infinity;
  for (const daemon of daemons) {
    const { requestsPerSecond } = await daemon.run(load, Math.max(200, load.depth * 10));
    slowest = Math.min(slowest, requestsPerSecond);
  }
  let fastest = 0;
  for (const daemon of daemons) {
    const { requestsPerSecond } = await daemon.run(load, Math.ceil(slowest * seconds / 5));
    fastest = Math.max(fastest, requestsPerSecond);
  }
  return Math.ceil(fastest * seconds);
}

/** Both daemons through one load; the row of the table. */
async function measure(
  [vblk, qemu]: readonly [Daemon, Daemon],
  { name, load }: Case,
  plan: Plan,
  { path, direct }: Served,
  limit: number,
): Promise<string[]> {
  const prepare = () => direct ? undefined : cache(path);
  await prepare();
  const requests = await requestsFor([vblk, qemu], load, plan.seconds);
  const cpu = { subject: [] as number[], peer: [] as number[] };
  const speed = await alternate(
    plan.rounds,
    async () => {
      await prepare();
      return noted(await vblk.run(load, requests), cpu.subject);
    },
    async () => {
      await prepare();
      return noted(await qemu.run(load, requests), cpu.peer);
    },
  );
  const { median: middle, low, high } = ratio(speed);
  const whole = (value: number) => Math.round(value).toLocaleString("en");
  return [
    name,
    ...[whole(median(speed.subject)), whole(median(speed.peer))],
    `${middle.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`,
    ...[median(cpu.subject).toFixed(1), median(cpu.peer).toFixed(1), ratio(cpu).median.toFixed(2)],
    ...[whole(limit), (median(speed.subject) / limit).toFixed(2)],
  ];
}

function noted({ requestsPerSecond, cpuSecondsPerMillion }: Figures, cpu: number[]): number {
  cpu.push(cpuSecondsPerMillion);
  return requestsPerSecond;
}

/** Has the page cache hold all of a file: some systems take back what was not used for a while (DAMON). */
async function cache(path: string): Promise<void> {
  using file = await Deno.open(path);
  const buffer = new Uint8Array(1 << 22);
  while (await file.read(buffer) !== null);
}

/** An image with every cluster there and in the page cache. */
async function makeImage(folder: string, format: Format): Promise<string> {
  const path = join(folder, `disk.${format}`);
  for (
    const args of [
      ["create", "-q", "-f", format, "-o", "preallocation=full", path, `${DISK_BYTES}`],
      [
        "bench",
        "-w",
        "-f",
        format,
        "-c",
        `${DISK_BYTES / 1024 ** 2}`,
        "-s",
        "1M",
        "--pattern=0x5a",
        "-t",
        "writeback",
        path,
      ],
    ]
  ) {
    const { command, args: all, env } = trixie("qemu-img", ...args);
    const { success, stderr } = await new Deno.Command(command, { args: [...all], env }).output();
    if (!success) throw new Error(`qemu-img ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  }
  // Nothing is left to be written back while something is measured.
  await new Deno.Command("sync", { args: [path] }).output();
  return path;
}

async function bench(folder: string, plan: Plan): Promise<void> {
  const limits = new Map<string, number>();
  const raw = await makeImage(folder, "raw");
  for (const format of ["raw", "qcow2"] as const) {
    const path = format === "raw" ? raw : await makeImage(folder, format);
    for (const direct of [false, true]) {
      const prefix = `${format}, ${direct ? "direct" : "cached"}`;
      const cases = casesOf(prefix, plan);
      if (cases.length === 0) continue;
      const served = { path, format, direct };
      await using vblk = await Daemon.vblk(served, join(folder, "vblk.sock"), plan.flags);
      await using qemu = await Daemon.qemu(served, join(folder, "qemu.sock"));
      const rows: string[][] = [HEADER];
      for (const test of cases) {
        const key = `${direct} ${test.name}`;
        // Of the raw file for qcow2 too: fio would write over its tables.
        if (!direct) await cache(raw);
        const limit = limits.get(key) ?? await fioLimit(raw, test.load, direct, Math.max(1, plan.seconds));
        limits.set(key, limit);
        rows.push(await measure([vblk, qemu], test, plan, served, limit));
      }
      printTable(prefix, rows);
    }
  }
}

const { values, positionals } = parseArgs({
  args: Deno.args,
  options: {
    quick: { type: "boolean", default: false },
    pin: { type: "boolean", default: false },
    rounds: { type: "string" },
    only: { type: "string", default: "" },
    folder: { type: "string" },
  },
  allowPositionals: true,
});
await makeTrixie();
if (values.pin) Object.assign(processors, { client: 0, daemon: 1 });
const folder = await Deno.makeTempDir({ dir: values.folder, prefix: "vblk-bench-" });
try {
  const plan: Plan = {
    rounds: Number(values.rounds ?? (values.quick ? 3 : 5)),
    seconds: values.quick ? 0.15 : 0.6,
    only: values.only.split(" ").filter((word) => word !== ""),
    few: values.quick && values.only === "",
    flags: positionals,
  };
  console.log(
    `vblk serve beside qemu-storage-daemon (QSD): ${navigator.hardwareConcurrency} cores, a disk of 1 GiB, ${plan.rounds} rounds, ` +
      "medians. Ratios are vblk:QSD; more is better for requests, less for CPU seconds per million requests.",
  );
  await bench(folder, plan);
} finally {
  await Deno.remove(folder, { recursive: true });
}
