/**
 * The thread that has the front-end's socket, and all queues unless other threads have some.
 *
 * @module
 */

import { BlkDevice } from "../blk/device.ts";
import { SocketPathError } from "../host/unix_address.ts";
import { UnixServer } from "../host/unix_socket.ts";
import { UringEngine } from "../storage/uring_engine.ts";
import { VhostUserBackEnd } from "../transport/vhost_user/back_end.ts";
import { ControlReader, WISH } from "./control.ts";
import { ControlSocket } from "./control_socket.ts";
import { Crash } from "./crash.ts";
import { Figures } from "./figures.ts";
import { Loop } from "./loop.ts";
import { Observers, type Tell } from "./observers.ts";
import { Pace } from "./pace.ts";
import { QueueThreads } from "./queue_threads.ts";
import { resizeServed } from "./resize.ts";
import { ServedImage } from "./served_image.ts";
import { threadsReport } from "./statistics.ts";
import type { ThreadNews, ThreadStart } from "./thread_start.ts";
import { UringHost } from "./uring_host.ts";
import { VhostUserServer } from "./vhost_user_server.ts";
import { Watches } from "./watches.ts";

/** Serves an image to the end. */
export async function serveFirst(start: ThreadStart, tell: Tell, post: (news: ThreadNews) => void): Promise<void> {
  const observers = await Observers.create(start.observe, tell);
  using engine = new UringEngine({ drivenBy: "owner", entries: 512 });
  const loop = new Loop(engine, start.pollNanoseconds);
  // Whoever starts us again after a kill does it with the same socket.
  const served = await loop.until(ServedImage.open(start, engine, start.socketPath));
  try {
    await serveImage(start, engine, loop, served, observers, post);
  } finally {
    await loop.until(served.close({ flush: true }));
  }
}

async function serveImage(
  start: ThreadStart,
  engine: UringEngine,
  loop: Loop,
  served: ServedImage,
  observers: Observers,
  post: (news: ThreadNews) => void,
): Promise<void> {
  const { image } = served;
  const crash = new Crash();
  const device = new BlkDevice(image, start.device, { ...observers.device, crashed: crash.note });
  const otherFigures = start.otherFigures.map((memory) => new Figures(memory));
  if (otherFigures.length > 0) served.checkDivisible(device);
  const pace = new Pace(device);
  const watches = new Watches(engine);
  const host = new UringHost(engine, watches);
  const others = new QueueThreads(otherFigures.length, watches);
  const backEnd = new VhostUserBackEnd(device, host, observers.session, otherFigures.length === 0 ? null : others);
  const listener = start.socketPath === null ? UnixServer.adopt(start.passed) : UnixServer.listen(start.socketPath);
  if (listener === null) {
    throw new SocketPathError("No socket was passed to this process (LISTEN_PID)", "give --vhost-user SOCKET");
  }
  let stopping: Promise<void> | null = null;
  const stop = () => {
    // The others last: what they have in flight is drained with what is in flight here.
    stopping ??= server.stop().then(() => others.close());
  };
  const server = new VhostUserServer(listener, backEnd, host, watches, {
    connected: () => observers.connected(),
    ended: (reason) => {
      observers.disconnected(reason);
      if (start.once) stop();
    },
    crashed: crash.note,
  });
  const refresh = async () => {
    observers.refresh(device, image, host.kickCount);
    if (otherFigures.length > 0) await others.during(() => others.refresh());
  };
  let commands: ControlSocket | null = null;
  try {
    const commandListener = start.controlPath === null ? null : UnixServer.listen(start.controlPath);
    commands = commandListener === null ? null : new ControlSocket(commandListener, watches, {
      resize: async (request) => ({
        size: await resizeServed(request, device, image, (sizeBytes) => others.resize(sizeBytes)),
      }),
      statistics: async () => {
        await refresh();
        return { ...threadsReport(observers.figures, otherFigures) };
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
        void others.during(() => refresh().then(() => post({ news: "statistics" })));
      }
      if ((wishes & WISH.stop) !== 0) stop();
    });
    const { sizeBytes, format } = image;
    post({ news: "ready", sizeBytes, format, identity: served.identity, ends: others.ends });
    await loop.run({
      isOver: () => stopping !== null || crash.happened,
      isBusy: () =>
        device.inFlightCount > 0 ||
        // Their answers wake the thread.
        (!others.waiting && (others.busy || server.busy || (commands?.busy ?? false))),
      inFlight: () => device.inFlightCount,
      look: () => device.poll(),
      endLooking: () => device.endPolling(),
      turned: () => pace.turned(),
      mustPoll: () => host.polls,
      poll: () => host.pollRings(),
    });
    await loop.until(crash.unless(stopping));
    observers.refresh(device, image, host.kickCount);
    watch.close();
  } catch (error) {
    // Whoever waits for this thread learns that there is nothing to wait for, and its sockets go.
    server.abandon();
    others.abandon();
    throw error;
  } finally {
    commands?.close();
  }
}
