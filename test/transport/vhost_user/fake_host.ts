/**
 * A machine for a vhost-user back-end in which file descriptors are numbers that somebody counts: nothing may be closed
 * twice, used after it was closed, or left open.
 *
 * @module
 */

import type { BackendChannel, Closable, MappedBytes, Notifier } from "../../../src/transport/vhost_user/seams.ts";
import type { VhostUserHost } from "../../../src/transport/vhost_user/seams.ts";

/** A file in memory. */
export class FakeFile {
  readonly bytes: Uint8Array<ArrayBuffer>;
  constructor(from: number | Uint8Array) {
    this.bytes = typeof from === "number" ? new Uint8Array(from) : from.slice();
  }
}

/** An eventfd. */
export class FakeEvent {
  /** Times that it was signalled since somebody looked. */
  count = 0;
  /** Who waits for it. */
  watcher: (() => void) | null = null;

  /** What the front-end does to kick. */
  kick(): void {
    this.watcher?.();
  }

  /** Empties it. */
  take(): number {
    const { count } = this;
    this.count = 0;
    return count;
  }
}

/** The front-end's end of the back-end channel. */
export class FakeSocket {
  readonly received: Uint8Array[] = [];
}

type Thing = FakeFile | FakeEvent | FakeSocket;

export class FakeHost implements VhostUserHost {
  /** The back-end's open descriptors. */
  readonly open = new Map<number, Thing>();
  /** Mappings that were not taken away. */
  mappings = 0;
  /** Rings that are looked at without a kick. */
  readonly pollers = new Set<() => void>();
  /** What must never happen. */
  readonly problems: string[] = [];
  /** Makes the next operations fail, by name. */
  readonly failing = new Set<"map" | "createShared" | "notifier" | "watchKicks" | "backendChannel" | "duplicateFd">();
  /** How many more mappings can be made. */
  mapsLeft = Infinity;
  #next = 100;

  /** Gives the back-end a descriptor, as a message does. */
  give(thing: Thing): number {
    const fd = this.#next++;
    this.open.set(fd, thing);
    return fd;
  }

  /** Nothing of a session is left. */
  get clean(): boolean {
    return this.open.size === 0 && this.mappings === 0 && this.pollers.size === 0 && this.problems.length === 0;
  }

  closeFd(fd: number): void {
    if (!this.open.delete(fd)) this.problems.push(`descriptor ${fd} was closed, which is not open`);
  }

  duplicateFd(fd: number): number {
    if (this.failing.has("duplicateFd")) throw new Error("no descriptors");
    return this.give(this.#thing(fd));
  }

  map(fd: number, offset: number, sizeBytes: number): MappedBytes {
    const file = this.#thing(fd);
    if (this.failing.has("map") || --this.mapsLeft < 0) throw new Error("cannot map: not enough memory");
    if (!(file instanceof FakeFile)) throw new Error("cannot map: not a file");
    if (offset + sizeBytes > file.bytes.byteLength) {
      throw new Error(`cannot map ${sizeBytes} bytes at offset ${offset} of a file of ${file.bytes.byteLength}`);
    }
    this.mappings++;
    let mapped = true;
    const unmap = () => {
      if (!mapped) this.problems.push("a mapping was taken away twice");
      else this.mappings--;
      mapped = false;
    };
    return { bytes: file.bytes.subarray(offset, offset + sizeBytes), unmap };
  }

  createShared(_name: string, sizeBytes: number): number {
    if (this.failing.has("createShared")) throw new Error("no memory files");
    return this.give(new FakeFile(sizeBytes));
  }

  notifier(fd: number): Notifier {
    const event = this.#takeOver(fd, "notifier");
    return {
      signal: () => {
        if (!this.open.has(fd)) this.problems.push(`descriptor ${fd} was signalled after it was closed`);
        if (event instanceof FakeEvent) event.count++;
      },
      close: () => this.closeFd(fd),
    };
  }

  watchKicks(fd: number | null, onKick: () => void): Closable {
    if (fd === null) {
      this.pollers.add(onKick);
      return { close: () => this.pollers.delete(onKick) };
    }
    const event = this.#takeOver(fd, "watchKicks");
    if (event instanceof FakeEvent) event.watcher = onKick;
    return {
      close: () => {
        if (event instanceof FakeEvent && event.watcher === onKick) event.watcher = null;
        this.closeFd(fd);
      },
    };
  }

  backendChannel(fd: number): BackendChannel {
    const socket = this.#takeOver(fd, "backendChannel");
    return {
      send: (message) => {
        if (!this.open.has(fd)) this.problems.push(`something was sent to ${fd} after it was closed`);
        if (socket instanceof FakeSocket) socket.received.push(message);
      },
      close: () => this.closeFd(fd),
    };
  }

  #takeOver(fd: number, operation: "notifier" | "watchKicks" | "backendChannel"): Thing {
    const thing = this.#thing(fd);
    if (!this.failing.has(operation)) return thing;
    this.closeFd(fd);
    throw new Error(`${operation} fails`);
  }

  #thing(fd: number): Thing {
    const thing = this.open.get(fd);
    if (thing === undefined) {
      this.problems.push(`descriptor ${fd} was used, which is not open`);
      throw new Error("bad file descriptor");
    }
    return thing;
  }
}
