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
import { UringEngine } from "../storage/uring_engine.ts";
import { UringFileStorage } from "../storage/uring_file.ts";
import { VhostUserBackEnd } from "../transport/vhost_user/back_end.ts";
import { type ControlEnd, ControlReader, WISH } from "./control.ts";
import { ControlSocket } from "./control_socket.ts";
import { MessageLimit } from "./message_limit.ts";
import { Observers, type ObserveStart } from "./observers.ts";
import { resizeServed } from "./resize.ts";
import { servedReport } from "./statistics.ts";
import { JournalFile } from "./journal_file.ts";
import { Loop } from "./loop.ts";
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
  /** Where to make a socket for commands, if anywhere. */
  readonly controlPath: string | null;
  readonly observe: ObserveStart;
}

/** What the thread tells. */
export type ThreadNews =
  | { readonly news: "ready"; readonly sizeBytes: number; readonly format: string }
  | { readonly news: "message"; readonly text: string; readonly hint?: string }
  /** The numbers in shared memory are up to date. */
  | { readonly news: "statistics" }
  | { readonly news: "ended"; readonly error?: { readonly message: string; readonly hint?: string } };

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart>) => void) | null;
  postMessage(news: ThreadNews): void;
};

scope.onmessage = async ({ data }) => {
  try {
    await serve(data);
    messages.tellOmitted();
    scope.postMessage({ news: "ended" });
  } catch (error) {
    const { message, hint } = error as Error & { hint?: string };
    scope.postMessage({ news: "ended", error: { message, hint } });
  }
};

async function serve(start: ThreadStart): Promise<void> {
  const observers = await Observers.create(start.observe, tell);
  using engine = new UringEngine({ drivenBy: "owner", entries: 512 });
  const loop = new Loop(engine, start.pollNanoseconds);
  const journals: JournalFile[] = [];
  const image = await loop.until(openServed(start, engine, journals));
  try {
    await serveImage(start, engine, loop, image, observers);
  } finally {
    await loop.until(closeImage(image));
    for (const journal of journals) journal.remove();
  }
}

async function closeImage(image: Image): Promise<void> {
  try {
    if (!image.readOnly) await image.flush();
  } finally {
    await image.close();
  }
}

async function openServed(start: ThreadStart, engine: UringEngine, journals: JournalFile[]): Promise<Image> {
  const { direct, ignoreFlush, ignoreDiscard, socketPath } = start;
  const journal = (identity: string) => {
    const file = new JournalFile(`${socketPath}.journal`, identity);
    journals.push(file);
    return file;
  };
  const image = await openImage(start.image, {
    ...start.open,
    openFile: (path, files) => UringFileStorage.open(path, { ...files, direct, engine }),
    // Whoever starts us again after a kill does it with the same socket.
    journal: socketPath === null ? undefined : journal,
  });
  return ignoreFlush || ignoreDiscard ? new PolicyImage(image, { ignoreFlush, ignoreDiscard }) : image;
}

async function serveImage(
  start: ThreadStart,
  engine: UringEngine,
  loop: Loop,
  image: Image,
  observers: Observers,
): Promise<void> {
  const device = new BlkDevice(image, start.device, observers.device);
  const watches = new Watches(engine);
  const host = new UringHost(engine, watches);
  const backEnd = new VhostUserBackEnd(device, host, observers.session);
  const listener = start.socketPath === null ? UnixServer.adopt(start.passed) : UnixServer.listen(start.socketPath);
  if (listener === null) throw new Error("no socket was passed to this process (LISTEN_FDS)");
  let stopping: Promise<void> | null = null;
  const crashes: unknown[] = [];
  const stop = () => {
    stopping ??= server.stop();
  };
  const server = new VhostUserServer(listener, backEnd, host, watches, {
    connected: () => observers.connected(),
    ended: (reason) => {
      observers.disconnected(reason);
      if (start.once) stop();
    },
    crashed: (error) => crashes.push(error),
  });
  const refresh = () => observers.refresh(device, image, host.kickCount);
  const commands = start.controlPath === null ? null : new ControlSocket(start.controlPath, watches, {
    resize: async (request) => ({ size: await resizeServed(request, device, image) }),
    statistics: () => {
      refresh();
      return { ...servedReport(observers.figures) };
    },
    stop: () => {
      stop();
      return {};
    },
  });
  const control = new ControlReader(start.control);
  const watch = watches.add(control.descriptor, () => {
    const wishes = control.take();
    if ((wishes & WISH.statistics) !== 0) {
      refresh();
      scope.postMessage({ news: "statistics" });
    }
    if ((wishes & WISH.stop) !== 0) stop();
  });
  scope.postMessage({ news: "ready", sizeBytes: image.sizeBytes, format: image.format });
  await loop.run({
    isOver: () => stopping !== null || crashes.length > 0,
    isBusy: () => device.inFlightCount > 0 || server.busy || (commands?.busy ?? false),
    inFlight: () => device.inFlightCount,
    look: () => device.poll(),
    endLooking: () => device.endPolling(),
    mustPoll: () => host.polls,
    poll: () => host.pollRings(),
  });
  if (crashes.length > 0) throw crashes[0];
  await loop.until(stopping!);
  refresh();
  watch.close();
  commands?.close();
}

const messages = new MessageLimit((text, hint) => scope.postMessage({ news: "message", text, hint }));

function tell(text: string, hint?: string): void {
  messages.say(text, hint);
}
