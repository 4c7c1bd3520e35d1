/** `vblk serve --iothreads N`: several threads that a front-end can't tell from one. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { CommandFailure } from "../../src/cli/failure.ts";
import { ServeThreads } from "../../src/cli/serve_threads.ts";
import { close, O, open } from "../../src/host/libc.ts";
import { DescriptorList } from "../../src/host/socket_message.ts";
import { UnixConnection } from "../../src/host/unix_connection.ts";
import { Control, WISH } from "../../src/serve/control.ts";
import { Figures } from "../../src/serve/figures.ts";
import { HandOver } from "../../src/serve/handed_over.ts";
import type { QueueThreadStart, ThreadNews, ThreadStart } from "../../src/serve/thread_start.ts";
import { probeAlignment } from "../../src/storage/uring_direct.ts";
import { Folder } from "../storage/support.ts";
import { config, vringState } from "../transport/vhost_user/front_end.ts";
import {
  assertServes,
  control,
  FrontEnd,
  Guest,
  IOERR,
  OK,
  PATIENCE_MS,
  PERMISSIONS,
  requiresServe,
  ServeProcess,
  TYPE,
} from "./rig.ts";

const MIB = 1 << 20;
const QUEUES = 4;

/** A process with two threads that serves a disk of 4 MiB with four queues. */
class Served implements AsyncDisposable {
  readonly folder = new Folder();
  readonly image = this.folder.file("disk.img", new Uint8Array(4 * MIB));
  readonly socket = this.folder.file("vm.sock");
  readonly control = this.folder.file("control.sock");
  process!: ServeProcess;

  static async start(...args: string[]): Promise<Served> {
    const served = new Served();
    served.process = await ServeProcess.ready([
      ...[served.image, "-f", "raw", "--vhost-user", served.socket, "--control", served.control],
      ...["--device", `num-queues=${QUEUES}`, "--iothreads", "2", ...args],
    ], { permissions: [...PERMISSIONS, "--allow-net"] });
    return served;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

function serving(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `--iothreads: ${name}`, ...requiresServe(), fn });
}

function blockOf(byte: number): Uint8Array {
  return new Uint8Array(4096).fill(byte);
}

serving("what is written by one queue is read and flushed by the others; both threads do their part", async () => {
  await using served = await Served.start("--stats", "--metrics", "0");
  const { process } = served;
  using guest = new Guest({ queues: QUEUES });
  using front = new FrontEnd(served.socket);
  guest.start(front);
  for (let queue = 0; queue < QUEUES; queue++) {
    assertEquals(guest.run(TYPE.write, queue * 4096, 4096, blockOf(queue + 1), queue), OK);
    assertEquals(guest.run(TYPE.flush, 0, 0, undefined, (queue + 1) % QUEUES), OK);
    for (let other = 0; other < QUEUES; other++) {
      assertEquals(guest.read(queue * 4096, 4096, other), blockOf(queue + 1), `queue ${other} after ${queue}`);
    }
  }
  const each = QUEUES * (QUEUES + 2) / 2;
  const { requests, buffers, sizeBytes, frontEnds, connected, threads = [] } = control(served.control, {
    command: "statistics",
  });
  assertEquals({ requests, buffers, sizeBytes, frontEnds, connected }, {
    requests: 2 * each,
    buffers: 2 * each,
    sizeBytes: 4 * MIB,
    frontEnds: 1,
    connected: true,
  });
  assertEquals(threads.map(({ buffers }) => buffers), [each, each]);
  const url = /^metrics at (http:.*)$/m.exec(process.stdout)![1];
  const metrics = await (await fetch(url)).text();
  assertMatch(metrics, /^vblk_requests_total\{kind="flush",result="ok"\} 4$/m);
  assertMatch(metrics, /^vblk_request_duration_seconds_count\{kind="read"\} 16$/m);
  assertMatch(metrics, new RegExp(`^vblk_disk_size_bytes ${4 * MIB}$`, "m"));
  const { code, stderr } = await process.stop();
  assertEquals(code, 0);
  assertMatch(stderr, new RegExp(`^read +16 +0 .*\\nwrite +4 +0 (.*\\n)+threads: ${each} and ${each} buffers`, "m"));
  assertEquals(Deno.readFileSync(served.image).subarray(12288, 16384), blockOf(4));
});

serving("the cache mode that the driver set is kept by all threads over SIGKILL", async () => {
  await using served = await Served.start();
  using guest = new Guest({ queues: QUEUES });
  const writeback = (front: FrontEnd) => front.ask("GET_CONFIG", config(32, [0])).payload[12];
  {
    using front = new FrontEnd(served.socket);
    guest.start(front);
    assertEquals(writeback(front), 1);
    front.good("SET_CONFIG", config(32, [0]));
    assertEquals([writeback(front), guest.run(TYPE.write, 0, 4096, blockOf(1), 1)], [0, OK]);
    await served.process.kill();
  }
  served.process = await ServeProcess.ready([
    ...[served.image, "-f", "raw", "--vhost-user", served.socket],
    ...["--device", `num-queues=${QUEUES}`, "--iothreads", "2"],
  ]);
  using front = new FrontEnd(served.socket);
  guest.start(front);
  assertEquals([writeback(front), guest.run(TYPE.write, 4096, 4096, blockOf(2), 3)], [0, OK]);
  assertEquals((await served.process.stop()).code, 0);
});

serving("a resize reaches all queues before the guest is told, once, under load", async () => {
  await using served = await Served.start();
  using guest = new Guest({ queues: QUEUES });
  using front = new FrontEnd(served.socket);
  const [mine, theirs] = UnixConnection.pair();
  guest.start(front);
  front.good("SET_BACKEND_REQ_FD", new Uint8Array(0), { fds: [theirs.descriptor] });
  theirs.close();
  using channel = mine;
  for (const { size, shrink } of [{ size: 6 * MIB, shrink: false }, { size: MIB, shrink: true }]) {
    // Requests are in flight in all queues.
    for (let queue = 0; queue < QUEUES; queue++) {
      for (let i = 0; i < 8; i++) guest.submit(guest.free[queue * 8 + i], TYPE.read, 4096 * i, 4096, queue);
      guest.kick(queue);
    }
    const answer = control(served.control, { command: "resize", size, shrink });
    assertEquals([answer.ok, answer.size], [true, size], answer.error);
    const told = new Uint8Array(12);
    assertEquals(channel.receive(told, new DescriptorList(), PATIENCE_MS), "all");
    assertEquals(told[0], 2);
    for (let queue = 0; queue < QUEUES; queue++) {
      for (let left = 8; left > 0;) {
        const answers = guest.wait(queue);
        left -= answers.length;
        assert(answers.every(({ status }) => status === OK));
      }
    }
    const capacity = new DataView(front.ask("GET_CONFIG", config(0, new Array<number>(8).fill(0))).payload.buffer);
    assertEquals(Number(capacity.getBigUint64(12, true)) * 512, size);
    for (let queue = 0; queue < QUEUES; queue++) {
      assertEquals(guest.run(TYPE.write, size - 4096, 4096, blockOf(7), queue), OK, `queue ${queue}`);
      assertEquals(guest.run(TYPE.read, size, 512, undefined, queue), IOERR, `queue ${queue}`);
    }
    assertEquals(Deno.statSync(served.image).size, size);
    // Nothing was said a second time.
    assertEquals(channel.receive(told, new DescriptorList(), 50), "timeout");
  }
  const refused = control(served.control, { command: "resize", size: 4096 });
  assertEquals(refused.ok, false);
  assertEquals((await served.process.stop()).code, 0);
});

serving(
  "SIGTERM under load returns what is in flight in all threads, and what was written is in the image",
  async () => {
    await using served = await Served.start();
    using guest = new Guest({ queues: QUEUES });
    using front = new FrontEnd(served.socket);
    guest.start(front);
    const written: number[] = [];
    const collect = () => {
      for (let queue = 0; queue < QUEUES; queue++) {
        for (const { slot, status } of guest.collect(queue)) {
          assertEquals(status, OK);
          written.push(slot);
        }
      }
    };
    for (let slot = 0; slot < 64; slot++) {
      guest.data(slot).fill(slot + 1);
      guest.submit(slot, TYPE.write, slot * 4096, 4096, slot % QUEUES);
    }
    for (let queue = 0; queue < QUEUES; queue++) guest.kick(queue);
    const { code, stderr } = await served.process.stop();
    assertEquals([code, stderr, existsSync(served.socket), existsSync(served.control)], [0, "", false, false]);
    collect();
    const disk = Deno.readFileSync(served.image);
    for (const slot of written) assertEquals(disk[slot * 4096], slot + 1, `block ${slot}`);
    // What was not taken is still in the rings; nothing is half done.
    assertEquals(written.length + guest.inFlight, 64);
  },
);

serving("a stopped ring tells where it stands, in whichever thread it is, and goes on there", async () => {
  await using served = await Served.start();
  using guest = new Guest({ queues: QUEUES });
  using front = new FrontEnd(served.socket);
  guest.start(front);
  for (let round = 1; round <= 3; round++) {
    for (let queue = 0; queue < QUEUES; queue++) {
      for (let i = 0; i <= queue; i++) assertEquals(guest.run(TYPE.read, 0, 512, undefined, queue), OK);
      const base = new DataView(front.ask("GET_VRING_BASE", vringState(queue, 0)).payload.buffer);
      assertEquals([base.getUint32(0, true), base.getUint32(4, true)], [queue, round * (queue + 1)]);
      guest.startRing(front, queue, base.getUint32(4, true));
    }
  }
  assertEquals((await served.process.stop()).code, 0);
});

serving("one session after the other, and --once ends all threads with the first", async () => {
  await using served = await Served.start();
  for (let session = 0; session < 5; session++) assertServes(served.socket);
  assertEquals((await served.process.stop()).code, 0);
  await using once = await Served.start("--once");
  assertServes(once.socket);
  const { code, stderr } = await once.process.end();
  assertEquals([code, stderr], [0, ""]);
});

serving("lines of --trace=json are whole, and counted together", async () => {
  await using served = await Served.start("--trace=json");
  using guest = new Guest({ queues: QUEUES });
  {
    using front = new FrontEnd(served.socket);
    guest.start(front);
    for (let round = 1; round <= 10; round++) {
      for (let queue = 0; queue < QUEUES; queue++) {
        for (let i = 0; i < 8; i++) guest.submit(guest.free[queue * 8 + i], TYPE.read, 4096 * i, 4096, queue);
        guest.kick(queue);
      }
      for (let queue = 0; queue < QUEUES; queue++) for (let left = 8; left > 0;) left -= guest.wait(queue).length;
      // A thread waits for who reads its trace: for us.
      const ended = () => served.process.stderr.match(/"event":"status"/g)?.length === 32 * round;
      await served.process.until(ended, "the trace");
    }
  }
  const { code, stderr } = await served.process.stop();
  assertEquals(code, 0);
  const records = stderr.trim().split("\n").map((line) => JSON.parse(line) as { sequence: number; event: string });
  assertEquals(records.filter(({ event }) => event === "status").length, 320);
  const counted = records.map(({ sequence }) => sequence).sort((a, b) => a - b);
  assertEquals(counted, counted.map((_, i) => i));
});

/** What partial writes past the page cache are made of here; `null` where there is no O_DIRECT. */
function directBlockBytes(path: string): number | null {
  let descriptor: number;
  try {
    descriptor = open(path, O.RDWR | O.DIRECT);
  } catch {
    return null;
  }
  try {
    return probeAlignment(descriptor).blockBytes;
  } finally {
    close(descriptor);
  }
}

serving("past the page cache only where no two threads can write parts of one block", async () => {
  using folder = new Folder();
  const image = disk(folder);
  const blockBytes = directBlockBytes(image);
  if (blockBytes === null) {
    await using process = new ServeProcess([image, "-f", "raw", "--direct", "--vhost-user", folder.file("vm.sock")]);
    assertMatch((await process.end()).stderr, /O_DIRECT/);
    return;
  }
  const args = (size: number) => [
    ...[image, "-f", "raw", "--direct", "--iothreads", "2", "--vhost-user", folder.file("vm.sock")],
    ...["--device", `num-queues=2,logical_block_size=${size},physical_block_size=${Math.max(size, 4096)}`],
  ];
  await using process = await ServeProcess.ready(args(blockBytes));
  {
    using guest = new Guest({ queues: 2 });
    using front = new FrontEnd(folder.file("vm.sock"));
    guest.start(front);
    for (const queue of [0, 1]) {
      assertEquals(guest.run(TYPE.write, queue * 4096, 4096, blockOf(queue + 1), queue), OK);
      assertEquals(guest.read(queue * 4096, 4096, 1 - queue), blockOf(queue + 1));
    }
  }
  assertEquals((await process.stop()).code, 0);
  if (blockBytes === 512) return;
  await using refused = new ServeProcess(args(512));
  const { code, stderr } = await refused.end();
  assertEquals(code, 1);
  assertMatch(stderr, new RegExp(`in blocks of ${blockBytes} bytes.*\nhint: .*logical_block_size=${blockBytes}`));
});

serving(
  "a thread that finds another file than the one that is locked ends, and lets go of whoever waits for it",
  async () => {
    using folder = new Folder();
    const [sessions, commands] = [new HandOver(), new HandOver()];
    using session = sessions.connect();
    using caller = commands.connect();
    const start: QueueThreadStart = {
      part: "queues",
      image: disk(folder),
      open: { format: "raw", share: true },
      ...{ direct: false, ignoreFlush: false, ignoreDiscard: false, device: {}, pollNanoseconds: 0 },
      observe: { figures: new Figures().memory, requests: false, trace: null, sharedTrace: null },
      ends: { sessions: sessions.otherEnd, commands: commands.otherEnd },
      identity: "0:0",
    };
    const worker = new Worker(new URL("../../src/serve/io_thread.ts", import.meta.url), { type: "module" });
    const ended = new Promise<ThreadNews>((resolve) => worker.onmessage = ({ data }) => resolve(data));
    worker.postMessage(start);
    const news = await ended;
    worker.terminate();
    assert(news.news === "ended");
    assertMatch(news.error!.message, /Another file has come in its place/);
    for (const end of [session, caller]) {
      assertEquals(end.receive(new Uint8Array(1), new DescriptorList(), PATIENCE_MS), "end");
    }
    sessions.close();
    commands.close();
  },
);

serving("a thread that fails ends them all, in good order, with what it says", async () => {
  using folder = new Folder();
  const [image, other, socket] = [disk(folder), folder.file("other.img", new Uint8Array(512)), folder.file("vm.sock")];
  const control = new Control();
  let looks = 0;
  const start: ThreadStart = {
    part: "first",
    // As if another file had been put into its place when the first thread had opened it.
    get image() {
      return looks++ === 0 ? image : other;
    },
    open: { format: "raw" },
    ...{ direct: false, ignoreFlush: false, ignoreDiscard: false, device: { queues: 2 }, pollNanoseconds: 0 },
    ...{ socketPath: socket, passed: { pid: undefined, count: undefined }, once: false, controlPath: null },
    control: control.end,
    observe: { figures: new Figures().memory, requests: false, trace: null, sharedTrace: null },
    otherFigures: [new Figures().memory],
  };
  const threads = new ServeThreads(start, {
    ready: () => Promise.reject(new Error("it was said to be ready")),
    statistics: () => {},
    message: ({ text }) => Promise.reject(new Error(text)),
    stop: () => control.ask(WISH.stop),
  });
  await assertRejects(() => threads.run(), CommandFailure, "Another file has come in its place");
  // The first thread was waited for.
  assertEquals(existsSync(socket), false);
});

/** What several threads can't serve, and what is said. */
const REFUSED: readonly (readonly [name: string, args: (folder: Folder) => string[], code: number, stderr: RegExp])[] =
  [
    ["no threads", (f) => [disk(f), "-f", "raw", "--iothreads", "0"], 2, /from 1 to 64/],
    ["too many threads", (f) => [disk(f), "-f", "raw", "--iothreads", "65"], 2, /from 1 to 64/],
    [
      "more threads than queues",
      (f) => [disk(f), "-f", "raw", "--iothreads", "2"],
      2,
      /1 queue.*\nhint: .*num-queues=2/,
    ],
    ["qcow2", (f) => [disk(f), "-f", "qcow2", "--iothreads", "2", ...two], 2, /raw images only/],
    [
      "a format that is not known",
      (f) => [disk(f), "--iothreads", "2", ...two],
      2,
      /raw images only.*\nhint: .*-f raw/,
    ],
    ["a disk in memory", () => ["mem:1M", "-f", "raw", "--iothreads", "2", ...two], 2, /mem:1M/],
    ["a snapshot", (f) => [disk(f), "-f", "raw", "-s", "--iothreads", "2", ...two], 2, /--snapshot/],
    [
      "an image that ends within a sector",
      (f) => [disk(f, MIB + 100), "-f", "raw", "--iothreads", "2", ...two],
      1,
      /ends in the middle of a block of 512 bytes.*\nhint: .*resize/,
    ],
  ];
const two = ["--device", "num-queues=2"];

function disk(folder: Folder, sizeBytes = MIB): string {
  return folder.file("disk.img", new Uint8Array(sizeBytes));
}

for (const [name, args, expected, text] of REFUSED) {
  serving(`refuses ${name}`, async () => {
    using folder = new Folder();
    const socket = folder.file("vm.sock");
    await using process = new ServeProcess([...args(folder), "--vhost-user", socket]);
    const { code, stdout, stderr } = await process.end();
    assertEquals([code, stdout, existsSync(socket)], [expected, "", false], stderr);
    assertMatch(stderr, text);
  });
}
