/**
 * eventfd(2): a counter that one side adds to and the other waits for. What kicks and calls are made of.
 *
 * @module
 */

import { EAGAIN, EOPNOTSUPP, HostError } from "./errno.ts";
import { check, close, isNonBlocking, lastErrno, libc, POLL, poll, RWF_NOWAIT } from "./libc.ts";
import { addressOf, pointerTo } from "./mapping.ts";

const EFD_CLOEXEC = 0x80000;
const EFD_NONBLOCK = 0x800;

/** A counter in the kernel. */
export class EventFd implements Disposable {
  /** The descriptor, until `close`. */
  readonly descriptor: number;
  /** What is read and written; and behind it an address and a length for the kernel. */
  readonly #count = new BigUint64Array(3);
  #iovecPointer: Deno.PointerValue = null;
  #closed = false;

  /** Takes over a descriptor that somebody sent: of either kind, waiting or not. It is closed with this. */
  constructor(descriptor: number) {
    this.descriptor = descriptor;
  }

  /** A new one, whose reads and writes never wait unless `blocking` is set. */
  static create(options: { blocking?: boolean } = {}): EventFd {
    const flags = EFD_CLOEXEC | (options.blocking ? 0 : EFD_NONBLOCK);
    return new EventFd(check("eventfd", () => libc().eventfd(0, flags)));
  }

  /** Whether a read of an empty counter fails instead of waiting. */
  get isNonBlocking(): boolean {
    return isNonBlocking(this.descriptor);
  }

  /** Adds 1. A counter that is full already tells the other side just as much. */
  signal(): void {
    this.#count[0] = 1n;
    // The other side may have made it one that waits, and then nobody can be made to wait on purpose: a full counter
    // is looked for first.
    if ((poll(this.descriptor, POLL.OUT, 0) & POLL.OUT) === 0) return;
    if (libc().write(this.descriptor, this.#count, 8n) === 8) return;
    const errno = lastErrno();
    if (errno !== EAGAIN) throw new HostError("write", errno);
  }

  /** Empties the counter; returns what was in it, 0 when nothing was. Never waits. */
  drain(): bigint {
    // To look first is not enough: the other side may take the count between the look and the read, and then a counter
    // of the kind that waits would hold us.
    const count = libc().preadv2(this.descriptor, this.#iovec(), 1, -1n, RWF_NOWAIT);
    if (count === 8) return this.#count[0];
    const errno = lastErrno();
    if (errno === EAGAIN) return 0n;
    // Linux before 5.8.
    if (errno === EOPNOTSUPP) return this.#drainAfterLook();
    throw new HostError("read", errno);
  }

  /** Waits until somebody signals; returns whether that happened in time. */
  wait(timeoutMs: number): boolean {
    return (poll(this.descriptor, POLL.IN, timeoutMs) & POLL.IN) !== 0;
  }

  /** Gives the descriptor back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    close(this.descriptor);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #drainAfterLook(): bigint {
    if ((poll(this.descriptor, POLL.IN, 0) & POLL.IN) === 0) return 0n;
    if (libc().read(this.descriptor, this.#count, 8n) === 8) return this.#count[0];
    const errno = lastErrno();
    if (errno === EAGAIN) return 0n;
    throw new HostError("read", errno);
  }

  /** A struct iovec of the count, right behind it. */
  #iovec(): Deno.PointerValue {
    if (this.#iovecPointer === null) {
      const address = addressOf(this.#count.buffer);
      this.#count[1] = BigInt(address);
      this.#count[2] = 8n;
      this.#iovecPointer = pointerTo(address + 8);
    }
    return this.#iovecPointer;
  }
}
