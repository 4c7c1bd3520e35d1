/**
 * Sends the same messages without end, faster than anybody reads them, until the other side closes. Counts in shared
 * memory how many times it has sent all of them.
 */

import { UnixConnection } from "../../src/host/unix_connection.ts";

/** What it is started with. */
export interface FloodStart {
  readonly descriptor: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** One number. */
  readonly count: SharedArrayBuffer;
}

const scope = globalThis as unknown as { onmessage: ((event: MessageEvent<FloodStart>) => void) | null };

scope.onmessage = ({ data: { descriptor, bytes, count } }) => {
  const socket = new UnixConnection(descriptor);
  const sent = new Int32Array(count);
  try {
    for (;;) {
      socket.send(bytes, [], 5000);
      Atomics.add(sent, 0, 1);
    }
  } catch {
    // The other side has closed.
  }
};
