/**
 * Sends the same messages without end, faster than anybody reads them, until the other side closes. Tells how many bytes
 * it has sent once it is well under way, and at the end.
 */

import { UnixConnection } from "../../src/host/unix_connection.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<{ descriptor: number; bytes: Uint8Array<ArrayBuffer> }>) => void) | null;
  postMessage(sentBytes: number): void;
};

scope.onmessage = ({ data: { descriptor, bytes } }) => {
  const socket = new UnixConnection(descriptor);
  let sentBytes = 0;
  try {
    for (;;) {
      socket.send(bytes, [], 5000);
      sentBytes += bytes.byteLength;
      if (sentBytes === 10 * bytes.byteLength) scope.postMessage(sentBytes);
    }
  } catch {
    scope.postMessage(sentBytes);
  }
};
