/**
 * The thread of a served image: it owns the io_uring, the image, the device and the socket, and returns to Deno's event
 * loop only when it ends.
 *
 * @module
 */

import { BlkDevice } from "../blk/device.ts";
import type { BlkOptions } from "../blk/options.ts";
import { UnixServer } from "../host/unix_socket.ts";
import type { Image } from "../image/image.ts";
import { openImage, type OpenOptions } from "../image/open.ts";
import { PolicyImage } from "../image/policy.ts";
import { BlockError } from "../storage/block_error.ts";
import { UringEngine } from "../storage/uring_engine.ts";
import { UringFileStorage } from "../storage/uring_file.ts";
import { VhostUserBackEnd } from "../transport/vhost_user/back_end.ts";
import type { EndReason } from "../transport/vhost_user/connection.ts";
import { formatVhostUserViolation } from "../transport/vhost_user/rules.ts";
import { type ControlEnd, ControlReader, WISH } from "./control.ts";
import { UringHost } from "./uring_host.ts";
import { VhostUserServer } from "./vhost_user_server.ts";
import { Watches } from "./watches.ts";

/** What the thread is started with. */
export interface ThreadStart {
  readonly image: string;
  readonly open: Pick<OpenOptions, "format" | "readOnly" | "snapshot" | "share" | "l2CacheBytes">;
  readonly direct: boolean;
  readonly ignoreFlush: boolean;
  readonly ignoreDiscard: boolean;
  readonly device: Partial<BlkOptions>;
  readonly socketPath: string | null;
  /** systemd's variables. */
  readonly passed: { readonly pid: string | undefined; readonly count: string | undefined };
  /** End after the first front-end. */
  readonly once: boolean;
  /** How long to look for something to do before sleeping. */
  readonly pollNanoseconds: number;
  readonly control: ControlEnd;
}

/** What the thread tells. */
export type ThreadNews =
  | { readonly news: "ready"; readonly sizeBytes: number; readonly format: string }
  | { readonly news: "message"; readonly text: string; readonly hint?: string }
  | { readonly news: "statistics"; readonly text: string }
  | { readonly news: "ended"; readonly error?: { readonly message: string; readonly hint?: string } };

/** Turns of microtasks between two looks at the ring, while something is in flight: a chain of promises goes on in them. */
const TURNS = 32;

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart>) => void) | null;
  postMessage(news: ThreadNews): void;
};

scope.onmessage = async ({ data }) => {
  try {
    await serve(data);
    scope.postMessage({ news: "ended" });
  } catch (error) {
    const { message, hint } = error as Error & { hint?: string };
    scope.postMessage({ news: "ended", error: { message, hint } });
  }
};

async function serve(start: ThreadStart): Promise<void> {
  using engine = new UringEngine({ drivenBy: "owner", entries: 512 });
  const loop = new Loop(engine, start.pollNanoseconds);
  const image = await loop.until(openServed(start, engine));
  try {
    await serveImage(start, engine, loop, image);
  } finally {
    await loop.until(closeImage(image));
  }
}

async function closeImage(image: Image): Promise<void> {
  try {
    if (!image.readOnly) await image.flush();
  } finally {
    await image.close();
  }
}

async function openServed(start: ThreadStart, engine: UringEngine): Promise<Image> {
  const { direct, ignoreFlush, ignoreDiscard } = start;
  const image = await openImage(start.image, {
    ...start.open,
    openFile: (path, files) => UringFileStorage.open(path, { ...files, direct, engine }),
  });
  return ignoreFlush || ignoreDiscard ? new PolicyImage(image, { ignoreFlush, ignoreDiscard }) : image;
}

async function serveImage(start: ThreadStart, engine: UringEngine, loop: Loop, image: Image): Promise<void> {
  const hostError = (error: BlockError) => tell(error.message, error.hint);
  const device = new BlkDevice(image, start.device, { hostError });
  const watches = new Watches(engine);
  const host = new UringHost(engine, watches);
  const refused = (violation: Parameters<typeof formatVhostUserViolation>[0]) =>
    tell(formatVhostUserViolation(violation));
  const backEnd = new VhostUserBackEnd(device, host, { refused });
  const listener = start.socketPath === null ? UnixServer.adopt(start.passed) : UnixServer.listen(start.socketPath);
  if (listener === null) throw new Error("no socket was passed to this process (LISTEN_FDS)");
  let stopping: Promise<void> | null = null;
  const stop = () => {
    stopping ??= server.stop();
  };
  const server = new VhostUserServer(listener, backEnd, host, watches, {
    connected: () => {},
    ended: (reason) => {
      if (reason.kind === "refused") tell(endText(reason), REFUSED_HINT);
      if (start.once) stop();
    },
  });
  const control = new ControlReader(start.control);
  const watch = watches.add(control.descriptor, () => {
    const wishes = control.take();
    if ((wishes & WISH.statistics) !== 0) scope.postMessage({ news: "statistics", text: statisticsText(device) });
    if ((wishes & WISH.stop) !== 0) stop();
  });
  scope.postMessage({ news: "ready", sizeBytes: image.sizeBytes, format: image.format });
  await loop.run({
    isOver: () => stopping !== null,
    isBusy: () => device.inFlightCount > 0 || server.busy,
    poll: host.polls ? () => host.pollRings() : () => {},
    mustPoll: () => host.polls,
  });
  await loop.until(stopping!);
  watch.close();
}

const REFUSED_HINT =
  "if it is QEMU, its memory must be shared: -object memory-backend-memfd,id=mem,share=on,size=... " +
  "-numa node,memdev=mem";

function endText(reason: EndReason & { kind: "refused" }): string {
  return `the front-end was refused: ${formatVhostUserViolation(reason.violation)}`;
}

function statisticsText({ counters, inFlightCount }: BlkDevice): string {
  const { popped, batches, calls, callsSuppressed } = counters;
  const perBatch = batches === 0 ? 0 : counters.published / batches;
  return `${popped} requests in ${batches} batches (${perBatch.toFixed(1)} each), ${inFlightCount} in flight; ` +
    `${calls} calls, ${callsSuppressed} suppressed`;
}

function tell(text: string, hint?: string): void {
  scope.postMessage({ news: "message", text, hint });
}

/** What the loop asks. */
interface Work {
  isOver(): boolean;
  /** Whether promises are on their way that no result of the ring need wake. */
  isBusy(): boolean;
  poll(): void;
  mustPoll(): boolean;
}

/** Waits for the ring, and lets promises go on, without Deno's event loop. */
class Loop {
  readonly #engine: UringEngine;
  readonly #pollNanoseconds: number;

  constructor(engine: UringEngine, pollNanoseconds: number) {
    this.#engine = engine;
    this.#pollNanoseconds = pollNanoseconds;
  }

  /** Runs until a promise ends, as it does. */
  async until<T>(promise: Promise<T>): Promise<T> {
    let ended = false;
    const watched = promise.finally(() => ended = true);
    watched.catch(() => {});
    while (!ended) {
      await this.#turns();
      if (ended) break;
      // Not everything that a promise waits for is the ring's: modules are loaded by Deno.
      if (this.#engine.active > 0) this.#engine.pollOnce(-1);
      else {
        this.#engine.pollOnce(0);
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
    }
    return await watched;
  }

  async run(work: Work): Promise<void> {
    const engine = this.#engine;
    while (!work.isOver()) {
      if (work.isBusy()) {
        await this.#turns();
        // With nothing under way in the ring only promises can go on.
        engine.pollOnce(engine.active > 0 && !work.mustPoll() ? -1 : 0);
      } else if (work.mustPoll()) {
        work.poll();
        engine.pollOnce(0);
      } else {
        this.#wait();
      }
      // What ended without being waited for, such as a connection.
      await undefined;
    }
  }

  /** Looks for a while, then sleeps. */
  #wait(): void {
    const engine = this.#engine;
    if (this.#pollNanoseconds > 0) {
      const end = performance.now() + this.#pollNanoseconds / 1e6;
      do {
        if (engine.pollOnce(0) > 0) return;
      } while (performance.now() < end);
    }
    engine.pollOnce(-1);
  }

  async #turns(): Promise<void> {
    for (let i = 0; i < TURNS; i++) await undefined;
  }
}
