/** What the tests of `vblk serve` share: the real process, looked at from outside, and a front-end with a guest for it. */

import { assert } from "@std/assert";
import { GuestAllocator } from "../../src/guest/allocator.ts";
import type { DriverQueue } from "../../src/guest/driver_queue.ts";
import { PackedDriverQueue } from "../../src/guest/packed_driver_queue.ts";
import { SplitDriverQueue } from "../../src/guest/split_driver_queue.ts";
import { EventFd } from "../../src/host/event_fd.ts";
import { ioUringProblem } from "../../src/host/io_uring.ts";
import { close, libcProblem, memfdCreate, O, open, pread } from "../../src/host/libc.ts";
import { Mapping } from "../../src/host/mapping.ts";
import { DescriptorList } from "../../src/host/socket_message.ts";
import { UnixConnection } from "../../src/host/unix_connection.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import type { ServedReport } from "../../src/serve/statistics.ts";
import { OFFERED_PROTOCOL_FEATURES } from "../../src/transport/vhost_user/session.ts";
import {
  FLAG_NEED_REPLY,
  HEADER_BYTES,
  REQUEST,
  type RequestName,
  VHOST_USER_VERSION,
} from "../../src/transport/vhost_user/vhost_user_layout.ts";
import { CLI } from "../cli/vblk.ts";
import { missing, type Requirement } from "../requires.ts";
import {
  inflight,
  type Layout,
  regionTable,
  type SendOptions,
  u64,
  vringAddress,
  vringState,
} from "../transport/vhost_user/front_end.ts";

/** Nothing that works takes so long, not even on a busy machine. */
export const PATIENCE_MS = 20_000;

/** The permissions that users are told to give. */
export const PERMISSIONS: readonly string[] = ["--allow-read", "--allow-write", "--allow-ffi"];

/** Ignores a test where there is no io_uring. */
export function requiresServe(): Requirement {
  return missing((libcProblem() ?? ioUringProblem()) === null ? "" : "io_uring, or the right to use it");
}

/** How to start the process. */
export interface ServeOptions {
  readonly permissions?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** A program and its first arguments that start the rest of the command line. */
  readonly through?: readonly string[];
}

/** A process of `vblk serve`. Killed at the end of the scope if it still runs. */
export class ServeProcess implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #status: Promise<Deno.CommandStatus>;
  #ended = false;
  stdout = "";
  stderr = "";
  readonly #read: Promise<void>[];
  #onText: () => void = () => {};

  constructor(args: readonly string[], { permissions = PERMISSIONS, env = {}, through = [] }: ServeOptions = {}) {
    const line = [...through, Deno.execPath(), "run", "--no-prompt", ...permissions, CLI, "serve", ...args];
    this.#child = new Deno.Command(line[0], {
      args: line.slice(1),
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      clearEnv: true,
      env: {
        NO_COLOR: "1",
        DENO_NO_UPDATE_CHECK: "1",
        DENO_DIR: Deno.env.get("DENO_DIR") ?? "",
        HOME: Deno.env.get("HOME") ?? "",
        PATH: Deno.env.get("PATH") ?? "",
        ...env,
      },
    }).spawn();
    this.#status = this.#child.status;
    this.#status.then(() => {
      this.#ended = true;
      this.#onText();
    });
    const take = async (stream: ReadableStream<Uint8Array>, add: (text: string) => void) => {
      for await (const text of stream.pipeThrough(new TextDecoderStream())) {
        add(text);
        this.#onText();
      }
    };
    this.#read = [
      take(this.#child.stdout, (text) => this.stdout += text),
      take(this.#child.stderr, (text) => this.stderr += text),
    ];
  }

  /** Starts one and waits until it is ready. */
  static async ready(args: readonly string[], options?: ServeOptions): Promise<ServeProcess> {
    const process = new ServeProcess(args, options);
    await process.until(() => /^serving .*\n/m.test(process.stdout), "it to be ready");
    return process;
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Asks the system, which knows before our event loop does. */
  get isAlive(): boolean {
    try {
      return !/^State:\s+[ZX]/m.test(this.#facts("status"));
    } catch {
      return false;
    }
  }

  /** Waits until something holds that what it prints decides. */
  async until(holds: () => boolean, what: string): Promise<void> {
    const end = performance.now() + PATIENCE_MS;
    while (!holds()) {
      assert(!this.#ended, `waiting for ${what}, and the process ended: ${this.stdout}${this.stderr}`);
      assert(performance.now() < end, `waited in vain for ${what}: ${this.stdout}${this.stderr}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000);
        this.#onText = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Waits for its end. */
  async end(): Promise<{ code: number; signal: string | null; stdout: string; stderr: string }> {
    const timer = setTimeout(() => {
      this.stderr += "[the test lost its patience]";
      this.#child.kill("SIGKILL");
    }, PATIENCE_MS);
    const { code, signal } = await this.#status;
    clearTimeout(timer);
    await Promise.all(this.#read);
    return { code, signal, stdout: this.stdout, stderr: this.stderr };
  }

  /** SIGTERM, and how it ends. */
  async stop(): ReturnType<ServeProcess["end"]> {
    this.signal("SIGTERM");
    return await this.end();
  }

  /** SIGKILL. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await this.end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#ended) await this.kill();
  }

  /** What its descriptors refer to. */
  descriptors(): string[] {
    const { stdout } = new Deno.Command("ls", { args: ["-l", `/proc/${this.pid}/fd`], stderr: "null" }).outputSync();
    const links = new TextDecoder().decode(stdout).split("\n").filter((line) => line.includes(" -> "));
    return links.map((line) => line.slice(line.indexOf(" -> ") + 4)).sort();
  }

  /** Its mappings of memfds: those of guests, and of areas for requests in flight. */
  mappedMemfds(): string[] {
    return this.#facts("maps").split("\n").filter((line) => line.includes("/memfd:"));
  }

  /** Bytes in memory that are its own, not a guest's. */
  residentBytes(): number {
    const status = this.#facts("status");
    const kib = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)![1]);
    return (kib("RssAnon") + kib("RssFile")) * 1024;
  }

  /** User and system time, in ticks of the clock. */
  cpuTicks(): number {
    const stat = this.#facts("stat");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return Number(fields[11]) + Number(fields[12]);
  }

  /** Reads through libc: Deno lets nobody look into /proc who has not all permissions. */
  #facts(name: string): string {
    const descriptor = open(`/proc/${this.pid}/${name}`, O.RDONLY);
    try {
      const chunk = new Uint8Array(1 << 16);
      const decoder = new TextDecoder();
      for (let text = "", offset = 0;;) {
        const count = pread(descriptor, chunk, offset);
        if (count === 0) return text;
        text += decoder.decode(chunk.subarray(0, count), { stream: true });
        offset += count;
      }
    } finally {
      close(descriptor);
    }
  }
}

/** What came back. */
export interface Reply {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array<ArrayBuffer>;
  readonly fds: readonly number[];
}

/** All protocol features. */
export const ALL = OFFERED_PROTOCOL_FEATURES;

/** A front-end on a real socket. */
export class FrontEnd implements Disposable {
  readonly socket: UnixConnection;

  constructor(path: string) {
    this.socket = UnixConnection.connect(path);
  }

  /** The bytes of a message. */
  static message(request: RequestName | number, payload: Uint8Array = new Uint8Array(0), options: SendOptions = {}) {
    const bytes = new Uint8Array(HEADER_BYTES + payload.byteLength);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, typeof request === "number" ? request : REQUEST[request], true);
    view.setUint32(4, options.flags ?? VHOST_USER_VERSION | (options.needReply ? FLAG_NEED_REPLY : 0), true);
    view.setUint32(8, options.size ?? payload.byteLength, true);
    bytes.set(payload, HEADER_BYTES);
    return bytes;
  }

  /** Sends a message; the descriptors stay the caller's. */
  send(request: RequestName | number, payload?: Uint8Array, options: SendOptions = {}): void {
    this.socket.send(FrontEnd.message(request, payload?.slice(), options), options.fds ?? [], PATIENCE_MS);
  }

  /** Waits for a reply; `null` when the other side closed the connection instead. */
  receive(timeoutMs = PATIENCE_MS): Reply | null {
    using list = new DescriptorList();
    const header = new Uint8Array(HEADER_BYTES);
    const got = this.#receive(header, list, timeoutMs);
    if (got === "timeout") throw new Error("no reply came");
    if (got === "end") return null;
    const view = new DataView(header.buffer);
    const payload = new Uint8Array(view.getUint32(8, true));
    if (payload.byteLength > 0 && this.#receive(payload, list, timeoutMs) !== "all") return null;
    const fds: number[] = [];
    for (let fd = list.take(); fd !== null; fd = list.take()) fds.push(fd);
    return { request: view.getUint32(0, true), flags: view.getUint32(4, true), payload, fds };
  }

  #receive(into: Uint8Array<ArrayBuffer>, list: DescriptorList, timeoutMs: number): "all" | "end" | "timeout" {
    try {
      return this.socket.receive(into, list, timeoutMs);
    } catch {
      // What was sent and not read makes an error of the other side's end.
      return "end";
    }
  }

  /** Sends a message and waits for its answer. */
  ask(request: RequestName | number, payload?: Uint8Array, options: SendOptions = {}): Reply {
    this.send(request, payload, { needReply: true, ...options });
    const reply = this.receive();
    if (reply === null) throw new Error(`${request} ended the connection`);
    return reply;
  }

  /** Sends a message that must be acknowledged with 0. */
  good(request: RequestName, payload?: Uint8Array, options: SendOptions = {}): void {
    const { payload: answer } = this.ask(request, payload, options);
    if (new DataView(answer.buffer).getBigUint64(0, true) !== 0n) throw new Error(`${request} was refused`);
  }

  close(): void {
    this.socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** What a guest is made with. */
export interface GuestOptions {
  readonly layout?: Layout;
  /** Descriptors of a ring. */
  readonly size?: number;
  readonly queues?: number;
  /** Most requests in flight, of all queues together. */
  readonly slots?: number;
  /** Room for the data of each. */
  readonly slotBytes?: number;
}

/** A request that came back. */
export interface Answer {
  readonly slot: number;
  readonly status: number;
}

export const GUEST_BASE = 0x4000_0000;
export const USER_BASE = 0x7f12_3456_7000;
const SLOT_HEAD_BYTES = 64;
/** VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC, FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES. */
const FEATURES = 1n << 32n | 1n << 30n | 1n << 29n | 1n << 28n | 1n << 9n | 1n << 11n | 1n << 13n | 1n << 14n;

/** Status bytes. */
export const [OK, IOERR] = [0, 1];
/** Types of requests. */
export const TYPE = { read: 0, write: 1, flush: 4, discard: 11, zero: 13 } as const;

/** A virtual machine: memory that is shared with the back-end, and a block driver that reuses its requests. */
export class Guest implements Disposable {
  readonly layout: Layout;
  readonly size: number;
  readonly memory: number;
  readonly ram: Mapping;
  readonly queues: DriverQueue[];
  readonly kicks: EventFd[];
  readonly calls: EventFd[];
  readonly errs: EventFd[];
  readonly features: bigint;
  /** What SET_INFLIGHT_FD is told. */
  area: { payload: Uint8Array; fd: number } | null = null;
  readonly free: number[];
  readonly slotBytes: number;
  readonly #slotsAt: number;
  readonly #view: DataView;
  readonly #lengths: Int32Array;
  inFlight = 0;

  constructor(options: GuestOptions = {}) {
    const { layout = "split", size = 128, queues = 1, slots = 64, slotBytes = 4096 } = options;
    this.layout = layout;
    this.size = size;
    this.slotBytes = slotBytes;
    const stride = SLOT_HEAD_BYTES + slotBytes;
    const ramBytes = 4096 + queues * (65536 + size * 64) + slots * stride;
    this.memory = memfdCreate("vblk-test-guest", ramBytes);
    this.ram = Mapping.ofFile(this.memory, { lengthBytes: ramBytes });
    const allocator = new GuestAllocator(new MemoryRegion(GUEST_BASE, this.ram.bytes));
    const Driver = layout === "split" ? SplitDriverQueue : PackedDriverQueue;
    const make = () => new Driver(allocator, { size, eventIdx: true, inOrder: false, indirect: true });
    this.queues = Array.from({ length: queues }, make);
    // The first request of each descriptor makes a table of its own.
    this.#slotsAt = allocator.allocate(slots * stride, 4096);
    this.#view = new DataView(this.ram.bytes.buffer);
    this.#lengths = new Int32Array(slots);
    this.free = Array.from({ length: slots }, (_, slot) => slots - 1 - slot);
    const events = () => Array.from({ length: queues }, () => EventFd.create());
    [this.kicks, this.calls, this.errs] = [events(), events(), events()];
    this.features = FEATURES | (queues > 1 ? 1n << 12n : 0n) | (layout === "packed" ? 1n << 34n : 0n);
  }

  [Symbol.dispose](): void {
    this.ram.unmap();
    close(this.memory);
    if (this.area !== null) close(this.area.fd);
    for (const event of [...this.kicks, ...this.calls, ...this.errs]) event.close();
  }

  get region() {
    return { guest: GUEST_BASE, size: this.ram.byteLength, user: USER_BASE };
  }

  userAddresses(queue: number): { desc: number; driver: number; device: number } {
    const { desc, driver, device } = this.queues[queue].addresses;
    const user = (address: number) => address - GUEST_BASE + USER_BASE;
    return { desc: user(desc), driver: user(driver), device: user(device) };
  }

  /** Everything up to running rings; the area for requests in flight is made when there is none, and kept. */
  start(front: FrontEnd, tracked = true): void {
    front.send("SET_PROTOCOL_FEATURES", u64(ALL));
    // A disk that is read-only offers less.
    const offered = new DataView(front.ask("GET_FEATURES").payload.buffer).getBigUint64(0, true);
    front.good("SET_FEATURES", u64(this.features & offered));
    front.good("SET_MEM_TABLE", regionTable(this.region), { fds: [this.memory] });
    if (tracked) {
      if (this.area === null) {
        const { payload, fds } = front.ask("GET_INFLIGHT_FD", inflight(0, 0, this.queues.length, this.size));
        this.area = { payload, fd: fds[0] };
      }
      front.good("SET_INFLIGHT_FD", this.area.payload, { fds: [this.area.fd] });
    }
    for (let queue = 0; queue < this.queues.length; queue++) this.startRing(front, queue);
  }

  startRing(front: FrontEnd, queue: number, base = this.layout === "packed" ? 0x8000_8000 : 0): void {
    front.good("SET_VRING_NUM", vringState(queue, this.size));
    front.good("SET_VRING_BASE", vringState(queue, base));
    front.good("SET_VRING_ADDR", vringAddress(queue, this.userAddresses(queue)));
    front.good("SET_VRING_CALL", u64(queue), { fds: [this.calls[queue].descriptor] });
    front.good("SET_VRING_ERR", u64(queue), { fds: [this.errs[queue].descriptor] });
    front.good("SET_VRING_KICK", u64(queue), { fds: [this.kicks[queue].descriptor] });
    front.good("SET_VRING_ENABLE", vringState(queue, 1));
  }

  /** The data of a request. */
  data(slot: number, lengthBytes = this.slotBytes): Uint8Array<ArrayBuffer> {
    return this.ram.bytes.subarray(this.#at(slot) + SLOT_HEAD_BYTES).subarray(0, lengthBytes);
  }

  /**
   * Makes a request available; the data of a write is in its slot already. No kick.
   *
   * @param dataAddress where its data are, when not in its slot
   */
  submit(slot: number, type: number, offset: number, lengthBytes: number, queue = 0, dataAddress?: number): boolean {
    const at = this.#at(slot);
    const view = this.#view;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 0, true);
    const sector = offset / 512;
    view.setUint32(at + 8, type === TYPE.read || type === TYPE.write ? sector : 0, true);
    view.setUint32(at + 12, 0, true);
    view.setUint8(at + 16, 0xee);
    let dataBytes = lengthBytes;
    if (type === TYPE.discard || type === TYPE.zero) {
      view.setBigUint64(at + SLOT_HEAD_BYTES, BigInt(sector), true);
      view.setUint32(at + SLOT_HEAD_BYTES + 8, lengthBytes / 512, true);
      view.setUint32(at + SLOT_HEAD_BYTES + 12, 0, true);
      dataBytes = 16;
    }
    const guest = GUEST_BASE + at;
    const elements = [
      { address: guest, length: 16, writable: false },
      { address: dataAddress ?? guest + SLOT_HEAD_BYTES, length: dataBytes, writable: type === TYPE.read },
      { address: guest + 16, length: 1, writable: true },
    ];
    if (dataBytes === 0) elements.splice(1, 1);
    if (!this.queues[queue].add(elements, elements.length, slot)) throw new Error("the ring is full");
    this.inFlight++;
    return this.queues[queue].publish();
  }

  kick(queue = 0): void {
    this.kicks[queue].signal();
  }

  /** Takes what was used. */
  collect(queue = 0): Answer[] {
    const answers: Answer[] = [];
    for (let slot; (slot = this.queues[queue].take()) !== -1;) {
      this.inFlight--;
      answers.push({ slot, status: this.#view.getUint8(this.#at(slot) + 16) });
    }
    return answers;
  }

  /** Waits for used buffers. */
  wait(queue = 0, timeoutMs = PATIENCE_MS): Answer[] {
    const end = performance.now() + timeoutMs;
    const driver = this.queues[queue];
    for (;;) {
      const answers = this.collect(queue);
      if (answers.length > 0) return answers;
      if (driver.enableInterrupts()) continue;
      const left = end - performance.now();
      if (left <= 0 || !this.calls[queue].wait(Math.ceil(left))) throw new Error("a request never came back");
      this.calls[queue].drain();
    }
  }

  /** One request from its start to its end; returns its status. */
  run(type: number, offset: number, lengthBytes: number, data?: Uint8Array, queue = 0): number {
    const slot = this.free[this.free.length - 1];
    if (data !== undefined) this.data(slot, data.byteLength).set(data);
    this.submit(slot, type, offset, lengthBytes, queue);
    this.kick(queue);
    return this.wait(queue)[0].status;
  }

  /** What a range of the disk holds. */
  read(offset: number, lengthBytes: number, queue = 0): Uint8Array<ArrayBuffer> {
    const status = this.run(TYPE.read, offset, lengthBytes, undefined, queue);
    assert(status === OK, `a read of ${lengthBytes} bytes at ${offset} ended with ${status}`);
    return this.data(this.free[this.free.length - 1], lengthBytes).slice();
  }

  #at(slot: number): number {
    return this.#slotsAt - GUEST_BASE + slot * (SLOT_HEAD_BYTES + this.slotBytes);
  }
}

/** Asserts that the process serves a new front-end as if nothing had been. */
export function assertServes(path: string): void {
  using front = new FrontEnd(path);
  using guest = new Guest();
  guest.start(front);
  const block = new Uint8Array(512).fill(0x5a);
  assert(guest.run(TYPE.write, 0, 512, block) === OK, "a write failed");
  assert(guest.read(0, 512).every((byte) => byte === 0x5a), "what was written was not read back");
}

/** What the control socket answers to a command. */
export function control(path: string, request: Readonly<Record<string, unknown>>): ControlReply {
  using socket = UnixConnection.connect(path);
  using descriptors = new DescriptorList();
  socket.send(new TextEncoder().encode(`${JSON.stringify(request)}\n`), [], PATIENCE_MS);
  for (let text = "";;) {
    const bytes = new Uint8Array(1);
    if (socket.receive(bytes, descriptors, PATIENCE_MS) !== "all") throw new Error(`no answer: ${text}`);
    if (bytes[0] === 10) return JSON.parse(text) as ControlReply;
    text += String.fromCharCode(bytes[0]);
  }
}

/** An answer of the control socket, as far as tests look at it. */
export interface ControlReply extends Partial<ServedReport> {
  readonly ok: boolean;
  readonly error?: string;
  readonly size?: number;
}
