/** Several back-ends behind one front-end, as with `--iothreads`, in one thread: what the sockets do is done by hand. */

import { BlkDevice } from "../../../src/blk/device.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import type { VhostUserConnection } from "../../../src/transport/vhost_user/connection.ts";
import type { RawMessage } from "../../../src/transport/vhost_user/dispatch.ts";
import { type Peer, type PeerAnswer, SETTLED_REQUEST } from "../../../src/transport/vhost_user/peer.ts";
import { encodeMessage, HEADER_BYTES } from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import type { Violation } from "../../../src/virtio/violation.ts";
import { FakeHost } from "./fake_host.ts";
import { FrontEnd } from "./front_end.ts";
import { filledDisk } from "./rig.ts";

/** A back-end of another thread. */
class OtherBackEnd {
  readonly device: BlkDevice;
  readonly backEnd: VhostUserBackEnd;

  constructor(image: RawImage, host: FakeHost, queues: number, refused: (violation: Violation) => void) {
    this.device = new BlkDevice(image, { packed: true, queues });
    this.backEnd = new VhostUserBackEnd(this.device, host, { refused }, "first");
  }
}

/** The way to one. */
class HandPeer implements Peer {
  readonly #host: FakeHost;
  readonly #connection: VhostUserConnection;
  #reply: Uint8Array | null = null;
  #answer: (answer: PeerAnswer | null) => void = () => {};
  #queue: Uint8Array[] = [];

  constructor(backEnd: VhostUserBackEnd, host: FakeHost) {
    this.#host = host;
    this.#connection = backEnd.open((message) => this.#take(message));
    this.#connection.onReady = () => this.#feed();
    this.#connection.closed.then(() => this.#answer(null));
  }

  ask(raw: RawMessage | null): Promise<PeerAnswer | null> {
    if (this.#connection.endReason !== null) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#answer = resolve;
      const settled = encodeMessage(SETTLED_REQUEST, 0, new Uint8Array(0));
      this.#queue = [settled];
      if (raw === null) return this.#feed();
      const { request, flags, payload, fds } = raw;
      const message = encodeMessage(request, flags & ~1, payload);
      const copies = fds.all.map((fd) => this.#host.duplicateFd(fd!));
      this.#queue = [message.subarray(HEADER_BYTES), settled];
      this.#connection.receive(message.subarray(0, HEADER_BYTES), copies);
      this.#feed();
    });
  }

  async close(): Promise<void> {
    this.#connection.disconnected();
    await this.#connection.closed;
  }

  #feed(): void {
    while (this.#queue.length > 0 && this.#connection.endReason === null) {
      const [next] = this.#queue;
      if (next.byteLength === 0) this.#queue.shift();
      else if (this.#connection.wantedBytes === 0) return;
      else {
        const count = Math.min(next.byteLength, this.#connection.wantedBytes);
        this.#queue[0] = next.subarray(count);
        this.#connection.receive(next.subarray(0, count));
      }
    }
  }

  #take(message: Uint8Array): void {
    if (new DataView(message.buffer).getUint32(0, true) !== SETTLED_REQUEST) {
      this.#reply = message;
      return;
    }
    const reply = this.#reply;
    this.#reply = null;
    this.#answer({ reply, running: message[HEADER_BYTES] === 1 });
  }
}

/** `count` back-ends on one disk, the first with the front-end. */
export class SplitRig {
  readonly host = new FakeHost();
  readonly memory = filledDisk();
  readonly storage = new FaultStorage(this.memory);
  readonly device: BlkDevice;
  readonly backEnd: VhostUserBackEnd;
  /** The devices of the others. */
  readonly otherDevices: readonly BlkDevice[];
  /** Who refused what: 0 is the first. */
  readonly refusals: { by: number; rule: string }[] = [];
  drained = 0;

  constructor(count: number, queues: number) {
    const image = new RawImage(this.storage);
    const refusedBy = (by: number) => ({ rule }: Violation) => void this.refusals.push({ by, rule });
    const others = Array.from(
      { length: count - 1 },
      (_, i) => new OtherBackEnd(image, this.host, queues, refusedBy(i + 1)),
    );
    this.otherDevices = others.map(({ device }) => device);
    this.device = new BlkDevice(image, { packed: true, queues });
    this.backEnd = new VhostUserBackEnd(this.device, this.host, { refused: refusedBy(0) }, {
      connect: () => others.map(({ backEnd }) => new HandPeer(backEnd, this.host)),
      drain: async () => {
        for (const { backEnd } of others) await backEnd.drain();
        this.drained++;
      },
    });
  }

  connect(): FrontEnd {
    return new FrontEnd(this.backEnd, this.host);
  }
}
