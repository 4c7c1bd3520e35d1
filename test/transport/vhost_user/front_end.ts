/**
 * A vhost-user front-end for tests: speaks the protocol rightly, or wrongly in every way, to a back-end in the same
 * process. With it, the guest's half of a ring in memory that both share.
 *
 * @module
 */

import { GuestAllocator } from "../../../src/guest/allocator.ts";
import type { DriverQueue } from "../../../src/guest/driver_queue.ts";
import { PackedDriverQueue } from "../../../src/guest/packed_driver_queue.ts";
import { SplitDriverQueue } from "../../../src/guest/split_driver_queue.ts";
import { MemoryRegion } from "../../../src/memory/region.ts";
import type { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import type { VhostUserConnection } from "../../../src/transport/vhost_user/connection.ts";
import {
  encodeVringState,
  FLAG_NEED_REPLY,
  HEADER_BYTES,
  REQUEST,
  type RequestName,
  VHOST_USER_VERSION,
} from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import { FakeEvent, FakeFile, type FakeHost } from "./fake_host.ts";

export type Layout = "split" | "packed";
export const LAYOUTS: readonly Layout[] = ["split", "packed"];

/** What came back. */
export interface Received {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly view: DataView;
  readonly fds: readonly number[];
}

/** How to send a message. */
export interface SendOptions {
  readonly fds?: readonly number[];
  readonly needReply?: boolean;
  /** Replaces the flags. */
  readonly flags?: number;
  /** Replaces the size field. */
  readonly size?: number;
  /** Cuts the bytes after so many, and again. */
  readonly chunk?: number;
}

export function u64(value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

export function u64s(...values: (number | bigint)[]): Uint8Array {
  return Uint8Array.from(values.flatMap((value) => [...u64(value)]));
}

export const vringState: (index: number, num: number) => Uint8Array = encodeVringState;

/** "A vring address description". */
export function vringAddress(
  index: number,
  at: { desc: number; driver: number; device: number },
  flags = 0,
  log: number | bigint = 0,
): Uint8Array {
  return Uint8Array.from([...vringState(index, flags), ...u64s(at.desc, at.device, at.driver, log)]);
}

/** A region of memory as the front-end describes it. */
export interface TestRegion {
  readonly guest: number | bigint;
  readonly size: number | bigint;
  readonly user: number | bigint;
  readonly offset?: number | bigint;
}

export function region({ guest, size, user, offset = 0 }: TestRegion): Uint8Array {
  return u64s(guest, size, user, offset);
}

export function oneRegion(described: TestRegion): Uint8Array {
  return Uint8Array.from([...u64(0), ...region(described)]);
}

export function regionTable(...described: TestRegion[]): Uint8Array {
  return Uint8Array.from([...vringState(described.length, 0), ...described.flatMap((one) => [...region(one)])]);
}

export function config(offset: number, bytes: readonly number[], flags = 0, size = bytes.length): Uint8Array {
  return Uint8Array.from([...vringState(offset, size), ...vringState(flags, 0).subarray(0, 4), ...bytes]);
}

/** "Inflight description", padded as QEMU sends it. */
export function inflight(sizeBytes: number, offset: number, queues: number, queueSize: number): Uint8Array {
  return Uint8Array.from([
    ...u64s(sizeBytes, offset),
    ...new Uint8Array(Uint16Array.of(queues, queueSize).buffer),
    0,
    0,
    0,
    0,
  ]);
}

/** A front-end. */
export class FrontEnd {
  readonly host: FakeHost;
  readonly connection: VhostUserConnection;
  /** Replies that nobody looked at. */
  readonly replies: Received[] = [];
  readonly #outgoing: { bytes: Uint8Array; fds: readonly number[]; chunk: number }[] = [];

  constructor(backEnd: VhostUserBackEnd, host: FakeHost) {
    this.host = host;
    this.connection = backEnd.open((message, fds) => {
      const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
      const payload = message.slice(HEADER_BYTES);
      this.replies.push({
        request: view.getUint32(0, true),
        flags: view.getUint32(4, true),
        payload,
        view: new DataView(payload.buffer),
        fds,
      });
    });
    this.connection.onReady = () => this.#pump();
  }

  /** Sends a message; what cannot be sent yet is sent later. */
  send(request: RequestName | number, payload: Uint8Array = new Uint8Array(0), options: SendOptions = {}): void {
    const bytes = new Uint8Array(HEADER_BYTES + payload.byteLength);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, typeof request === "number" ? request : REQUEST[request], true);
    view.setUint32(4, options.flags ?? VHOST_USER_VERSION | (options.needReply ? FLAG_NEED_REPLY : 0), true);
    view.setUint32(8, options.size ?? payload.byteLength, true);
    bytes.set(payload, HEADER_BYTES);
    this.#outgoing.push({ bytes, fds: options.fds ?? [], chunk: options.chunk ?? Infinity });
    this.#pump();
  }

  /** Sends a message that is answered at once, or asks for an acknowledgement; returns the answer. */
  ask(request: RequestName | number, payload?: Uint8Array, options: SendOptions = {}): Received {
    this.replies.length = 0;
    this.send(request, payload, { needReply: true, ...options });
    const reply = this.replies.shift();
    if (reply === undefined) {
      throw new Error(`${request} was not answered: ${JSON.stringify(this.connection.endReason)}`);
    }
    return reply;
  }

  /** Sends a message that must be acknowledged with 0. */
  good(request: RequestName, payload?: Uint8Array, options: SendOptions = {}): void {
    const { view } = this.ask(request, payload, options);
    if (view.getBigUint64(0, true) !== 0n) throw new Error(`${request} was refused`);
  }

  /** Waits for a reply that comes later. */
  async later(): Promise<Received> {
    for (let turns = 0; turns < 1000; turns++) {
      const reply = this.replies.shift();
      if (reply !== undefined) return reply;
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    throw new Error("no reply came");
  }

  #pump(): void {
    for (;;) {
      const next = this.#outgoing[0];
      if (next === undefined) return;
      const wanted = Math.min(this.connection.wantedBytes, next.chunk);
      if (wanted === 0 && this.connection.endReason === null) return;
      if (this.connection.endReason !== null) {
        // What was written before the other end closed is lost, its descriptors too; the kernel closes those.
        for (const fd of next.fds) this.host.open.delete(fd);
        this.#outgoing.shift();
        continue;
      }
      const piece = next.bytes.subarray(0, wanted);
      const fds = next.fds;
      if (next.bytes.byteLength > piece.byteLength) {
        this.#outgoing[0] = { bytes: next.bytes.subarray(piece.byteLength), fds: [], chunk: next.chunk };
      } else {
        this.#outgoing.shift();
      }
      this.connection.receive(piece, fds);
    }
  }
}

/** What `Guest.collect` found. */
export interface Answer {
  readonly token: number;
  readonly status: number;
  readonly data: Uint8Array;
}

/** What a guest is made with. */
export interface GuestOptions {
  readonly layout?: Layout;
  readonly size?: number;
  readonly queues?: number;
  readonly eventIdx?: boolean;
  readonly indirect?: boolean;
  /** `RAM_BYTES` of memory; by default a file of its own. */
  readonly ram?: FakeFile;
}

/** Not a multiple of 8, on purpose. */
export const RAM_BYTES = (1 << 17) + 4;
export const GUEST_BASE = 0x4000_0000;
export const USER_BASE = 0x7f12_3456_7000;

/** The virtual machine behind the front-end: RAM in a file, and a driver that knows reads and writes. */
export class TestGuest {
  readonly layout: Layout;
  readonly size: number;
  readonly ram: FakeFile;
  readonly queues: DriverQueue[];
  readonly kicks: FakeEvent[];
  readonly calls: FakeEvent[];
  readonly errs: FakeEvent[];
  readonly features: bigint;
  readonly #allocator: GuestAllocator;
  readonly #pending = new Map<string, { status: number; data: number; length: number; write: boolean }>();
  #token = 0;

  constructor(options: GuestOptions = {}) {
    const { layout = "split", size = 16, queues = 1, eventIdx = false, indirect = false } = options;
    this.layout = layout;
    this.size = size;
    this.ram = options.ram ?? new FakeFile(RAM_BYTES);
    this.#allocator = new GuestAllocator(new MemoryRegion(GUEST_BASE, this.ram.bytes));
    const make = () => {
      const Driver = layout === "split" ? SplitDriverQueue : PackedDriverQueue;
      return new Driver(this.#allocator, { size, eventIdx, inOrder: false, indirect });
    };
    this.queues = Array.from({ length: queues }, make);
    const events = () => Array.from({ length: queues }, () => new FakeEvent());
    [this.kicks, this.calls, this.errs] = [events(), events(), events()];
    // VERSION_1, PROTOCOL_FEATURES, FLUSH, CONFIG_WCE, and what the options say.
    this.features = 1n << 32n | 1n << 30n | 1n << 9n | 1n << 11n | (queues > 1 ? 1n << 12n : 0n) |
      (layout === "packed" ? 1n << 34n : 0n) | (eventIdx ? 1n << 29n : 0n) | (indirect ? 1n << 28n : 0n);
  }

  get region(): TestRegion {
    return { guest: GUEST_BASE, size: this.ram.bytes.byteLength, user: USER_BASE };
  }

  /** A guest address as the front-end sees it. */
  user(address: number): number {
    return address - GUEST_BASE + USER_BASE;
  }

  userAddresses(queue: number): { desc: number; driver: number; device: number } {
    const { desc, driver, device } = this.queues[queue].addresses;
    return { desc: this.user(desc), driver: this.user(driver), device: this.user(device) };
  }

  /** Features and protocol features. */
  negotiate(front: FrontEnd, protocolFeatures: bigint): void {
    front.send("SET_PROTOCOL_FEATURES", u64(protocolFeatures));
    front.good("SET_FEATURES", u64(this.features));
  }

  /** Tells the memory. */
  shareMemory(front: FrontEnd): void {
    front.good("SET_MEM_TABLE", regionTable(this.region), { fds: [front.host.give(this.ram)] });
  }

  /** Sets a ring up and starts it. */
  startRing(front: FrontEnd, queue: number, base?: number, flags = 0, log = 0): void {
    const { host } = front;
    front.good("SET_VRING_NUM", vringState(queue, this.size));
    front.good("SET_VRING_BASE", vringState(queue, base ?? (this.layout === "packed" ? 0x8000_8000 : 0)));
    front.good("SET_VRING_ADDR", vringAddress(queue, this.userAddresses(queue), flags, log));
    front.good("SET_VRING_CALL", u64(queue), { fds: [host.give(this.calls[queue])] });
    front.good("SET_VRING_ERR", u64(queue), { fds: [host.give(this.errs[queue])] });
    front.good("SET_VRING_KICK", u64(queue), { fds: [host.give(this.kicks[queue])] });
    front.good("SET_VRING_ENABLE", vringState(queue, 1));
  }

  /** Everything up to running rings. */
  start(front: FrontEnd, protocolFeatures: bigint): void {
    this.negotiate(front, protocolFeatures);
    this.shareMemory(front);
    for (let queue = 0; queue < this.queues.length; queue++) this.startRing(front, queue);
  }

  /** Adds a request and makes it available; returns its token. No kick. */
  add(kind: "read" | "write", sector: number, data: Uint8Array | number, queue = 0): number {
    const token = this.#token++;
    const length = typeof data === "number" ? data : data.byteLength;
    const at = this.#allocator.allocate(32 + length, 16);
    const bytes = this.#allocator.bytes(at, 32 + length);
    bytes.fill(0xee);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    view.setUint32(0, kind === "read" ? 0 : 1, true);
    view.setUint32(4, 0, true);
    view.setBigUint64(8, BigInt(sector), true);
    if (typeof data !== "number") bytes.set(data, 16);
    const elements = [
      { address: at, length: 16, writable: false },
      { address: at + 16, length, writable: kind === "read" },
      { address: at + 16 + length, length: 1, writable: true },
    ];
    if (!this.queues[queue].add(elements, elements.length, token)) throw new Error("the ring is full");
    this.queues[queue].publish();
    this.#pending.set(`${queue}:${token}`, {
      status: at + 16 + length,
      data: at + 16,
      length,
      write: kind === "write",
    });
    return token;
  }

  /** Takes the used buffers of a ring. */
  collect(queue = 0): Answer[] {
    const answers: Answer[] = [];
    for (let token; (token = this.queues[queue].take()) !== -1;) {
      const request = this.#pending.get(`${queue}:${token}`);
      if (request === undefined) throw new Error(`request ${token} was answered twice`);
      this.#pending.delete(`${queue}:${token}`);
      const data = this.#allocator.bytes(request.data, request.write ? 0 : request.length).slice();
      answers.push({ token, status: this.#allocator.bytes(request.status, 1)[0], data });
      this.#allocator.free(request.data - 16);
    }
    return answers;
  }

  /** Where the data of a pending request is. */
  dataAddress(token: number, queue = 0): number {
    return this.#pending.get(`${queue}:${token}`)!.data;
  }
}
