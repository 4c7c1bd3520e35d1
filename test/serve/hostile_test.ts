/**
 * Front-ends that mean no good, on the real socket of a real process: it lives, keeps no descriptor and no mapping of
 * theirs, and serves the next one.
 */

import { assert, assertEquals } from "@std/assert";
import { EventFd } from "../../src/host/event_fd.ts";
import { check, close, ftruncate, libc, memfdCreate, O, open, POLL, poll } from "../../src/host/libc.ts";
import { UnixConnection } from "../../src/host/unix_connection.ts";
import { MESSAGES } from "../../src/transport/vhost_user/messages.ts";
import { REQUEST, type RequestName } from "../../src/transport/vhost_user/vhost_user_layout.ts";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import type { FloodStart } from "./flood_worker.ts";
import {
  config,
  inflight,
  oneRegion,
  region,
  regionTable,
  u64,
  u64s,
  vringAddress,
  vringState,
} from "../transport/vhost_user/front_end.ts";
import { likelyPayload } from "../transport/vhost_user/random_messages.ts";
import { ALL, assertServes, FrontEnd, Guest, IOERR, OK, requiresServe, ServeProcess, TYPE, USER_BASE } from "./rig.ts";

/** A process that must be, after a test, what it was before. */
class Victim implements AsyncDisposable {
  readonly folder = new Folder();
  readonly socket = this.folder.file("vm.sock");
  process!: ServeProcess;
  #before!: { descriptors: string[]; memfds: string[] };

  static async start(threads = 1): Promise<Victim> {
    const victim = new Victim();
    const image = victim.folder.file("disk.img", new Uint8Array(1 << 20));
    const line = [image, "-f", "raw", "--device", "num-queues=2,packed=on", "--vhost-user", victim.socket];
    if (threads > 1) line.push("--iothreads", String(threads));
    victim.process = await ServeProcess.ready(line);
    // The first session makes what later ones use again.
    assertServes(victim.socket);
    victim.#before = await victim.#settled();
    return victim;
  }

  connect(): FrontEnd {
    return new FrontEnd(this.socket);
  }

  /** Asserts that nothing is left of the sessions that there were. */
  async assertUnharmed(): Promise<void> {
    assert(this.process.isAlive, `it died: ${this.process.stderr}`);
    assertServes(this.socket);
    assertEquals(await this.#settled(), this.#before, this.process.stderr.slice(-2000));
  }

  /** What it holds, once it has seen that its front-end went. */
  async #settled(): Promise<{ descriptors: string[]; memfds: string[] }> {
    const look = () => ({ descriptors: this.process.descriptors(), memfds: this.process.mappedMemfds() });
    const end = performance.now() + 3000;
    for (let last = look();;) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      const now = look();
      const same = JSON.stringify(now) === JSON.stringify(this.#before ?? last);
      if (same || performance.now() > end) return now;
      last = now;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

function hostile(name: string, fn: (victim: Victim) => Promise<void> | void): void {
  for (const threads of [1, 2]) {
    Deno.test({
      name: threads === 1 ? name : `${name} (--iothreads ${threads})`,
      ...requiresServe(),
      async fn() {
        await using victim = await Victim.start(threads);
        await fn(victim);
        await victim.assertUnharmed();
        const { code } = await victim.process.stop();
        assertEquals(code, 0);
      },
    });
  }
}

/** Whether a message was taken: acknowledged or answered, and not with a refusal. */
function taken(
  front: FrontEnd,
  name: RequestName,
  payload: Uint8Array,
  fds: readonly number[],
  size?: number,
): boolean {
  try {
    front.send(name, payload, { fds, needReply: true, size });
  } catch {
    return false;
  }
  const reply = front.receive(5000);
  if (reply === null) return false;
  for (const fd of reply.fds) close(fd);
  if (MESSAGES[name]?.replies) return reply.payload.byteLength > 0;
  return reply.payload[0] === 0;
}

/** A right message of each kind, for a guest whose rings are set up and do not run. */
function right(name: RequestName, guest: Guest): { payload: Uint8Array; fds: number[] } {
  const rows: Partial<Record<RequestName, { payload: Uint8Array; fds?: number[] }>> = {
    SET_FEATURES: { payload: u64(guest.features) },
    SET_PROTOCOL_FEATURES: { payload: u64(ALL) },
    SET_MEM_TABLE: { payload: regionTable(guest.region), fds: [guest.memory] },
    SET_LOG_BASE: { payload: u64s(0x9000, 0), fds: [guest.memory] },
    SET_LOG_FD: { payload: new Uint8Array(0), fds: [guest.calls[0].descriptor] },
    SET_VRING_NUM: { payload: vringState(0, guest.size) },
    SET_VRING_ADDR: { payload: vringAddress(0, guest.userAddresses(0)) },
    SET_VRING_BASE: { payload: vringState(0, 0) },
    GET_VRING_BASE: { payload: vringState(0, 0) },
    SET_VRING_KICK: { payload: u64(0), fds: [guest.kicks[0].descriptor] },
    SET_VRING_CALL: { payload: u64(0), fds: [guest.calls[0].descriptor] },
    SET_VRING_ERR: { payload: u64(0), fds: [guest.errs[0].descriptor] },
    SET_VRING_ENABLE: { payload: vringState(0, 1) },
    SET_BACKEND_REQ_FD: { payload: new Uint8Array(0), fds: [guest.calls[0].descriptor] },
    GET_CONFIG: { payload: config(0, new Array<number>(57).fill(0)) },
    SET_CONFIG: { payload: config(32, [1]) },
    GET_INFLIGHT_FD: { payload: inflight(0, 0, 1, 128) },
    SET_INFLIGHT_FD: { payload: inflight(0x9000, 0, 1, 128), fds: [guest.memory] },
    ADD_MEM_REG: {
      payload: oneRegion({ guest: 0x9000_0000, size: 4096, user: 0x1000 }),
      fds: [guest.memory],
    },
    REM_MEM_REG: { payload: oneRegion(guest.region) },
    SET_STATUS: { payload: u64(1) },
  };
  const { payload, fds = [] } = rows[name] ?? { payload: new Uint8Array(0) };
  return { payload, fds };
}

/** Everything but running rings. */
function setUp(front: FrontEnd, guest: Guest): void {
  front.send("SET_PROTOCOL_FEATURES", u64(ALL));
  front.good("SET_FEATURES", u64(guest.features));
  front.good("SET_MEM_TABLE", regionTable(guest.region), { fds: [guest.memory] });
}

hostile(
  "each message of the table is taken when it is right, and refused with a wrong size, too few or too many descriptors",
  (victim) => {
    using guest = new Guest();
    for (const name of Object.keys(MESSAGES) as RequestName[]) {
      const { payload, fds } = right(name, guest);
      const attempt = (bytes: Uint8Array, some: readonly number[], size?: number) => {
        using front = victim.connect();
        setUp(front, guest);
        return taken(front, name, bytes, some, size);
      };
      assert(attempt(payload, fds), `${name} as it should be`);
      const longer = new Uint8Array(payload.byteLength + 1);
      longer.set(payload);
      // 256 bytes of configuration are as good as 57, when the size field says so.
      if (name !== "GET_CONFIG" && name !== "SET_CONFIG") {
        assert(!attempt(longer, fds), `${name} with a byte too many`);
      }
      if (payload.byteLength > 0) {
        assert(!attempt(payload.subarray(0, -1), fds), `${name} with a byte too few`);
        assert(!attempt(new Uint8Array(0), fds), `${name} without its payload`);
      }
      assert(!attempt(payload, fds, 0xffff_ffff), `${name} that says it has 4 GiB`);
      if (fds.length > 0) assert(!attempt(payload, []), `${name} without a descriptor`);
      const surplus = [...fds, guest.calls[0].descriptor, ...name === "REM_MEM_REG" ? [guest.memory] : []];
      assert(!attempt(payload, surplus), `${name} with a descriptor too many`);
      assert(!attempt(payload, new Array(32).fill(guest.memory)), `${name} with 32 descriptors`);
      assert(!attempt(payload, new Array(8).fill(guest.memory).concat(guest.memory)), `${name} with 9 descriptors`);
    }
  },
);

hostile("messages before anything is set up, and twice to rings that run, do no harm", (victim) => {
  using guest = new Guest();
  for (const name of Object.keys(REQUEST) as RequestName[]) {
    const { payload, fds } = right(name, guest);
    {
      using front = victim.connect();
      front.send(name, payload, { fds });
      alive(front);
    }
    using busy = new Guest();
    using front = victim.connect();
    busy.start(front);
    busy.submit(0, TYPE.read, 0, 512);
    busy.kick();
    for (let again = 0; again < 2; again++) taken(front, name, payload, fds);
  }
});

hostile(
  "regions that are empty, wrap, overlap, or exceed their file are refused, and rings outside of memory too",
  (victim) => {
    using guest = new Guest();
    const { size } = guest.region;
    const far = { guest: 0x9000_0000, user: 0x9000_0000 };
    const wrong = [
      { ...far, size: 0 },
      { ...far, size: size + 1 },
      { ...far, size, offset: 4096 },
      { ...far, size: 4096, offset: size },
      { ...far, size: 4096, offset: 2n ** 64n - 4096n },
      { ...far, size: 2n ** 63n },
      { ...far, size: 2n ** 64n - 1n },
      { ...far, size: 4096, guest: 2n ** 64n - 2048n },
      { ...far, size: 4096, user: 2n ** 64n - 2048n },
      { ...far, size: 4096, guest: guest.region.guest + size - 1 },
      { ...far, size: 4096, user: guest.region.user - 4095 },
      { ...far, size: 4096, offset: 1 },
    ];
    for (const described of wrong) {
      using front = victim.connect();
      setUp(front, guest);
      const text = JSON.stringify(described, (_, value) => typeof value === "bigint" ? value.toString() : value);
      assert(!taken(front, "ADD_MEM_REG", oneRegion(described), [guest.memory]), text);
      // In a table the region that is there does not count; the third is in the way of the first.
      const table = Uint8Array.from([...vringState(2, 0), ...region(described), ...region(guest.region)]);
      assert(!taken(front, "SET_MEM_TABLE", table, [guest.memory, guest.memory]), text);
      // What was there stays.
      guest.startRing(front, 0);
      front.ask("GET_VRING_BASE", vringState(0, 0));
      const at = guest.userAddresses(0);
      for (const part of ["desc", "driver", "device"] as const) {
        for (const address of [0, USER_BASE + size - 2, USER_BASE - 1, 2 ** 50]) {
          assert(
            !taken(front, "SET_VRING_ADDR", vringAddress(0, { ...at, [part]: address }), []),
            `${part} ${address}`,
          );
        }
      }
    }
  },
);

/** A file in memory of any size, of which nothing takes room. */
function sparse(sizeBytes: number): number {
  const fd = memfdCreate("vblk-test-sparse", 4096);
  ftruncate(fd, sizeBytes);
  return fd;
}

hostile(
  "regions so large that the address space is full are refused, and leave enough for the process to live on",
  (victim) => {
    const fd = sparse(2 ** 46);
    try {
      for (const bits of [32, 33, 36, 40, 43, 44, 45, 46]) {
        using front = victim.connect();
        front.send("SET_PROTOCOL_FEATURES", u64(ALL));
        front.good("SET_FEATURES", u64(1n << 32n | 1n << 30n));
        for (let i = 0; i < 64; i++) {
          const address = (i + 1) * 2 ** bits;
          if (!taken(front, "ADD_MEM_REG", oneRegion({ guest: address, size: 2 ** bits, user: address }), [fd])) break;
        }
        front.ask("GET_FEATURES");
      }
    } finally {
      close(fd);
    }
  },
);

/** Things that are no eventfd, with what must be closed afterwards. */
function oddities(folder: Folder): { name: string; fd: number }[] {
  const fifo = `${folder.path}/fifo`;
  run("mkfifo", fifo);
  const [left, right] = UnixConnection.pair();
  const EFD_SEMAPHORE = 1;
  return [
    { name: "/dev/null", fd: open("/dev/null", O.RDWR) },
    { name: "/dev/zero", fd: open("/dev/zero", O.RDWR) },
    { name: "FIFO", fd: open(fifo, O.RDWR) },
    { name: "a socket", fd: left.descriptor },
    { name: "its other end", fd: right.descriptor },
    { name: "a folder", fd: open(folder.path, O.RDONLY) },
    { name: "a short memfd", fd: memfdCreate("vblk-test-short", 100) },
    { name: "an empty memfd", fd: memfdCreate("vblk-test-empty", 0) },
    { name: "a file", fd: open(folder.file("some", new Uint8Array(9000)), O.RDONLY) },
    { name: "a semaphore", fd: check("eventfd", () => libc().eventfd(3, EFD_SEMAPHORE)) },
    { name: "an eventfd that waits", fd: check("eventfd", () => libc().eventfd(0, 0)) },
    { name: "an eventfd that does not wait", fd: check("eventfd", () => libc().eventfd(0, 0x800)) },
  ];
}

hostile("descriptors of any kind in any place: kicks, calls, errors, channels, memory, logs", (victim) => {
  using folder = new Folder();
  const things = oddities(folder);
  for (const { name, fd } of things) {
    for (const request of Object.keys(MESSAGES) as RequestName[]) {
      using guest = new Guest();
      const { payload, fds } = right(request, guest);
      if (fds.length === 0) continue;
      using front = victim.connect();
      if (/VRING/.test(request)) guest.start(front, false);
      else setUp(front, guest);
      taken(front, request, payload, [fd]);
      if (/VRING/.test(request)) {
        // Some bytes to read, where something can be written, and requests to be told of.
        libc().write(fd, new Uint8Array(3), 3n);
        libc().write(fd, new Uint8Array(8).fill(1), 8n);
        guest.submit(0, TYPE.read, 0, 512);
        guest.kick();
        for (let i = 0; i < 3; i++) if (!alive(front)) break;
      }
      assert(victim.process.isAlive, `${request} with ${name} killed it: ${victim.process.stderr}`);
    }
  }
  for (const { fd } of things) close(fd);
});

/** Whether the other side still answers. */
function alive(front: FrontEnd): boolean {
  try {
    front.send("GET_FEATURES");
    return front.receive(5000) !== null;
  } catch {
    return false;
  }
}

hostile("a call descriptor that waits, and is full, holds up nobody", (victim) => {
  using full = EventFd.create({ blocking: true });
  const ALMOST = new BigUint64Array([2n ** 64n - 2n]);
  for (let session = 0; session < 3; session++) {
    using guest = new Guest();
    full.drain();
    libc().write(full.descriptor, ALMOST, 8n);
    using front = victim.connect();
    setUp(front, guest);
    guest.startRing(front, 0);
    front.good("SET_VRING_CALL", u64(0), { fds: [full.descriptor] });
    for (let i = 0; i < 300; i++) {
      guest.queues[0].enableInterrupts();
      guest.submit(0, TYPE.read, 0, 512);
      guest.kick();
      const end = performance.now() + 5000;
      for (let answers = 0; answers === 0; answers = guest.collect().length) {
        assert(performance.now() < end, `request ${i} never came back`);
      }
    }
    front.ask("GET_VRING_BASE", vringState(0, 0));
  }
});

hostile("kicks that the front-end takes back itself, from a descriptor that waits, hold up nobody", (victim) => {
  using kick = EventFd.create({ blocking: true });
  using guest = new Guest();
  using front = victim.connect();
  setUp(front, guest);
  guest.startRing(front, 0);
  front.good("SET_VRING_KICK", u64(0), { fds: [kick.descriptor] });
  const end = performance.now() + 1000;
  for (let i = 0; performance.now() < end; i++) {
    kick.signal();
    // Whoever reads first has it.
    for (let spin = 0; spin < i % 50; spin++) performance.now();
    kick.drain();
    if (i % 2000 === 0) assert(alive(front), "no answer");
  }
  assert(alive(front), "no answer");
});

hostile("a front-end that never reads its replies is let go", async (victim) => {
  using front = victim.connect();
  const message = FrontEnd.message("GET_FEATURES");
  const many = new Uint8Array(message.byteLength * 1000);
  for (let i = 0; i < 1000; i++) many.set(message, i * message.byteLength);
  try {
    for (let i = 0; i < 200; i++) front.socket.send(many, [], 100);
  } catch {
    // Its socket is full.
  }
  await new Promise((resolve) => setTimeout(resolve, 1200));
});

Deno.test({
  name: "a front-end that sends messages without end keeps neither requests nor SIGTERM waiting",
  ...requiresServe(),
  async fn() {
    await using victim = await Victim.start();
    using guest = new Guest();
    using front = victim.connect();
    guest.start(front, false);
    const message = FrontEnd.message("SET_OWNER");
    const bytes = new Uint8Array(message.byteLength * 1000);
    for (let i = 0; i < 1000; i++) bytes.set(message, i * message.byteLength);
    const worker = new Worker(new URL("flood_worker.ts", import.meta.url), { type: "module" });
    const sent = new Int32Array(new SharedArrayBuffer(4));
    worker.postMessage({ descriptor: front.socket.descriptor, bytes, count: sent.buffer } satisfies FloodStart);
    const end = performance.now() + 60_000;
    const reads = async (count: number) => {
      assert(performance.now() < end, `the flood has come to a stop after ${Atomics.load(sent, 0)} times`);
      for (let i = 0; i < count; i++) assertEquals(guest.run(TYPE.read, 0, 512), OK);
      // The worker may have to be started by this thread.
      await new Promise((resolve) => setTimeout(resolve, 0));
    };
    // It is well under way, and then goes on while so many are answered.
    while (Atomics.load(sent, 0) < 10) await reads(1);
    const underWay = Atomics.load(sent, 0);
    await reads(100);
    while (Atomics.load(sent, 0) < 2 * underWay) await reads(100);
    const { code } = await victim.process.stop();
    assertEquals(code, 0);
    worker.terminate();
  },
});

hostile(
  "memory that the front-end cuts off under the data of a write: the write fails, nothing else happens",
  (victim) => {
    using guest = new Guest();
    using front = victim.connect();
    guest.start(front, false);
    const more = memfdCreate("vblk-test-more", 1 << 16);
    const region = { guest: 0x9000_0000, size: 1 << 16, user: 0x9000_0000 };
    front.good("ADD_MEM_REG", oneRegion(region), { fds: [more] });
    const write = () => {
      guest.submit(0, TYPE.write, 0, 8192, 0, region.guest);
      guest.kick();
      return guest.wait()[0].status;
    };
    assertEquals(write(), OK);
    for (const sizeBytes of [4096, 0]) {
      ftruncate(more, sizeBytes);
      assertEquals(write(), IOERR);
    }
    assertEquals(guest.run(TYPE.read, 0, 4096), OK);
    close(more);
  },
);

// Only the kernel touched it there. Whoever else touches mapped memory whose file is gone gets SIGBUS, which nothing in
// JavaScript can catch. QEMU's memfds are
// sealed against it (seal=on is its default), and a file in memory that was made without can't be sealed by others. So
// a front-end can end its own back-end: no more than its own disk is gone, which is whole.
Deno.test({
  name:
    "memory that the front-end cuts off under a ring ends the process (SIGBUS); the image is whole, and served again",
  ...requires("qemu-img"),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk.qcow2"), folder.file("vm.sock")];
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
    const args = [image, "-f", "qcow2", "--vhost-user", socket];
    {
      await using process = await ServeProcess.ready(args);
      using guest = new Guest();
      using front = new FrontEnd(socket);
      guest.start(front, false);
      assertEquals(guest.run(TYPE.write, 65536, 4096, new Uint8Array(4096).fill(9)), OK);
      assertEquals(guest.run(TYPE.flush, 0, 0), OK);
      ftruncate(guest.memory, 0);
      guest.kick();
      assertEquals((await process.end()).signal, "SIGBUS");
    }
    const checked = tryRun("qemu-img", "check", image);
    assert(checked.success, checked.text);
    await using process = await ServeProcess.ready(args);
    using guest = new Guest();
    using front = new FrontEnd(socket);
    guest.start(front, false);
    assertEquals(guest.read(65536, 512)[0], 9);
    assertEquals((await process.stop()).code, 0);
  },
});

hostile(
  "a second front-end waits until the first has gone; one that goes while it waits does no harm",
  async (victim) => {
    using guest = new Guest();
    using first = victim.connect();
    guest.start(first);
    using second = victim.connect();
    for (let i = 0; i < 3; i++) victim.connect().close();
    second.send("GET_FEATURES");
    assert(!pending(second));
    assertEquals(guest.run(TYPE.read, 0, 512), OK);
    first.close();
    const reply = second.receive();
    assertEquals(reply?.request, REQUEST.GET_FEATURES);
    await undefined;
  },
);

/** Oddities that many sessions share. They fill: whoever writes to them without end waits for ever in the end. */
class OdditySet implements Disposable {
  /** After fewer than 255 of these writes no eventfd's counter is full, and no socket. */
  static readonly #MOST_WRITES = 250;
  #folder!: Folder;
  #writes = new Map<number, number>();
  things!: ReturnType<typeof oddities>;

  constructor() {
    this.#make();
  }

  /** Puts new ones in their place. */
  renew(): void {
    this[Symbol.dispose]();
    this.#make();
  }

  /** Writes to one of them, unless the write could have to wait. */
  scribble(fd: number): void {
    const writes = this.#writes.get(fd) ?? 0;
    if (writes >= OdditySet.#MOST_WRITES || (poll(fd, POLL.OUT, 0) & POLL.OUT) === 0) return;
    this.#writes.set(fd, writes + 1);
    libc().write(fd, new Uint8Array(8).fill(1), 8n);
  }

  #make(): void {
    this.#folder = new Folder();
    this.#writes.clear();
    this.things = oddities(this.#folder);
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.things) close(fd);
    this.#folder[Symbol.dispose]();
  }
}

hostile("no sequence of messages with any descriptors breaks it", async (victim) => {
  const first = Number(Deno.env.get("VBLK_SEED") ?? 1);
  const sessions = Number(Deno.env.get("VBLK_SESSIONS") ?? 400);
  const names = Object.keys(REQUEST) as RequestName[];
  let answered = 0;
  using set = new OdditySet();
  for (let seed = first; seed < first + sessions; seed++) {
    if (seed % 25 === 0) set.renew();
    const { things } = set;
    const random = new Random(seed);
    using guest = new Guest({ layout: random.pick(["split", "packed"]), queues: 2, size: 16, slots: 8 });
    using front = victim.connect();
    try {
      if (!random.oneIn(4)) guest.start(front, random.oneIn(2));
      for (let step = 0; step < 60; step++) {
        const name = random.pick(names);
        const payload = likelyPayload(name, random, guest);
        if (random.oneIn(40) && payload.byteLength > 0) payload[random.below(payload.byteLength)] = random.next();
        const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
        const row = MESSAGES[name];
        const least = row !== undefined && row.payload.accepts(view) ? row.fds(view)[0] : random.below(2);
        const count = random.oneIn(10) ? random.below(9) : least;
        const own = /KICK/.test(name) ? guest.kicks[0] : /CALL|ERR|LOG_FD/.test(name) ? guest.calls[0] : null;
        const fds = Array.from(
          { length: count },
          () => random.oneIn(6) ? random.pick(things).fd : own?.descriptor ?? guest.memory,
        );
        const odd = random.oneIn(120) ? { flags: random.next() } : random.oneIn(120) ? { size: random.next() } : {};
        front.send(random.oneIn(60) ? random.next() : name, payload, { fds, needReply: !random.oneIn(30), ...odd });
        if (random.oneIn(6)) {
          random.fill(guest.ram.bytes.subarray(random.below(0x1_0000)).subarray(0, random.below(64)));
        }
        try {
          const type = random.pick([TYPE.read, TYPE.write, TYPE.flush]);
          if (random.oneIn(2)) guest.submit(random.below(8), type, random.below(300) * 512, random.below(3) * 512);
        } catch {
          // The ring is full, or what it held was overwritten.
        }
        if (random.oneIn(2)) guest.kick(random.below(2));
        if (random.oneIn(8)) set.scribble(random.pick(things).fd);
        // Mostly it is seen what becomes of a message before the next one is sent.
        if (!random.oneIn(4)) answered += settle(front);
      }
    } catch {
      // The connection was ended, or a reply did not come as it should: what counts is what is left.
    }
    if (!victim.process.isAlive) {
      const { code, signal, stderr } = await victim.process.end();
      throw new Error(`with VBLK_SEED=${seed} it ended (${code}, ${signal}): ${stderr.slice(-3000)}`);
    }
    if (seed % 25 === 0) {
      front.close();
      await victim.assertUnharmed().catch((error) => {
        throw new Error(`up to VBLK_SEED=${seed}: ${error.message}`, { cause: error });
      });
    }
  }
  assert(answered > sessions * 4, `${answered} answers in ${sessions} sessions`);
});

/** Waits until all that was sent has been carried out; returns how many messages were answered. */
function settle(front: FrontEnd): number {
  front.send("GET_FEATURES");
  for (let answers = 0;; answers++) {
    const reply = front.receive(5000);
    if (reply === null) throw new Error("let go");
    for (const fd of reply.fds) close(fd);
    if (reply.request === REQUEST.GET_FEATURES) return answers;
  }
}

/** Whether there is something to read. */
function pending(front: FrontEnd): boolean {
  return poll(front.socket.descriptor, POLL.IN, 100) > 0;
}
