/**
 * One connection over a Unix socket: exactly so many bytes at a time, and the descriptors that come with them.
 *
 * @module
 */

import { EAGAIN, EINTR, HostError } from "./errno.ts";
import { check, close, lastErrno, libc, POLL, poll } from "./libc.ts";
import { DescriptorList, MSG, SocketMessage } from "./socket_message.ts";
import { addressBytes, newSocket } from "./unix_address.ts";

/** How a receive ended: all bytes are there; the other side had closed before the first; it was not in time. */
export type Received = "all" | "end" | "timeout";

/** What vhost-user sends at most with one message is eight; others are closed by the kernel. */
const DEFAULT_DESCRIPTORS = 32;

/** The other side does not keep to what was agreed; the connection is of no use any more. */
export class ConnectionBroken extends Error {
  /** Always `"ConnectionBroken"`: what a stack trace begins with. */
  override readonly name = "ConnectionBroken";
}

/** A connected stream socket. */
export class UnixConnection implements Disposable {
  /** The descriptor, until `close`. */
  readonly descriptor: number;
  readonly #message: SocketMessage;
  readonly #mostDescriptors: number;
  #closed = false;

  /** Takes over a connected socket: it is closed with this. */
  constructor(descriptor: number, mostDescriptors: number = DEFAULT_DESCRIPTORS) {
    this.descriptor = descriptor;
    this.#mostDescriptors = mostDescriptors;
    this.#message = new SocketMessage(mostDescriptors);
  }

  /** Connects to a server. */
  static connect(path: string): UnixConnection {
    const address = addressBytes(path);
    const descriptor = newSocket();
    try {
      check("connect", () => libc().connect(descriptor, address, address.byteLength), path);
      return new UnixConnection(descriptor);
    } catch (error) {
      close(descriptor);
      throw error;
    }
  }

  /** Two ends of one connection. */
  static pair(): [UnixConnection, UnixConnection] {
    const ends = new Int32Array(2);
    const SOCK_STREAM_CLOEXEC = 1 | 0x80000;
    check("socketpair", () => libc().socketpair(1, SOCK_STREAM_CLOEXEC, 0, ends));
    return [new UnixConnection(ends[0]), new UnixConnection(ends[1])];
  }

  /**
   * Fills `into`, and collects the descriptors that come with it. Never reads further, so that descriptors of the next
   * message stay there.
   *
   * @param timeoutMs for all of it; -1 waits for ever
   * @throws ConnectionBroken when the other side closes in the middle, or sends too many descriptors; those that came
   * are in the list all the same
   */
  receive(into: Uint8Array<ArrayBuffer>, descriptors: DescriptorList, timeoutMs = -1): Received {
    const deadline = performance.now() + timeoutMs;
    for (let done = 0; done < into.byteLength;) {
      const left = timeoutMs < 0 ? -1 : Math.max(0, Math.ceil(deadline - performance.now()));
      if (poll(this.descriptor, POLL.IN, left) === 0) return this.#late(done);
      const count = this.receiveSome(into.subarray(done), descriptors);
      if (count === 0 && done === 0) return "end";
      if (count === 0) throw new ConnectionBroken("the other side closed the connection in the middle of a message");
      done += Math.max(0, count);
    }
    return "all";
  }

  /**
   * Sends all of `bytes`; copies of the descriptors go with the first of them.
   *
   * @param timeoutMs for all of it; a peer that does not read must not hold us for ever. -1 waits
   * @throws ConnectionBroken when it was not in time
   * @throws HostError when the other side has closed
   */
  send(bytes: Uint8Array<ArrayBuffer>, descriptors: readonly number[] = [], timeoutMs = -1): void {
    if (descriptors.length > this.#mostDescriptors) throw new RangeError("more descriptors than there is room for");
    const deadline = performance.now() + timeoutMs;
    for (let done = 0; done < bytes.byteLength;) {
      const left = timeoutMs < 0 ? -1 : Math.max(0, Math.ceil(deadline - performance.now()));
      if (poll(this.descriptor, POLL.OUT, left) === 0) throw new ConnectionBroken("the other side does not read");
      this.#message.prepareToSend(bytes.subarray(done), done === 0 ? descriptors : []);
      const count = libc().sendmsg(this.descriptor, this.#message.pointer, MSG.NOSIGNAL | MSG.DONTWAIT);
      if (count >= 0) {
        done += count;
        continue;
      }
      const errno = lastErrno();
      if (errno !== EAGAIN && errno !== EINTR) throw new HostError("sendmsg", errno);
    }
  }

  /** Says that nothing more will be sent: the other side reads on to the end. */
  endSending(): void {
    const SHUT_WR = 1;
    libc().shutdown(this.descriptor, SHUT_WR);
  }

  /** Refuses what the other side sends from here on; what has come can still be received. */
  endReceiving(): void {
    const SHUT_RD = 0;
    libc().shutdown(this.descriptor, SHUT_RD);
  }

  /** Ends the connection. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    close(this.descriptor);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #late(doneBytes: number): Received {
    if (doneBytes === 0) return "timeout";
    throw new ConnectionBroken("the other side stopped in the middle of a message");
  }

  /**
   * Takes what is there, without waiting.
   *
   * @returns how many bytes came; 0 when the other side has closed, -1 when there were none yet
   * @throws ConnectionBroken for too many descriptors; HostError
   */
  receiveSome(into: Uint8Array<ArrayBuffer>, descriptors: DescriptorList): number {
    this.#message.prepareToReceive(into);
    const count = libc().recvmsg(this.descriptor, this.#message.pointer, MSG.CMSG_CLOEXEC | MSG.DONTWAIT);
    if (count < 0) {
      const errno = lastErrno();
      if (errno === EAGAIN || errno === EINTR) return -1;
      throw new HostError("recvmsg", errno);
    }
    if (this.#message.takeDescriptors(descriptors)) return count;
    throw new ConnectionBroken(`the other side sent more than ${this.#mostDescriptors} descriptors at once`);
  }
}
