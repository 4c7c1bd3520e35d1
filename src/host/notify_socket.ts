/**
 * sd_notify(3): tells systemd, or whoever set NOTIFY_SOCKET, how a service is doing.
 *
 * @module
 */

import { check, close, libc } from "./libc.ts";

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0x80000;
const MOST_NAME_BYTES = 107;

/**
 * Sends a state such as `READY=1`.
 *
 * @param address value of NOTIFY_SOCKET: a path, or an abstract name with a @ in front
 * @throws HostError when nobody takes it; RangeError for what is no address
 */
export function notify(address: string, state: string): void {
  const name = new TextEncoder().encode(address);
  if (!/^[/@]/.test(address) || name.byteLength > MOST_NAME_BYTES) {
    throw new RangeError(`NOTIFY_SOCKET '${address}' is not the address of a Unix socket`);
  }
  // An abstract name begins with a zero byte, and has none at its end.
  const isAbstract = address.startsWith("@");
  if (isAbstract) name[0] = 0;
  const bytes = new Uint8Array(2 + name.byteLength + (isAbstract ? 0 : 1));
  bytes[0] = AF_UNIX;
  bytes.set(name, 2);
  const message = new TextEncoder().encode(state);
  const descriptor = check("socket", () => libc().socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0));
  try {
    check("connect", () => libc().connect(descriptor, bytes, bytes.byteLength), address);
    check("write", () => libc().write(descriptor, message, BigInt(message.byteLength)));
  } finally {
    close(descriptor);
  }
}
