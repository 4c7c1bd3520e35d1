/**
 * Addresses of Unix sockets, and who listens at them.
 *
 * @module
 */

import { check, close, libc, lstat, O, open } from "./libc.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0x80000;
/** sun_path has 108 bytes, the last of which is a zero. */
const LONGEST_PATH_BYTES = 107;
/** In the column of flags in /proc/net/unix: it listens. */
const ACCEPTS = 0x10000;

/** A socket can't be made, or taken over; the message is for the user. */
export class SocketPathError extends Error {
  /** Always `"SocketPathError"`: what a stack trace begins with. */
  override readonly name = "SocketPathError";
  /** What the user can do about it. */
  readonly hint: string | undefined;

  /** Takes a sentence and a way out. */
  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }
}

/**
 * A struct sockaddr_un.
 *
 * @throws SocketPathError when the path does not fit into one
 */
export function addressBytes(path: string): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode(path);
  if (path === "" || name.includes(0)) throw new SocketPathError("A socket needs a path");
  if (name.byteLength > LONGEST_PATH_BYTES) {
    throw new SocketPathError(
      `The path of a socket may have at most ${LONGEST_PATH_BYTES} bytes, and this one has ${name.byteLength}: '${path}'`,
      "give a path that is relative to the working folder, or put the socket into a folder with a short name",
    );
  }
  const bytes = new Uint8Array(2 + name.byteLength + 1);
  bytes[0] = AF_UNIX;
  bytes.set(name, 2);
  return bytes;
}

/** A stream socket that is neither bound nor connected. */
export function newSocket(): number {
  return check("socket", () => libc().socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

/**
 * Whether a process listens at a path. Nobody is connected to for it unless that is the only way to find out: a
 * back-end would take that for a session.
 */
export function isListening(path: string): boolean {
  const name = path.slice(path.lastIndexOf("/") + 1);
  const candidates = listeners().filter((listener) => listener.slice(listener.lastIndexOf("/") + 1) === name);
  if (candidates.length === 0) return false;
  if (path.startsWith("/") && candidates.includes(path)) return true;
  // The same path in other words, relative to another process's folder or through a link; or another socket.
  return candidates.some((listener) => isSame(listener, path)) || answers(path);
}

function isSame(listener: string, path: string): boolean {
  if (!listener.startsWith("/")) return false;
  try {
    return lstat(listener).identity === lstat(path).identity;
  } catch {
    return false;
  }
}

function answers(path: string): boolean {
  const address = addressBytes(path);
  const descriptor = newSocket();
  try {
    return libc().connect(descriptor, address, address.byteLength) === 0;
  } finally {
    close(descriptor);
  }
}

/** The paths that somebody listens at, as each of them gave it. */
function listeners(): string[] {
  return readAll("/proc/net/unix").split("\n").map((line) => line.split(/\s+/)).filter(([, , , flags]) =>
    (parseInt(flags, 16) & ACCEPTS) !== 0
  ).map((columns) => columns.slice(7).join(" "));
}

function readAll(path: string): string {
  const descriptor = open(path, O.RDONLY);
  try {
    const chunk = new Uint8Array(1 << 16);
    const decoder = new TextDecoder();
    for (let text = "";;) {
      const count = check("read", () => libc().read(descriptor, chunk, BigInt(chunk.byteLength)));
      if (count === 0) return text + decoder.decode();
      text += decoder.decode(chunk.subarray(0, count), { stream: true });
    }
  } finally {
    close(descriptor);
  }
}
