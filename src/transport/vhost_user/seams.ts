/**
 * What a vhost-user back-end needs of the machine it runs on, as small interfaces: the protocol is the same over real
 * file descriptors and over the fakes of a test.
 *
 * @module
 */

/** A part of a file in this process's memory. */
export interface MappedBytes {
  /** The bytes, shared with all who map them. They start at an even address. */
  readonly bytes: Uint8Array;
  /** Takes them away. Nobody may look at them afterwards. */
  unmap(): void;
}

/** Something that is given back once. */
export interface Closable {
  close(): void;
}

/** A file descriptor that is written to tell the front-end something: a call, err or log descriptor. */
export interface Notifier extends Closable {
  /**
   * Tells it: maybe a little later, with others, but before any message that is sent afterwards. After the reply to
   * GET_VRING_BASE a call would come too late, or never. Fails silently: a front-end that breaks its own descriptor harms
   * only itself.
   */
  signal(): void;
}

/** The socket for requests of the back-end ("Back-end communication"). */
export interface BackendChannel extends Closable {
  /** Sends one message. Fails silently, and never waits. */
  send(message: Uint8Array): void;
}

/**
 * The machine. A method that takes a file descriptor over closes it itself, in the end or when it fails; `map` and
 * `sizeBytes` do not. What fails throws an `Error` whose message can be shown; the front-end is then refused.
 */
export interface VhostUserHost {
  /** Closes a descriptor. */
  closeFd(fd: number): void;
  /** Makes another descriptor of the same; the caller closes it. */
  duplicateFd(fd: number): number;
  /**
   * Maps a part of a file for reading and writing. The descriptor may be closed afterwards.
   *
   * @throws Error when the range does not lie in the file
   */
  map(fd: number, offset: number, sizeBytes: number): MappedBytes;
  /** Makes a file in memory, full of zeros, that can be sent to the front-end; the caller closes the descriptor. */
  createShared(name: string, sizeBytes: number): number;
  /** Takes over a descriptor to write to. */
  notifier(fd: number): Notifier;
  /**
   * Takes over the descriptor that kicks arrive at, of either kind (waiting or not), and empties it when they do.
   *
   * @param fd `null` when there is none, and the ring must be looked at again and again instead
   * @param onKick called for each kick; never from within this method
   */
  watchKicks(fd: number | null, onKick: () => void): Closable;
  /** Takes over the socket for requests of the back-end. */
  backendChannel(fd: number): BackendChannel;
}

/** The file descriptors that came with one message. What nobody takes is closed when the message was handled. */
export class MessageFds {
  readonly #fds: (number | null)[];

  constructor(fds: readonly number[]) {
    this.#fds = [...fds];
  }

  /** How many came. */
  get count(): number {
    return this.#fds.length;
  }

  /** Descriptor `i`, still owned by the message. */
  at(i: number): number {
    return this.#fds[i]!;
  }

  /** Takes descriptor `i` over. */
  take(i: number): number {
    const fd = this.#fds[i]!;
    this.#fds[i] = null;
    return fd;
  }

  /**
   * Makes descriptors of the same, for somebody else. None may have been taken.
   *
   * @throws Error when there can't be more of them
   */
  duplicate(host: Pick<VhostUserHost, "closeFd" | "duplicateFd">): MessageFds {
    const copies: number[] = [];
    try {
      for (const fd of this.#fds) copies.push(host.duplicateFd(fd!));
      return new MessageFds(copies);
    } catch (error) {
      for (const fd of copies) host.closeFd(fd);
      throw error;
    }
  }

  /** All of them; `null` in the place of those that were taken. */
  get all(): readonly (number | null)[] {
    return this.#fds;
  }

  /** Closes what nobody took. */
  close(host: Pick<VhostUserHost, "closeFd">): void {
    this.#fds.forEach((fd, i) => {
      this.#fds[i] = null;
      if (fd !== null) host.closeFd(fd);
    });
  }
}

/** How something ends: at once, or later. */
export type Completion = void | Promise<void>;

/** Runs `next` when `completion` has ended: at once if it has already. */
export function after<T>(completion: Completion, next: () => T): T | Promise<Awaited<T>> {
  return completion === undefined ? next() : completion.then(next) as Promise<Awaited<T>>;
}
