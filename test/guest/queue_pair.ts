/**
 * The driver's half and the device's half of a queue on one memory, and a model of the buffers between them.
 *
 * Both sides act only when they are notified, as in real life, and a seed decides who takes the next step. A step is
 * one operation on the ring, so the two are interleaved in every way that two processors allow: a wakeup that gets
 * lost ends the run with buffers that nobody works on.
 *
 * @module
 */

import { GuestAllocator } from "../../src/guest/allocator.ts";
import type { BufferElement, DriverQueue } from "../../src/guest/driver_queue.ts";
import { PackedDriverQueue } from "../../src/guest/packed_driver_queue.ts";
import { SplitDriverQueue } from "../../src/guest/split_driver_queue.ts";
import { GuestMemory } from "../../src/memory/guest_memory.ts";
import { MemoryRegion } from "../../src/memory/region.ts";
import { DescriptorChain } from "../../src/virtio/virtqueue/chain.ts";
import { PackedVirtqueue } from "../../src/virtio/virtqueue/packed_virtqueue.ts";
import { SplitVirtqueue } from "../../src/virtio/virtqueue/split_virtqueue.ts";
import type { Virtqueue } from "../../src/virtio/virtqueue/virtqueue.ts";
import type { Random } from "../random.ts";

/** What can be negotiated. */
export interface Features {
  layout: "split" | "packed";
  eventIdx: boolean;
  inOrder: boolean;
  indirect: boolean;
}

/** What a canary lets go wrong. */
export type Fault =
  | "deaf device"
  | "deaf driver"
  | "no kick"
  | "no call"
  | "wrong length"
  | "wrong byte"
  | "lost buffer"
  | "out of order";

/** A buffer between the two: what the device must read, and what the driver must find. */
interface Buffer {
  elements: BufferElement[];
  readable: Uint8Array;
  /** What the device wrote, once it did. */
  written: Uint8Array | null;
  addresses: number[];
  sequence: number;
}

/** The run of one seed. */
export class QueuePair {
  readonly driver: DriverQueue;
  readonly device: Virtqueue;
  readonly #random: Random;
  readonly #features: Features;
  readonly #fault: Fault | undefined;
  readonly #allocator: GuestAllocator;
  readonly #freeBytes: number;
  readonly #total: number;

  /** By token: what is between add() and take(). */
  readonly #buffers = new Map<number, Buffer>();
  readonly #freeTokens: number[] = [];
  /** Popped and not yet pushed. */
  readonly #working: DescriptorChain[] = [];
  #sent = 0;
  #returned = 0;
  #kicked = false;
  #called = false;

  constructor(random: Random, features: Features, total: number, fault?: Fault) {
    this.#random = random;
    this.#features = features;
    this.#total = total;
    this.#fault = fault;
    const { layout, ...negotiated } = features;
    const options = { ...negotiated, inOrder: features.inOrder && fault !== "out of order" };
    const size = layout === "split" ? 1 << random.between(0, 6) : random.between(1, 70);
    const ram = new MemoryRegion(0x4000_0000, new Uint8Array(1 << 20));
    this.#allocator = new GuestAllocator(ram);
    const Driver = layout === "split" ? SplitDriverQueue : PackedDriverQueue;
    this.driver = new Driver(this.#allocator, { size, ...options });
    const { desc: descAddress, driver: driverAddress, device: deviceAddress } = this.driver.addresses;
    const Device = layout === "split" ? SplitVirtqueue : PackedVirtqueue;
    const memory = new GuestMemory([ram]);
    const device = Device.create({ memory, size, descAddress, driverAddress, deviceAddress, ...options });
    if ("rule" in device) throw new Error(device.found);
    this.device = device;
    this.#freeBytes = this.#allocator.freeBytes;
    for (let token = size - 1; token >= 0; token--) this.#freeTokens.push(token);
  }

  /** Runs until every buffer is back. */
  run(): void {
    const actors = [this.#submit(), this.#interrupts(), this.#pops(), this.#completes()];
    // Each actor yields true when it did something; a round without is a standstill. The bound is against livelock.
    for (let idle = 0, steps = 0; this.#returned < this.#total; steps++) {
      const progress = this.#random.pick(actors).next().value;
      idle = progress ? 0 : idle + 1;
      if (idle > 200) {
        const { freeCount } = this.driver;
        throw new Error(`standstill: ${this.#sent} sent, ${this.#returned} returned, ${freeCount} descriptors free`);
      }
      if (steps > 200 * this.#total + 10_000) throw new Error("the two halves are busy, but nothing moves");
    }
    this.#atRest();
  }

  /** When all buffers are back, everything is as it was at first. */
  #atRest(): void {
    const { driver, device } = this;
    if (driver.freeCount !== driver.size) throw new Error(`${driver.freeCount} of ${driver.size} descriptors are free`);
    if (driver.take() !== -1) throw new Error("a buffer came back that nobody sent");
    if (device.pop(new DescriptorChain())) throw new Error("a buffer was popped that nobody sent");
    if (device.inFlightCount !== 0) throw new Error(`${device.inFlightCount} buffers are in flight`);
    const { popped, pushed, published, batches, calls, callsSuppressed } = device.counters;
    if (popped !== this.#total || pushed !== popped || published !== popped || batches !== calls + callsSuppressed) {
      throw new Error(`the counters do not add up: ${JSON.stringify(device.counters)}`);
    }
    driver.release();
    if (this.#allocator.freeBytes <= this.#freeBytes) throw new Error("release() gave nothing back");
  }

  /** The driver sends what fits, in batches. */
  *#submit(): Generator<boolean> {
    for (;;) {
      let sent = false;
      for (let batch = this.#random.between(1, 8); batch > 0 && this.#sent < this.#total; batch--) {
        if (this.#freeTokens.length === 0 || !this.#send()) break;
        sent = true;
        if (this.#random.oneIn(3)) yield true;
      }
      if (this.driver.addedCount > 0) {
        if (this.driver.publish() && this.#fault !== "no kick") this.#kicked = true;
        sent = true;
      }
      yield sent;
    }
  }

  #send(): boolean {
    const random = this.#random;
    const count = random.between(1, Math.min(this.driver.size, random.pick([1, 2, 3, 8])));
    const readableCount = random.between(0, count);
    if (this.driver.slotsFor(count) > this.driver.freeCount) {
      const nothing = Array.from({ length: count }, () => ({ address: 0, length: 1, writable: false }));
      if (this.driver.add(nothing, count, 0)) throw new Error("add() found room that is not there");
      return false;
    }
    const elements = Array.from({ length: count }, (_, i): BufferElement => {
      const length = random.pick([1, 7, 16, 33, 200]);
      return { address: this.#allocator.allocate(length), length, writable: i >= readableCount };
    });
    const readable = random.bytes(sum(elements.filter(({ writable }) => !writable)));
    let at = 0;
    for (const { address, length, writable } of elements) {
      if (writable) continue;
      this.#allocator.bytes(address, length).set(readable.subarray(at, at + length));
      at += length;
    }
    const token = this.#freeTokens.pop()!;
    const addresses = elements.map(({ address }) => address);
    this.#buffers.set(token, { elements, readable, written: null, addresses, sequence: this.#sent });
    if (!this.driver.add(elements, count, token)) throw new Error(`add() found no room for ${count} elements`);
    this.#sent++;
    return true;
  }

  /** The driver's interrupt handler. */
  *#interrupts(): Generator<boolean> {
    for (;;) {
      while (!this.#called) yield false;
      this.#called = false;
      let more: boolean;
      do {
        this.driver.disableInterrupts();
        yield true;
        for (let token; (token = this.driver.take()) >= 0;) {
          this.#receive(token);
          if (this.#random.oneIn(3)) yield true;
        }
        yield true;
        more = this.driver.enableInterrupts();
        if (this.#fault === "deaf driver") more = false;
      } while (more);
      yield true;
    }
  }

  #receive(token: number): void {
    const buffer = this.#buffers.get(token);
    if (buffer === undefined) throw new Error(`token ${token} came back, which was not sent`);
    const { written, elements, sequence } = buffer;
    if (written === null) throw new Error(`token ${token} came back before the device was done with it`);
    if (this.#features.inOrder && sequence !== this.#returned) {
      throw new Error(`buffer ${sequence} came back, ${this.#returned} is next`);
    }
    if (this.driver.usedLength !== written.byteLength) {
      throw new Error(`used length ${this.driver.usedLength}, the device wrote ${written.byteLength}`);
    }
    const found = elements.filter(({ writable }) => writable)
      .flatMap(({ address, length }) => [...this.#allocator.bytes(address, length)]);
    if (written.some((byte, i) => byte !== found[i])) {
      throw new Error(`buffer ${sequence}: the device's bytes are not there`);
    }
    this.#buffers.delete(token);
    for (const address of buffer.addresses) this.#allocator.free(address);
    this.#freeTokens.push(token);
    this.#returned++;
  }

  /** The device takes what is available, when it was notified. */
  *#pops(): Generator<boolean> {
    for (;;) {
      while (!this.#kicked) yield false;
      this.#kicked = false;
      this.device.disableNotifications();
      let more: boolean;
      do {
        yield true;
        for (let chain; this.device.pop(chain = new DescriptorChain());) {
          this.#working.push(chain);
          if (this.#random.oneIn(3)) yield true;
        }
        if (this.device.violation !== null) throw new Error(`the ring broke: ${this.device.violation.found}`);
        yield true;
        more = this.device.enableNotifications();
        if (this.#fault === "deaf device") more = false;
      } while (more);
      yield true;
    }
  }

  /** The device completes some of what it works on, in any order, and publishes. */
  *#completes(): Generator<boolean> {
    for (;;) {
      const count = Math.min(this.#working.length, this.#random.between(0, 6));
      for (let i = 0; i < count; i++) {
        this.#complete(this.#working.splice(this.#random.below(this.#working.length), 1)[0]);
        if (this.#random.oneIn(3)) yield true;
      }
      if (this.device.publish() && this.#fault !== "no call") this.#called = true;
      yield count > 0;
    }
  }

  #complete(chain: DescriptorChain): void {
    if (chain.violation !== null) throw new Error(`a good buffer was refused: ${chain.violation.found}`);
    const found = new Uint8Array(chain.readable.byteLength);
    chain.readable.copyTo(found);
    const capacity = chain.writable.byteLength;
    const buffer = this.#bufferAt(chain);
    if (sum(buffer.elements) !== found.byteLength + capacity) throw new Error("the chain has other lengths");
    if (found.some((byte, i) => byte !== buffer.readable[i])) throw new Error("the driver's bytes are not there");
    const written = this.#random.bytes(this.#random.pick([0, capacity, this.#random.below(capacity + 1)]));
    chain.writable.copyFrom(written);
    buffer.written = written.slice();
    if (this.#fault === "wrong byte" && written.byteLength > 0) buffer.written[written.byteLength - 1] ^= 1;
    if (this.#fault === "lost buffer" && this.#random.oneIn(50)) return;
    this.device.push(chain, written.byteLength + (this.#fault === "wrong length" ? 1 : 0));
  }

  /** The buffer that a chain is, by the address of its first element. */
  #bufferAt(chain: DescriptorChain): Buffer {
    const list = chain.readable.count > 0 ? chain.readable : chain.writable;
    const address = list.regionOf(0).guestAddress + list.offsetOf(0);
    for (const buffer of this.#buffers.values()) if (buffer.addresses[0] === address) return buffer;
    throw new Error(`no buffer was sent that begins at ${address}`);
  }
}

function sum(elements: readonly BufferElement[]): number {
  return elements.reduce((total, { length }) => total + length, 0);
}
