/** Looking at a real `vblk serve`, and changing it, while it runs: statistics, metrics, traces, the control socket. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { existsSync } from "@std/fs/exists";
import { UnixConnection } from "../../src/host/unix_connection.ts";
import { DescriptorList } from "../../src/host/socket_message.ts";
import { close, libc, memfdCreate, O, open, POLL, poll } from "../../src/host/libc.ts";
import { vblk } from "../cli/vblk.ts";
import { Folder } from "../storage/support.ts";
import { regionTable, u64, vringAddress, vringState } from "../transport/vhost_user/front_end.ts";
import {
  ALL,
  assertServes,
  FrontEnd,
  Guest,
  IOERR,
  OK,
  PERMISSIONS,
  requiresServe,
  ServeProcess,
  TYPE,
} from "./rig.ts";

const MIB = 1 << 20;
const WITH_NET = [...PERMISSIONS, "--allow-net"];

/** A process that serves a disk of 4 MiB, and where. */
class Served implements AsyncDisposable {
  readonly folder = new Folder();
  readonly image = this.folder.file("disk.img", new Uint8Array(4 * MIB));
  readonly socket = this.folder.file("vm.sock");
  readonly control = this.folder.file("control.sock");
  process!: ServeProcess;

  static async start(args: readonly string[], permissions = PERMISSIONS): Promise<Served> {
    const served = new Served();
    const line = [served.image, "-f", "raw", "--vhost-user", served.socket];
    served.process = await ServeProcess.ready([...line, ...args.map((arg) => served.#named(arg))], { permissions });
    return served;
  }

  #named(arg: string): string {
    return arg.replace("CONTROL", this.control).replace("FOLDER", this.folder.path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

/** Two reads, a write and a flush that succeed, and a read behind the end. */
function work(socket: string): void {
  using front = new FrontEnd(socket);
  using guest = new Guest();
  guest.start(front);
  assertEquals(guest.run(TYPE.write, 4096, 4096, new Uint8Array(4096).fill(7)), OK);
  for (const offset of [4096, 8192]) assertEquals(guest.run(TYPE.read, offset, 1024), OK);
  assertEquals(guest.run(TYPE.flush, 0, 0), OK);
  assertEquals(guest.run(TYPE.read, 4 * MIB, 512), IOERR);
}

function watching(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, ...requiresServe(), fn });
}

watching("--stats counts requests by kind, on SIGUSR2 and at the end", async () => {
  await using served = await Served.start(["--stats"]);
  const { process } = served;
  work(served.socket);
  process.signal("SIGUSR2");
  await process.until(() => /^rings: .*\n/m.test(process.stderr), "statistics");
  const table = /^read +3 +1 +2 KiB .*\nwrite +1 +0 +4 KiB .*\nflush +1 +0 +- .*\ndepth: 1\.0 .*\nrings: 5 buffers/m;
  assertMatch(process.stderr, table);
  const { code, stderr } = await process.stop();
  assertEquals([code, stderr.match(/statistics after/g)?.length], [0, 2]);
  assertMatch(stderr.slice(stderr.lastIndexOf("vblk: note")), table);
});

watching(
  "--stats=1 prints every second; without --stats SIGUSR2 prints what the rings count, and how to see more",
  async () => {
    await using served = await Served.start(["--stats=1"]);
    await served.process.until(
      () => (served.process.stderr.match(/statistics after/g) ?? []).length >= 2,
      "two reports",
    );
    await using plain = await Served.start([]);
    work(plain.socket);
    plain.process.signal("SIGUSR2");
    await plain.process.until(() => plain.process.stderr.includes("hint: "), "statistics");
    assertMatch(plain.process.stderr, /^vblk: note: .*\nrings: 5 buffers in \d batches .*\nhint: --stats .*\n$/);
  },
);

watching("--metrics serves the numbers over HTTP, and nothing else", async () => {
  await using served = await Served.start(["--metrics", "0"], WITH_NET);
  const url = /^metrics at (http:\/\/127\.0\.0\.1:\d+\/metrics)$/m.exec(served.process.stdout)![1];
  work(served.socket);
  const response = await fetch(url);
  assertMatch(response.headers.get("content-type")!, /^text\/plain; version=0\.0\.4/);
  const lines = (await response.text()).split("\n");
  for (
    const line of [
      `vblk_info{image="${served.image}",format="raw"} 1`,
      'vblk_requests_total{kind="read",result="ok"} 2',
      'vblk_requests_total{kind="read",result="ioerr"} 1',
      'vblk_request_bytes_total{kind="write"} 4096',
      'vblk_request_duration_seconds_count{kind="read"} 3',
      "vblk_requests_in_flight 0",
      "vblk_batch_buffers_total 5",
      "vblk_front_ends_total 1",
      `vblk_disk_size_bytes ${4 * MIB}`,
    ]
  ) assert(lines.includes(line), `${line} is not in ${lines.join("\n")}`);
  // Whoever is connected and says nothing does not keep it from ending.
  using _idle = await Deno.connect({ hostname: "127.0.0.1", port: Number(new URL(url).port) });
  for (const [path, init, status] of [["/", {}, 404], ["/metrics", { method: "POST" }, 405]] as const) {
    const other = await fetch(new URL(path, url), init);
    await other.body?.cancel();
    assertEquals(other.status, status);
  }
  assertEquals((await served.process.stop()).code, 0);
});

watching("--metrics on a Unix socket replaces one that a killed process left behind", async () => {
  using folder = new Folder();
  const [image, socket, metrics] = ["disk.img", "vm.sock", "metrics.sock"].map((name) => folder.file(name));
  Deno.writeFileSync(image, new Uint8Array(MIB));
  const line = [image, "-f", "raw", "--vhost-user", socket, "--metrics", `unix:${metrics}`];
  await (await ServeProcess.ready(line, { permissions: WITH_NET })).kill();
  assert(existsSync(metrics));
  await using process = await ServeProcess.ready(line, { permissions: WITH_NET });
  using connection = UnixConnection.connect(metrics);
  connection.send(new TextEncoder().encode("GET /metrics HTTP/1.0\r\n\r\n"));
  using descriptors = new DescriptorList();
  let text = "";
  while (!text.includes("vblk_front_end_connected 0")) {
    assert((poll(connection.descriptor, POLL.IN, 10_000) & POLL.IN) !== 0, `nothing more came: ${text}`);
    const bytes = new Uint8Array(4096);
    const count = connection.receiveSome(bytes, descriptors);
    assert(count > 0, text);
    text += new TextDecoder().decode(bytes.subarray(0, count));
  }
  assertMatch(text, /^HTTP\/1\.[01] 200 OK\r\n/);
  assertEquals([(await process.stop()).code, existsSync(metrics)], [0, false]);
});

watching("--metrics without the right to listen, or where somebody listens: said clearly", async () => {
  using folder = new Folder();
  const image = folder.file("disk.img", new Uint8Array(512));
  const line = ["serve", image, "-f", "raw", "--vhost-user", folder.file("vm.sock"), "--metrics"];
  const refused = await vblk([...line, "127.0.0.1:9"], { permissions: PERMISSIONS });
  assertEquals(refused.code, 1);
  assertMatch(refused.stderr, /^vblk: --metrics 127\.0\.0\.1:9: .*permission.*\nhint: .*--allow-net=127\.0\.0\.1:9/);
  using taken = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const busy = await vblk([...line, String(taken.addr.port)], { permissions: WITH_NET });
  assertEquals(busy.code, 1);
  assertMatch(busy.stderr, /^vblk: --metrics 127\.0\.0\.1:\d+: can't listen there: .*in use/);
});

watching("--trace=json shows every stage of a request, and --explain only what is wrong", async () => {
  await using traced = await Served.start(["--trace=json"]);
  await using explained = await Served.start(["--explain"]);
  for (const { socket } of [traced, explained]) work(socket);
  const traces = (await traced.process.stop()).stderr.trimEnd().split("\n").map((line) => JSON.parse(line));
  const stages = traces.filter(({ head }) => head === traces.find(({ event }) => event === "chain").head);
  assertEquals(stages.slice(0, 5).map(({ event }) => event), ["chain", "request", "extents", "status", "used"]);
  assert(traces.some(({ event }) => event === "features") && traces.some(({ event }) => event === "queue"));
  assertEquals(traces.map(({ sequence }) => sequence), traces.map((_, i) => i));
  const { stderr } = await explained.process.stop();
  assertMatch(
    stderr,
    /^the driver broke a rule: .*\n +where +queue 0, head \d+\n +expected .*\n +found .*\n +consequence .*\n +chain /,
  );
  assertEquals(stderr.match(/broke a rule/g)?.length, 1);
});

watching("--trace prints every stage for people", async () => {
  await using traced = await Served.start(["--trace"]);
  work(traced.socket);
  assertMatch(
    (await traced.process.stop()).stderr,
    /ms {2}queue 0 is ready: split[^]* request {2}write \(type 1\), sector 8/,
  );
});

/** Sends lines to a control socket, and returns as many answers. */
function command(path: string, ...lines: (string | object)[]): Record<string, unknown>[] {
  using connection = UnixConnection.connect(path);
  const text = lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join("");
  connection.send(new TextEncoder().encode(text));
  using descriptors = new DescriptorList();
  const byte = new Uint8Array(1);
  return lines.map(() => {
    let line = "";
    do {
      assertEquals(connection.receive(byte, descriptors, 10_000), "all");
      line += String.fromCharCode(byte[0]);
    } while (byte[0] !== 10);
    return JSON.parse(line) as Record<string, unknown>;
  });
}

/** Capacity in bytes, as the front-end reads it. */
function capacity(front: FrontEnd): number {
  const header = new Uint8Array(12 + 8);
  new DataView(header.buffer).setUint32(4, 8, true);
  const { payload } = front.ask("GET_CONFIG", header);
  return Number(new DataView(payload.buffer).getBigUint64(12, true)) * 512;
}

watching(
  "vblk resize --control changes the size under a running guest, which is told, and nobody else may",
  async () => {
    await using served = await Served.start(["--control", "CONTROL"]);
    assertEquals(Deno.statSync(served.control).mode! & 0o777, 0o600);
    using front = new FrontEnd(served.socket);
    using guest = new Guest();
    const [channel, theirs] = UnixConnection.pair();
    guest.start(front);
    front.good("SET_BACKEND_REQ_FD", new Uint8Array(0), { fds: [theirs.descriptor] });
    theirs.close();
    assertEquals(capacity(front), 4 * MIB);
    assertEquals(guest.run(TYPE.read, 5 * MIB, 512), IOERR);
    const resize = (...args: string[]) =>
      vblk(["resize", "--control", served.control, ...args], { permissions: PERMISSIONS });
    const bigger = await resize("+4M");
    assertEquals([bigger.code, bigger.stdout, bigger.stderr], [0, "Image resized.\n", ""]);
    using descriptors = new DescriptorList();
    const message = new Uint8Array(12);
    assertEquals(channel.receive(message, descriptors, 10_000), "all");
    const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2;
    assertEquals(new DataView(message.buffer).getUint32(0, true), VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    assertEquals([capacity(front), Deno.statSync(served.image).size], [8 * MIB, 8 * MIB]);
    assertEquals(guest.run(TYPE.read, 5 * MIB, 512), OK);
    const smaller = await resize("2M");
    assertEquals(smaller.code, 1);
    assertMatch(smaller.stderr, /^vblk: Use the --shrink option.*\nhint: /);
    assertEquals((await resize("--shrink", "-q", "-6M")).stdout, "");
    assertEquals([capacity(front), guest.run(TYPE.read, 5 * MIB, 512)], [2 * MIB, IOERR]);
    channel.close();
    const { code } = await served.process.stop();
    assertEquals([code, existsSync(served.control)], [0, false]);
  },
);

watching(
  "vblk resize of an image that is served says which command to use; without a server, what is missing",
  async () => {
    await using served = await Served.start(["--control", "CONTROL"]);
    const options = { permissions: PERMISSIONS };
    const locked = await vblk(["resize", "-f", "raw", served.image, "8M"], options);
    assertEquals(locked.code, 1);
    assertMatch(locked.stderr, /^vblk: .*lock.*\nhint: .*--control SOCKET/);
    assertEquals(Deno.statSync(served.image).size, 4 * MIB);
    const nobody = await vblk(["resize", "--control", served.folder.file("nowhere"), "8M"], options);
    assertMatch(nobody.stderr, /^vblk: Could not reach '.*nowhere'.*\nhint: .*vblk serve/);
    const both = await vblk(["resize", "--control", served.control, served.image, "8M"], options);
    assertMatch(both.stderr, /^vblk: Expecting a size, and no image/);
    const preallocated = await vblk(["resize", "--control", served.control, "--preallocation=full", "8M"], options);
    assertMatch(preallocated.stderr, /^vblk: --control goes with --shrink and -q only/);
    const unable = await vblk(["resize", "--control", served.control, "8M"]);
    assertMatch(unable.stderr, /^vblk: .*permission.*\nhint: .*--allow-ffi/);
  },
);

/** What is no command, or one that can't be carried out, and what is answered. */
const REFUSED: readonly (readonly [line: string | object, error: RegExp])[] = [
  ["", /JSON object/],
  ["null", /JSON object/],
  ["[1]", /JSON object/],
  ["{", /JSON object/],
  [{}, /no such command/],
  [{ command: "__proto__" }, /no such command/],
  [{ command: "resize" }, /needs a size/],
  [{ command: "resize", size: "8M" }, /needs a size/],
  [{ command: "resize", size: 1.5 }, /needs a size/],
  [{ command: "resize", size: 2 ** 60 }, /needs a size/],
  [{ command: "resize", size: 8 * MIB, by: 1 }, /needs a size/],
  [{ command: "resize", size: 0 }, /must be positive/],
  [{ command: "resize", by: -4 * MIB, shrink: true }, /must be positive/],
  [{ command: "resize", size: 2 ** 52 }, /File too large|too large|Could not|Can't|can't/],
];

watching("what is no command is answered as such, one line for each, and the disk stays as it is", async () => {
  await using served = await Served.start(["--control", "CONTROL"]);
  const answers = command(served.control, ...REFUSED.map(([line]) => line));
  REFUSED.forEach(([line, error], i) => {
    assertEquals(answers[i].ok, false, JSON.stringify(line));
    assertMatch(String(answers[i].error), error, JSON.stringify(line));
  });
  assertEquals(Deno.statSync(served.image).size, 4 * MIB);
  assertServes(served.socket);
});

watching("clients of the control socket that stop halfway, flood it or never read do the guest no harm", async () => {
  await using served = await Served.start(["--control", "CONTROL"]);
  const rude: UnixConnection[] = [];
  const before = served.process.descriptors().length;
  for (let i = 0; i < 40; i++) {
    const connection = UnixConnection.connect(served.control);
    rude.push(connection);
    const line = [`{"command":`, "x".repeat(5000), '{"command":"statistics"}\n'.repeat(3)][i % 3];
    try {
      connection.send(new TextEncoder().encode(line));
    } catch {
      // One who sends too much, or is one too many, is let go.
    }
  }
  assertServes(served.socket);
  for (const connection of rude) connection.close();
  assertEquals(command(served.control, { command: "statistics" })[0].sizeBytes, 4 * MIB);
  const end = performance.now() + 10_000;
  while (served.process.descriptors().length > before && performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assertEquals(served.process.descriptors().length, before);
});

watching("the command stop ends the process as SIGTERM does", async () => {
  await using served = await Served.start(["--control", "CONTROL"]);
  assertEquals(command(served.control, { command: "stop" }), [{ ok: true }]);
  const { code, stderr } = await served.process.end();
  assertEquals([code, stderr, existsSync(served.control), existsSync(served.socket)], [0, "", false, false]);
});

/** Descriptors that are no memory which can be shared, as a front-end without shared memory might send them. */
const UNSHARED: readonly (readonly [name: string, make: (folder: Folder) => number | null])[] = [
  ["no descriptor at all", () => null],
  ["a file that is open for reading only", (folder) => open(folder.file("ram", new Uint8Array(MIB)), O.RDONLY)],
  ["something that can't be mapped", () => libc().eventfd(0, 0x80000)],
  ["a file that is too short", () => memfdCreate("short", 4096)],
];

watching("a ring in memory of which nothing was told: the hint says what QEMU needs", async () => {
  await using served = await Served.start([]);
  using front = new FrontEnd(served.socket);
  front.send("SET_PROTOCOL_FEATURES", u64(ALL));
  front.good("SET_FEATURES", u64(1n << 32n | 1n << 30n));
  front.good("SET_VRING_NUM", vringState(0, 8));
  const { payload: answer } = front.ask("SET_VRING_ADDR", vringAddress(0, { desc: 0, driver: 4096, device: 8192 }));
  assertEquals(answer[0], 1, "it was taken");
  const { stderr } = await served.process.stop();
  assertMatch(stderr, /^vblk: .*\nhint: .*-object memory-backend-memfd,share=on.*\n$/);
});

for (const [name, make] of UNSHARED) {
  for (const message of ["SET_MEM_TABLE", "ADD_MEM_REG"] as const) {
    watching(`${message} with ${name}: the hint says what QEMU needs`, async () => {
      await using served = await Served.start([]);
      using front = new FrontEnd(served.socket);
      front.send("SET_PROTOCOL_FEATURES", u64(ALL));
      front.good("SET_FEATURES", u64(1n << 32n | 1n << 30n));
      const described = { guest: 0x4000_0000, size: MIB, user: 0x7f00_0000_0000 };
      const table = regionTable(described);
      const payload = message === "SET_MEM_TABLE" ? table : Uint8Array.of(...new Uint8Array(8), ...table.subarray(8));
      const fd = make(served.folder);
      const { payload: answer } = front.ask(message, payload, { fds: fd === null ? [] : [fd] });
      if (fd !== null) close(fd);
      assertEquals(answer[0], 1, "it was taken");
      const { stderr } = await served.process.stop();
      assertMatch(stderr, /^vblk: .*\nhint: .*-object memory-backend-memfd,share=on.*\n$/);
    });
  }
}
