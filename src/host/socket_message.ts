/**
 * Messages on a Unix socket that carry file descriptors (SCM_RIGHTS): the memory that sendmsg(2) and recvmsg(2) work
 * on, whether they are called or prepared on an io_uring.
 *
 * Descriptors that arrive are open from that moment on, whoever wants them or not. They go into a `DescriptorList`,
 * which closes what nobody takes out of it.
 *
 * @module
 */

import { close } from "./libc.ts";
import { addressOf, pointerTo } from "./mapping.ts";

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 8;
const MSGHDR_BYTES = 56;
const IOVEC_BYTES = 16;
const CMSGHDR_BYTES = 16;
const CONTROL_AT = MSGHDR_BYTES + IOVEC_BYTES;

/** Flags of sendmsg(2) and recvmsg(2). */
export const MSG = { DONTWAIT: 0x40, NOSIGNAL: 0x4000, CMSG_CLOEXEC: 0x40000000 } as const;

/** Descriptors that came with a message, until somebody takes them. */
export class DescriptorList implements Disposable {
  #descriptors: number[] = [];

  /** How many there are. */
  get count(): number {
    return this.#descriptors.length;
  }

  /** Adds one, which is ours from here on. */
  add(descriptor: number): void {
    this.#descriptors.push(descriptor);
  }

  /** Gives the first one away: whoever calls must close it. `null` when there is none. */
  take(): number | null {
    return this.#descriptors.shift() ?? null;
  }

  /** Closes all that are left. */
  close(): void {
    for (const descriptor of this.#descriptors.splice(0)) close(descriptor);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** A struct msghdr with one iovec and room for descriptors. */
export class SocketMessage {
  /** Where the msghdr lies: what the kernel is given. */
  readonly address: number;
  /** The same, for a call. */
  readonly pointer: Deno.PointerValue;
  readonly #view: DataView<ArrayBuffer>;
  readonly #mostDescriptors: number;
  /** What the iovec points to, so that it stays alive. */
  #bytes: Uint8Array<ArrayBuffer> | undefined;

  /** Makes room for a number of descriptors. What a sender sends beyond it is closed by the kernel. */
  constructor(mostDescriptors: number) {
    this.#mostDescriptors = mostDescriptors;
    this.#view = new DataView(new ArrayBuffer(CONTROL_AT + controlBytes(mostDescriptors)));
    this.address = addressOf(this.#view.buffer);
    this.pointer = pointerTo(this.address);
    this.#setAddress(16, this.address + MSGHDR_BYTES);
    this.#view.setUint32(24, 1, true);
  }

  /** Makes it ready to receive into `bytes`. */
  prepareToReceive(bytes: Uint8Array<ArrayBuffer>): void {
    this.#prepare(bytes, controlBytes(this.#mostDescriptors));
  }

  /** Makes it ready to send `bytes` and copies of descriptors, which stay the caller's. */
  prepareToSend(bytes: Uint8Array<ArrayBuffer>, descriptors: readonly number[]): void {
    if (descriptors.length > this.#mostDescriptors) throw new RangeError("more descriptors than there is room for");
    this.#prepare(bytes, descriptors.length === 0 ? 0 : controlBytes(descriptors.length));
    this.#view.setUint32(CONTROL_AT, CMSGHDR_BYTES + 4 * descriptors.length, true);
    this.#view.setUint32(CONTROL_AT + 4, 0, true);
    this.#view.setInt32(CONTROL_AT + 8, SOL_SOCKET, true);
    this.#view.setInt32(CONTROL_AT + 12, SCM_RIGHTS, true);
    descriptors.forEach((fd, i) => this.#view.setInt32(CONTROL_AT + CMSGHDR_BYTES + 4 * i, fd, true));
  }

  /**
   * Takes what arrived with a message. Must be called after each one that was received, or descriptors leak.
   *
   * @returns `false` when there were more than there was room for, and some are lost
   */
  takeDescriptors(into: DescriptorList): boolean {
    const end = Math.min(this.#view.getUint32(40, true), controlBytes(this.#mostDescriptors)) + CONTROL_AT;
    for (let at = CONTROL_AT; at + CMSGHDR_BYTES <= end;) {
      const lengthBytes = this.#view.getUint32(at, true);
      if (lengthBytes < CMSGHDR_BYTES) break;
      const isRights = this.#view.getInt32(at + 8, true) === SOL_SOCKET &&
        this.#view.getInt32(at + 12, true) === SCM_RIGHTS;
      const stop = Math.min(at + lengthBytes, end);
      for (let i = at + CMSGHDR_BYTES; isRights && i + 4 <= stop; i += 4) into.add(this.#view.getInt32(i, true));
      at += Math.ceil(lengthBytes / 8) * 8;
    }
    // Never twice the same ones.
    this.#view.setUint32(40, 0, true);
    return (this.#view.getInt32(48, true) & MSG_CTRUNC) === 0;
  }

  #prepare(bytes: Uint8Array<ArrayBuffer>, lengthOfControl: number): void {
    this.#bytes = bytes;
    this.#setAddress(MSGHDR_BYTES, addressOf(bytes.buffer) + bytes.byteOffset);
    this.#view.setUint32(MSGHDR_BYTES + 8, this.#bytes.byteLength, true);
    this.#setAddress(32, lengthOfControl === 0 ? 0 : this.address + CONTROL_AT);
    this.#view.setUint32(40, lengthOfControl, true);
    this.#view.setInt32(48, 0, true);
  }

  #setAddress(at: number, address: number): void {
    this.#view.setUint32(at, address, true);
    this.#view.setUint32(at + 4, address / 0x1_0000_0000, true);
  }
}

function controlBytes(descriptors: number): number {
  return CMSGHDR_BYTES + Math.ceil((4 * descriptors) / 8) * 8;
}
