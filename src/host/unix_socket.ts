/**
 * The server's end of a Unix socket: made with mode 0600, in the place of one that nobody listens at any more; or taken
 * over from systemd (LISTEN_FDS).
 *
 * @module
 */

import { EAGAIN, HostError } from "./errno.ts";
import { check, close, lastErrno, libc, lstat, POLL, poll, setCloseOnExec, setNonBlocking, unlink } from "./libc.ts";
import { addressBytes, isListening, newSocket, SocketPathError } from "./unix_address.ts";
import { UnixConnection } from "./unix_connection.ts";

const MODE = 0o600;
const BACKLOG = 8;
const SOCK_CLOEXEC = 0x80000;
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_ACCEPTCONN = 30;
const SO_DOMAIN = 39;
const ECONNABORTED = 103;
/** Where the descriptors that systemd passes begin. */
const FIRST_PASSED = 3;

/** What systemd tells the process that it starts. */
export interface PassedSockets {
  /** `LISTEN_PID`: for which process they are. */
  readonly pid: string | undefined;
  /** `LISTEN_FDS`: how many there are, from descriptor 3 on. */
  readonly count: string | undefined;
}

/** A socket that others connect to. */
export class UnixServer implements Disposable {
  /** The descriptor, until `close`. It never waits. */
  readonly descriptor: number;
  /** The path that it was made at; `null` for one that was passed to us, which is not ours to remove. */
  readonly path: string | null;
  readonly #identity: string | null;
  #closed = false;

  private constructor(descriptor: number, path: string | null, identity: string | null) {
    this.descriptor = descriptor;
    this.path = path;
    this.#identity = identity;
  }

  /**
   * Makes a socket that only its owner can connect to.
   *
   * @throws SocketPathError when the path is too long, or taken
   * @throws HostError
   */
  static listen(path: string): UnixServer {
    const address = addressBytes(path);
    makeWay(path);
    const descriptor = newSocket();
    try {
      // Before it has a name: afterwards there would be a moment in which others could connect.
      check("fchmod", () => libc().fchmod(descriptor, MODE));
      check("bind", () => libc().bind(descriptor, address, address.byteLength), path);
    } catch (error) {
      close(descriptor);
      throw error;
    }
    try {
      check("listen", () => libc().listen(descriptor, BACKLOG), path);
      setNonBlocking(descriptor, true);
      return new UnixServer(descriptor, path, lstat(path).identity);
    } catch (error) {
      close(descriptor);
      unlink(path);
      throw error;
    }
  }

  /**
   * Takes over a listening socket that the process was started with.
   *
   * @returns `null` when there is none for this process
   * @throws SocketPathError when what was passed is not one listening Unix stream socket
   */
  static adopt({ pid, count }: PassedSockets, descriptor: number = FIRST_PASSED): UnixServer | null {
    if (count === undefined || pid !== String(Deno.pid)) return null;
    if (count !== "1") throw new SocketPathError(`LISTEN_FDS is '${count}', and one socket is what is needed`);
    const isRight = option(descriptor, SO_DOMAIN) === 1 && option(descriptor, SO_TYPE) === 1 &&
      option(descriptor, SO_ACCEPTCONN) === 1;
    if (!isRight) {
      throw new SocketPathError(
        `What was passed as descriptor ${descriptor} is not a Unix stream socket that listens`,
        "in the unit use ListenStream= with a path, and Accept=no",
      );
    }
    setCloseOnExec(descriptor);
    setNonBlocking(descriptor, true);
    return new UnixServer(descriptor, null, null);
  }

  /**
   * Waits for somebody to connect.
   *
   * @param timeoutMs -1 waits for ever
   * @returns `null` when nobody did
   */
  accept(timeoutMs = -1): UnixConnection | null {
    for (;;) {
      if (poll(this.descriptor, POLL.IN, timeoutMs) === 0) return null;
      const descriptor = libc().accept4(this.descriptor, null, null, SOCK_CLOEXEC);
      if (descriptor >= 0) return new UnixConnection(descriptor);
      const errno = lastErrno();
      // Whoever it was has gone again.
      if (errno !== EAGAIN && errno !== ECONNABORTED) throw new HostError("accept", errno);
    }
  }

  /** Ends it, and removes its name if it still is the one that was made here. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    close(this.descriptor);
    if (this.path === null) return;
    try {
      if (lstat(this.path).identity === this.#identity) unlink(this.path);
    } catch {
      // It is gone already.
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Removes a socket that nobody listens at. */
function makeWay(path: string): void {
  let kind: string;
  try {
    ({ kind } = lstat(path));
  } catch (error) {
    if (error instanceof HostError && error.code === "ENOENT") return;
    throw error;
  }
  if (kind !== "socket") throw new SocketPathError(`'${path}' exists and is not a socket`, "give another path");
  if (isListening(path)) {
    throw new SocketPathError(`Another process listens at '${path}'`, "end it first, or give another path");
  }
  unlink(path);
}

function option(descriptor: number, name: number): number | null {
  const value = new Int32Array(1);
  const lengthBytes = new Uint32Array([4]);
  return libc().getsockopt(descriptor, SOL_SOCKET, name, value, lengthBytes) === 0 ? value[0] : null;
}
