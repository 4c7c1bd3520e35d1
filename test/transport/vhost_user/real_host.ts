/**
 * A vhost-user back-end's machine on real descriptors, with the plainest of event loops: it looks at every descriptor in
 * turn. For tests of the protocol; `vblk serve` has a better one.
 *
 * @module
 */

import { EventFd } from "../../../src/host/event_fd.ts";
import { close, duplicate, memfdCreate, POLL, poll } from "../../../src/host/libc.ts";
import { Mapping } from "../../../src/host/mapping.ts";
import { DescriptorList } from "../../../src/host/socket_message.ts";
import { UnixConnection } from "../../../src/host/unix_connection.ts";
import type { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import type { EndReason } from "../../../src/transport/vhost_user/connection.ts";
import type {
  BackendChannel,
  Closable,
  MappedBytes,
  Notifier,
  VhostUserHost,
} from "../../../src/transport/vhost_user/seams.ts";

export class RealHost implements VhostUserHost {
  /** Every mapping that was made. */
  readonly mappings: Mapping[] = [];
  readonly #kicks = new Set<{ event: EventFd | null; onKick: () => void }>();

  closeFd(fd: number): void {
    close(fd);
  }

  duplicateFd(fd: number): number {
    return duplicate(fd);
  }

  map(fd: number, offset: number, sizeBytes: number): MappedBytes {
    const mapping = Mapping.ofFile(fd, { offset, lengthBytes: sizeBytes });
    this.mappings.push(mapping);
    return mapping;
  }

  createShared(name: string, sizeBytes: number): number {
    return memfdCreate(name, sizeBytes);
  }

  notifier(fd: number): Notifier {
    const event = new EventFd(fd);
    return { signal: () => event.signal(), close: () => event.close() };
  }

  watchKicks(fd: number | null, onKick: () => void): Closable {
    const watch = { event: fd === null ? null : new EventFd(fd), onKick };
    this.#kicks.add(watch);
    return {
      close: () => {
        this.#kicks.delete(watch);
        watch.event?.close();
      },
    };
  }

  backendChannel(fd: number): BackendChannel {
    const socket = new UnixConnection(fd);
    return { send: (message) => socket.send(message.slice(), [], 0), close: () => socket.close() };
  }

  /** Looks at every kick descriptor once. */
  lookAtKicks(): boolean {
    let any = false;
    for (const { event, onKick } of [...this.#kicks]) {
      if (event !== null && event.drain() === 0n) continue;
      any = true;
      onKick();
    }
    return any;
  }
}

/** Serves one connection to its end. */
export async function serve(backEnd: VhostUserBackEnd, host: RealHost, socket: UnixConnection): Promise<EndReason> {
  const connection = backEnd.open((message, fds) => {
    socket.send(message.slice(), fds);
    for (const fd of fds) close(fd);
  });
  for (let idle = 0; connection.endReason === null;) {
    const wanted = connection.wantedBytes;
    let busy = host.lookAtKicks();
    if (wanted > 0 && poll(socket.descriptor, POLL.IN, 0) & (POLL.IN | POLL.HUP)) {
      busy = true;
      using descriptors = new DescriptorList();
      const bytes = new Uint8Array(wanted);
      // All that is wanted comes in one sendmsg, or the front-end is none.
      const got = socket.receive(bytes, descriptors, 1000);
      if (got === "all") connection.receive(bytes, takeAll(descriptors));
      else connection.disconnected();
    }
    idle = busy ? 0 : idle + 1;
    await new Promise((resolve) => setTimeout(resolve, idle > 100 ? 1 : 0));
  }
  socket.close();
  return await connection.closed;
}

function takeAll(list: DescriptorList): number[] {
  const all: number[] = [];
  for (let fd; (fd = list.take()) !== null;) all.push(fd);
  return all;
}
